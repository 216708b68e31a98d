"""Which handlers answer now: generations of the app, swapped whole.

A generation is an app of its own over vLLM's: its state, exception handlers, middleware and routes are
vLLM's, with the custom routes in front. A request stays in the generation it began in.
"""

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

from fastapi import FastAPI
from starlette.middleware import Middleware

from vllmendpoint_api import (
    HandlerError,
    HandlerReport,
    HandlerSource,
    HandlersReport,
    Problem,
    Reason,
)
from vllmendpoint_worker.config.custom_default import CUSTOM_DEFAULT
from vllmendpoint_worker.config.handler_config import HandlerConfig, Route
from vllmendpoint_worker.errors import ConfigurationRejectedError
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.process.file_fingerprint import file_fingerprint
from vllmendpoint_worker.process.run_blocking import run_blocking
from vllmendpoint_worker.serving.health_route import HealthRoute, SlashRoute

from ._error_boundary import EXITS, MiddlewareApp, Scope
from ._handler_endpoint import HandlerEndpoint
from ._log_limit import LogLimit
from ._registered_handlers import watched
from ._sagemaker_routes import adapter_routes
from .loading._load_problems import failed_at
from .loading._loader import Handler, LoadedHandlers, Loader
from .loading._standards import MIDDLEWARES, create_middleware_object
from .loading._standards_registry import in_force

__all__ = ["Generation", "HandlerManager", "bind"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

HANG_SECONDS: Final = 600.0
"""A call that runs for longer hangs. SageMaker waits 60 s for an answer and 8 minutes for a stream, but a
long generation is no failure: it is only told, and taken back when it returns."""

METHODS: Final = {Route.PING: ["GET", "POST"], Route.INVOCATIONS: ["POST"]}


@dataclass(frozen=True, slots=True)
class Generation:
    """One choice of handlers, bound to the app."""

    loaded: LoadedHandlers
    app: FastAPI
    registered: Mapping[str, Callable[..., Any]]
    """The script's handlers of sessions and adapters."""
    endpoints: dict[Route, HandlerEndpoint] = field(default_factory=dict)
    requests: set[object] = field(default_factory=set)
    """Those that it answers now."""


def bind(
    core: FastAPI, loaded: LoadedHandlers, failed: Callable[[Route, str], None], clock: Clock
) -> Generation:
    """The app of a generation. Raises ConfigurationRejectedError where a middleware cannot be made."""
    registered = watched(loaded, failed)
    adapters = adapter_routes(registered)
    if not loaded.handlers and not loaded.middleware and not adapters:
        return Generation(loaded, core, registered)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state = core.state
    app.root_path = core.root_path
    app.exception_handlers = dict(core.exception_handlers)
    endpoints: dict[Route, HandlerEndpoint] = {}
    for route, handler in loaded.handlers.items():
        if route is Route.PING and _is_vllms_own(core, handler):
            continue  # vLLM's route answers, by the verdict
        endpoint = HandlerEndpoint(route, handler, loaded.wanted, failed=failed, clock=clock)
        bound = SlashRoute(route, endpoint.function, methods=METHODS[route], response_model=None)
        bound.app = endpoint.app(bound.app)
        app.router.routes.append(bound)
        endpoints[route] = endpoint
    app.router.routes.extend([*adapters, *core.router.routes])
    try:
        outer, inner = (_middleware(loaded, name) for name in MIDDLEWARES)
        app.user_middleware = [*outer, *core.user_middleware, *inner]
        if outer or inner:
            reports = partial(_middleware_failed, loaded, failed, LogLimit(clock))
            app.user_middleware.insert(0, Middleware(MiddlewareApp, failed=reports))
        app.middleware_stack = app.build_middleware_stack()
    except (Exception, *EXITS) as error:  # what a customer's middleware does when it is made
        raise ConfigurationRejectedError([_unfit(loaded, error)]) from error
    return Generation(loaded, app, registered, endpoints)


def _is_vllms_own(core: FastAPI, handler: Handler) -> bool:
    """Whether a ping handler is the function behind one of vLLM's own health checks (the guide's
    ``vllm.entrypoints.openai.api_server:health``), which does not notice a stalled engine.
    """
    checks = (route for route in core.router.routes if isinstance(route, HealthRoute))
    return any(check.is_of(handler.function) for check in checks)


def _middleware(loaded: LoadedHandlers, name: str) -> list[Any]:
    return [create_middleware_object(loaded.middleware[name])] if name in loaded.middleware else []


def _middleware_failed(
    loaded: LoadedHandlers,
    failed: Callable[[Route, str], None],
    log_limit: LogLimit,
    error: BaseException,
    path: str,
) -> None:
    where = failed_at(error, loaded.wanted)
    sentence = f"The middleware raised {type(error).__name__}{f' at {where}' if where else ''}."
    level = log_limit.level(path, sentence)
    logger.log(level, "The middleware failed at a request of %s: %s", path, sentence, exc_info=error)
    failed(Route.PING if path == Route.PING else Route.INVOCATIONS, sentence)


def _unfit(loaded: LoadedHandlers, error: BaseException) -> Problem:
    """A middleware that cannot be made; its error names code."""
    logger.error("The middleware cannot be made", exc_info=error)
    at = f" at {where}" if (where := failed_at(error, loaded.wanted)) else ""
    named = [choice.field for choice in loaded.wanted.middleware]
    return Problem(
        reason=Reason.INVALID_HANDLER,
        source=(HandlerSource.ENVIRONMENT if named else HandlerSource.DECORATOR).value,
        field=", ".join(named)[:128] or "the middleware",
        message=f"The middleware cannot be made: {type(error).__name__}{at}. Correct the code; the worker's "
        "log has the traceback.",
    )


class HandlerManager:
    """Loads, binds and swaps; the ASGI app that stands for whichever generation is current.

    ``changed`` is called after a swap, after an error of a handler, and where one hangs or no longer does.
    """

    def __init__(self, changed: Callable[[], None], clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._changed = changed
        self._loader = Loader()
        self._core: FastAPI | None = None
        self._loaded: LoadedHandlers | None = None
        self._stamps: tuple[object, ...] = ()
        self._last_error: HandlerError | None = None
        self._hanging: dict[Route, float] = {}
        self._given_up: LoadedHandlers | None = None
        self.current: Generation | None = None

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        generation = self.current
        if generation is None:
            raise RuntimeError("no handlers are bound yet")
        scope["app"] = generation.app
        request = object()
        generation.requests.add(request)
        try:
            with in_force(generation.registered):
                await generation.app(scope, receive, send)
        finally:
            generation.requests.discard(request)
            self._retire(generation)

    def _retire(self, generation: Generation) -> None:
        """The tasks of a script that is no longer in force end with the last of its requests."""
        current = self.current
        if not generation.requests and (current is None or generation.loaded is not current.loaded):
            _cancel(generation.loaded)

    async def load(self, wanted: HandlerConfig) -> LoadedHandlers:
        """The handlers wanted, imported anew only where something of theirs has changed: a script keeps its
        state when the health check's settings change.

        Raises ConfigurationRejectedError.
        """
        last = self._loaded
        if last is not None and last.wanted == wanted and await _stamps(last.files) == self._stamps:
            return last
        loaded = await self._loader.load(wanted)
        if last is not None and (self.current is None or last is not self.current.loaded):
            _cancel(last)  # it never came into force
        self._loaded, self._stamps = loaded, await _stamps(loaded.files)
        return loaded

    @property
    def imported_files(self) -> frozenset[Path]:
        """Files of the customer's code that were imported last."""
        return self._loaded.files if self._loaded is not None else frozenset()

    def attach(self, core: FastAPI) -> None:
        """vLLM's own app, once the engine stands."""
        self._core = core

    def bind(self, loaded: LoadedHandlers) -> Generation:
        """Bind without swapping. Raises ConfigurationRejectedError."""
        if self.current is not None and self.current.loaded is loaded:
            return self.current
        if self._core is None:
            raise RuntimeError("no app to bind handlers to yet")
        return bind(self._core, loaded, self._failed, self._clock)

    def activate(self, generation: Generation) -> None:
        """From now on requests go to ``generation``; those in flight end where they began. Its script's
        default of the health check is in force with it.
        """
        if self.current is generation:
            return
        if self.current is not None:
            old, new = _digest(self.current), _digest(generation)
            logger.info("Handlers swapped: script %s -> %s", old or "none", new or "none")
        if self.current is None:
            self._watch_tasks(asyncio.get_running_loop())
        before, self.current = self.current, generation
        if before is not None:
            self._retire(before)
        CUSTOM_DEFAULT.set(generation.loaded.custom_default)
        self._last_error = None
        self._hanging = {}
        if generation.loaded.tasks is not None:
            generation.loaded.tasks.begin()
        self._changed()

    @property
    def app(self) -> FastAPI:
        """The app of the current generation."""
        if self.current is None:
            raise RuntimeError("no handlers are bound yet")
        return self.current.app

    def custom_endpoint(self, route: Route) -> HandlerEndpoint | None:
        """The custom handler's endpoint, None where vLLM's own answers."""
        return self.current.endpoints.get(route) if self.current is not None else None

    def blocking_frame(self) -> str:
        """``model.py line 12``, where the main thread is in the customer's code now; on any thread."""
        main = threading.main_thread().ident
        return self._line(sys._current_frames().get(main) if main is not None else None)

    def in_customer_code(self, frame: FrameType | None) -> bool:
        """Whether code of the handlers in force, or of those that were loaded last, is on the stack."""
        return bool(self._line(frame))

    def _line(self, frame: FrameType | None) -> str:
        files = self.imported_files | (self.current.loaded.files if self.current is not None else frozenset())
        while frame is not None:
            if Path(frame.f_code.co_filename) in files:
                return f"{Path(frame.f_code.co_filename).name} line {frame.f_lineno}"
            frame = frame.f_back
        return ""

    def differs(self, wanted: HandlerConfig) -> bool:
        """Whether other handlers are wanted than were loaded last. Reads files: not on the event loop."""
        last, stamps = self._loaded, self._stamps
        return last is None or last.wanted != wanted or _stamps_of(last.files) != stamps

    def give_up(self) -> None:
        """The handlers that were loaded last block the loop, and are about to be replaced; on any thread."""
        self._given_up = self._loaded

    @property
    def given_up(self) -> bool:
        """Whether no other handlers than those that were given up are loaded."""
        return self._given_up is not None and self._given_up is self._loaded

    def report(self) -> HandlersReport:
        generation = self.current
        if generation is None:
            return HandlersReport()
        handlers = generation.loaded.handlers
        return HandlersReport(
            script_digest=_digest(generation),
            ping=_handler_report(handlers.get(Route.PING)),
            invocations=_handler_report(handlers.get(Route.INVOCATIONS)),
            last_error=self._newest_error(generation),
        )

    def check_hanging(self) -> None:
        """Notice which of the current handlers hang; what still hangs in those swapped out is no news."""
        endpoints = self.current.endpoints if self.current is not None else {}
        found = {route: endpoint.hanging(HANG_SECONDS) for route, endpoint in endpoints.items()}
        hanging = {route: began for route, began in found.items() if began is not None}
        if hanging == self._hanging:
            return
        self._hanging = hanging
        for route in hanging:
            logger.warning("The handler of %s hangs", route)
        self._changed()

    def _newest_error(self, generation: Generation) -> HandlerError | None:
        """What was raised last, or what hangs: that is told for as long as it hangs."""
        errors = [self._last_error] if self._last_error is not None else []
        for route, began in self._hanging.items():
            name = generation.loaded.handlers[route].name
            said = (
                f"{name} has not returned from a request for more than {HANG_SECONDS:.0f} s; "
                "the server and the probes go on."
            )
            time = self._clock.wall_of(began + HANG_SECONDS).replace(microsecond=0)
            errors.append(HandlerError(route=route.value, message=said, time=time))
        return max(errors, key=lambda error: error.time, default=None)

    def _watch_tasks(self, loop: asyncio.AbstractEventLoop) -> None:
        """Report what is raised in tasks that handlers start and do not await."""
        before = loop.get_exception_handler()

        def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            self._failed_aside("task", context.get("exception"))
            if before is not None:
                before(loop, context)
            else:
                loop.default_exception_handler(context)

        loop.set_exception_handler(handle)

    def report_thread_errors(self) -> None:
        """Report what is raised in threads that handlers start; once in the process."""
        before = threading.excepthook

        def handle(args: threading.ExceptHookArgs) -> None:
            self._failed_aside("thread", args.exc_value)
            before(args)

        threading.excepthook = handle

    def _failed_aside(self, what: str, error: BaseException | None) -> None:
        """An error that no request raised: the handlers' where it comes from their code."""
        generation = self.current
        if error is None or generation is None:
            return
        where = failed_at(error, generation.loaded.wanted)
        if where:
            route = Route.PING if set(generation.endpoints) == {Route.PING} else Route.INVOCATIONS
            self._failed(route, f"A {what} of the handlers raised {type(error).__name__} at {where}.")

    def _failed(self, route: Route, sentence: str) -> None:
        now = self._clock.wall().replace(microsecond=0)
        self._last_error = HandlerError(route=route.value, message=sentence[:2048], time=now)
        self._changed()


def _cancel(loaded: LoadedHandlers) -> None:
    if loaded.tasks is not None:
        loaded.tasks.cancel()


async def _stamps(files: frozenset[Path]) -> tuple[object, ...]:
    return await run_blocking(_stamps_of, files)


def _stamps_of(files: frozenset[Path]) -> tuple[object, ...]:
    return tuple(file_fingerprint(path) for path in sorted(files))


def _digest(generation: Generation) -> str:
    script = generation.loaded.wanted.script
    return script.digest if script is not None else ""


def _handler_report(handler: Handler | None) -> HandlerReport:
    if handler is None:
        return HandlerReport(source=HandlerSource.DEFAULT)
    return HandlerReport(source=handler.source, handler=handler.name)
