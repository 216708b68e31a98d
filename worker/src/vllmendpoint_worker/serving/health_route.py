"""The health checks of the SageMaker port, and whether a request reaches one of them or the engine.

The router decides, not the text of the path: a root path, percent-encoding and trailing slashes lead to the
same route.
"""

import functools
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Match

__all__ = ["HealthRoute", "SlashRoute", "guarded", "needs_engine", "reaches_health"]

Scope = MutableMapping[str, Any]

WITHOUT_ENGINE: Final = frozenset({"/ping", "/tokenize", "/detokenize"})
"""Routes with the method POST whose answers do not depend on the engine."""


class SlashRoute(APIRoute):  # type: ignore[misc]  # mypy does not follow FastAPI
    """A route that also answers paths with trailing slashes.

    Starlette redirects them (307), and most load balancers count a redirect as a success.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/")}
        result: tuple[Match, Scope] = super().matches(scope)
        return result


class HealthRoute(SlashRoute):
    """One of vLLM's own health checks, which do not detect a stalled engine."""

    def is_of(self, function: Callable[..., Any]) -> bool:
        """Whether ``function`` is vLLM's function behind this route."""
        return getattr(self.endpoint, "__wrapped__", None) is function


def guarded(route: APIRoute, is_healthy: Callable[[], bool]) -> HealthRoute:
    """``route`` that answers 503 while ``is_healthy`` is false."""
    answer: Callable[[Request], Awaitable[Response]] = route.endpoint

    @functools.wraps(answer)
    async def endpoint(raw_request: Request) -> Response:
        return await answer(raw_request) if is_healthy() else Response(status_code=503)

    return HealthRoute(
        route.path,
        endpoint,
        methods=route.methods,
        response_class=route.response_class,
        name=route.name,
        include_in_schema=route.include_in_schema,
    )


def reaches_health(app: FastAPI, scope: Scope) -> bool:
    """Whether one of vLLM's own health checks answers the request, as Starlette's router decides it."""
    return isinstance(_route(app, scope), HealthRoute)


def needs_engine(app: FastAPI, scope: Scope) -> bool:
    """Whether a request with the method POST needs the engine."""
    return getattr(_route(app, scope), "path", None) not in WITHOUT_ENGINE


def _route(app: FastAPI, scope: Scope) -> Any:
    """The route that answers the request; None if there is none."""
    routed = {**scope, "root_path": app.root_path or scope.get("root_path", "")}
    return next((route for route in app.router.routes if route.matches(routed)[0] is Match.FULL), None)
