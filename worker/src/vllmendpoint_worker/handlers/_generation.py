"""Binds loaded handlers to vLLM's application: one generation of handlers.

A generation is an application of its own over vLLM's. Its state, exception handlers, middleware and routes
are vLLM's, with the custom routes before them.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from starlette.middleware import Middleware

from vllmendpoint_api import HandlerSource, Problem, Reason
from vllmendpoint_worker.config.handler_config import Route
from vllmendpoint_worker.errors import ConfigurationRejectedError
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.serving.health_route import HealthRoute, SlashRoute

from ._error_boundary import EXIT_ERRORS, MiddlewareApp
from ._handler_endpoint import HandlerEndpoint
from ._log_limit import LogLimit
from ._registered_handlers import wrap_registered_handlers
from ._sagemaker_routes import adapter_routes
from .loading._load_problems import error_location
from .loading._loader import Handler, LoadedHandlers
from .loading._standards import MIDDLEWARES, create_middleware_object

__all__ = ["Generation", "bind_generation"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

METHODS: Final = {Route.PING: ["GET", "POST"], Route.INVOCATIONS: ["POST"]}

OnError = Callable[[Route, str], None]


@dataclass(frozen=True, slots=True)
class Generation:
    """Loaded handlers that are bound to the application."""

    loaded: LoadedHandlers
    app: FastAPI
    registered: Mapping[str, Callable[..., Any]]
    """The script's handlers of sessions and adapters."""
    endpoints: dict[Route, HandlerEndpoint] = field(default_factory=dict)
    requests: set[object] = field(default_factory=set)
    """Requests in flight."""

    @property
    def script_digest(self) -> str:
        """Digest of the script, ``""`` if there is none."""
        script = self.loaded.config.script
        return script.digest if script is not None else ""


def bind_generation(vllm_app: FastAPI, loaded: LoadedHandlers, on_error: OnError, clock: Clock) -> Generation:
    """Create a generation. Raises ConfigurationRejectedError if a middleware cannot be created."""
    registered = wrap_registered_handlers(loaded, on_error)
    adapters = adapter_routes(registered)
    if not loaded.handlers and not loaded.middleware and not adapters:
        return Generation(loaded, vllm_app, registered)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state = vllm_app.state
    app.root_path = vllm_app.root_path
    app.exception_handlers = dict(vllm_app.exception_handlers)
    endpoints = _add_handlers(app, vllm_app, loaded, on_error, clock)
    app.router.routes.extend([*adapters, *vllm_app.router.routes])
    try:
        _add_middleware(app, vllm_app, loaded, on_error, clock)
    except (Exception, *EXIT_ERRORS) as error:  # a customer's middleware may raise any error
        raise ConfigurationRejectedError([_middleware_problem(loaded, error)]) from error
    return Generation(loaded, app, registered, endpoints)


def _add_handlers(
    app: FastAPI, vllm_app: FastAPI, loaded: LoadedHandlers, on_error: OnError, clock: Clock
) -> dict[Route, HandlerEndpoint]:
    endpoints: dict[Route, HandlerEndpoint] = {}
    for route, handler in loaded.handlers.items():
        if route is Route.PING and _is_vllm_health_check(vllm_app, handler):
            continue  # vLLM's route answers, according to the verdict
        endpoint = HandlerEndpoint(route, handler, loaded.config, on_error=on_error, clock=clock)
        api_route = SlashRoute(route, endpoint.function, methods=METHODS[route], response_model=None)
        api_route.app = endpoint.app(api_route.app)
        app.router.routes.append(api_route)
        endpoints[route] = endpoint
    return endpoints


def _is_vllm_health_check(vllm_app: FastAPI, handler: Handler) -> bool:
    """Whether a ping handler is the function of one of vLLM's own health checks, which do not detect a
    stalled engine. docs/guide/custom-handlers.md names ``vllm.entrypoints.openai.api_server:health``.
    """
    checks = (route for route in vllm_app.router.routes if isinstance(route, HealthRoute))
    return any(check.is_of(handler.function) for check in checks)


def _add_middleware(
    app: FastAPI, vllm_app: FastAPI, loaded: LoadedHandlers, on_error: OnError, clock: Clock
) -> None:
    outer, inner = (
        [create_middleware_object(loaded.middleware[name])] if name in loaded.middleware else []
        for name in MIDDLEWARES
    )
    app.user_middleware = [*outer, *vllm_app.user_middleware, *inner]
    if outer or inner:
        report = partial(_report_middleware_error, loaded, on_error, LogLimit(clock))
        app.user_middleware.insert(0, Middleware(MiddlewareApp, on_error=report))
    app.middleware_stack = app.build_middleware_stack()


def _report_middleware_error(
    loaded: LoadedHandlers, on_error: OnError, log_limit: LogLimit, error: BaseException, path: str
) -> None:
    location = error_location(error, loaded.config)
    message = f"The middleware raised {type(error).__name__}{f' at {location}' if location else ''}."
    level = log_limit.level(path, message)
    logger.log(level, "The middleware failed: path=%s error=%s", path, message, exc_info=error)
    on_error(Route.PING if path == Route.PING else Route.INVOCATIONS, message)


def _middleware_problem(loaded: LoadedHandlers, error: BaseException) -> Problem:
    """A middleware that cannot be created."""
    logger.error("Cannot create the middleware", exc_info=error)
    at = f" at {location}" if (location := error_location(error, loaded.config)) else ""
    fields = [reference.field for reference in loaded.config.middleware]
    return Problem(
        reason=Reason.INVALID_HANDLER,
        source=(HandlerSource.ENVIRONMENT if fields else HandlerSource.DECORATOR).value,
        field=", ".join(fields)[:128] or "the middleware",
        message=f"The middleware cannot be created: {type(error).__name__}{at}. Correct the code; the "
        "worker's log has the traceback.",
    )
