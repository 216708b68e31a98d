"""The guide's ``DistributedRuntime`` and what hangs from it, around Dynamo's own objects.

Dynamo's classes cannot be subclassed. Each wrapper passes on what it does not have, and ``upstream`` is
Dynamo's own object, for functions of Dynamo that want one (``register_model``).
"""

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from . import _dynamo
from ._environment import dynamo_environment
from ._payloads import sent

__all__ = ["Component", "DistributedRuntime", "Endpoint", "Namespace"]

Handler = Callable[..., AsyncIterator[Any]]


class _Wrapper:
    upstream: Any

    def __getattr__(self, name: str) -> Any:
        if name == "upstream" or name.startswith("__"):  # not there yet, or asked for by copy and pickle
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.upstream, name)

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} of {self.upstream!r}>"


class DistributedRuntime(_Wrapper):
    """Dynamo's, with the guide's ``from_settings()`` and ``namespace()``.

    The guide's variables take effect when a runtime is made, in whatever form the guide's user gives them.
    Arguments and errors are those of ``dynamo.runtime.DistributedRuntime``; HealthCheckRejectedError where
    ``DYN_HEALTH_CHECK_ENABLED`` or ``DYN_HEALTH_CHECK_INTERVAL`` is malformed.
    """

    def __init__(self, event_loop: Any, discovery_backend: str, request_plane: str, **options: Any) -> None:
        with dynamo_environment():
            self.upstream = _dynamo.DistributedRuntime(
                event_loop, discovery_backend, request_plane, **options
            )

    @classmethod
    async def from_settings(cls) -> "DistributedRuntime":
        """From the environment, with the defaults of Dynamo's command line.

        ``DYN_DISCOVERY_BACKEND`` (etcd), ``DYN_REQUEST_PLANE`` (tcp), ``DYN_RESPONSE_PLANE`` (tcp),
        ``DYN_EVENT_PLANE`` (Dynamo's choice).
        """
        return cls(
            asyncio.get_running_loop(),
            os.environ.get("DYN_DISCOVERY_BACKEND") or "etcd",
            os.environ.get("DYN_REQUEST_PLANE") or "tcp",
            event_plane=os.environ.get("DYN_EVENT_PLANE") or None,
            response_plane=os.environ.get("DYN_RESPONSE_PLANE") or "tcp",
        )

    def namespace(self, name: str) -> "Namespace":
        return Namespace(self, name)

    def endpoint(self, path: str) -> "Endpoint":
        """``path``: ``namespace.component.endpoint``, as Dynamo takes it. Raises ValueError."""
        return Endpoint(self.upstream.endpoint(path), path)


class Namespace:
    """``runtime.namespace(name)``; only a name until there is an endpoint."""

    def __init__(self, runtime: DistributedRuntime, name: str) -> None:
        self._runtime = runtime
        self.name = name

    def component(self, name: str) -> "Component":
        return Component(self._runtime, self, name)


class Component:
    """``namespace.component(name)``; only a name until there is an endpoint."""

    def __init__(self, runtime: DistributedRuntime, namespace: Namespace, name: str) -> None:
        self._runtime = runtime
        self._namespace = namespace
        self.name = name

    def endpoint(self, name: str) -> "Endpoint":
        """Raises Dynamo's ValueError where one of the three names is none."""
        return self._runtime.endpoint(f"{self._namespace.name}.{self.name}.{name}")


class Endpoint(_Wrapper):
    """Dynamo's, with the guide's health-check payloads."""

    def __init__(self, upstream: Any, path: str) -> None:
        self.upstream = upstream
        self._path = path.removeprefix("dyn://")

    def serve_endpoint(
        self,
        handler: Handler,
        graceful_shutdown: bool = True,
        metrics_labels: list[tuple[str, str]] | None = None,
        health_check_payload: Any = None,
    ) -> Awaitable[None]:
        """Serve until shutdown; from the call on, as Dynamo's own.

        ``handler``: an async generator function of the request, or of the request and Dynamo's context.
        ``health_check_payload`` outranks every other level; without it they decide. Raises
        HealthCheckRejectedError, a ValueError, before anything is served. To serve without health checks,
        call ``upstream.serve_endpoint``.
        """
        payload = sent(health_check_payload, self._path)
        served: Awaitable[None] = self.upstream.serve_endpoint(
            _callable(handler), graceful_shutdown, metrics_labels, payload
        )
        return served


def _callable(handler: Handler) -> Handler:
    """Dynamo passes the context by the name ``context``, and only where the handler has that name."""
    try:
        parameters = inspect.signature(handler).parameters.values()
    except (TypeError, ValueError):  # a builtin that does not say
        return handler
    positional = [
        parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    named = any(p.name == "context" and p.kind is not p.POSITIONAL_ONLY for p in parameters)
    if named or len(positional) != 2:
        return handler

    def with_context(request: Any, context: Any) -> AsyncIterator[Any]:
        return handler(request, context)

    return with_context
