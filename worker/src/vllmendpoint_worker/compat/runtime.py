"""Wraps Dynamo's runtime and endpoint in the classes of docs/guide/health-check-payloads.md, "Python".

Dynamo's classes cannot be subclassed. Each wrapper delegates other attributes to Dynamo's own object, which
is ``upstream``. Functions of Dynamo such as ``register_model`` need that object.
"""

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from . import _dynamo
from ._environment import dynamo_environment
from ._payloads import payload_to_send

__all__ = ["Component", "DistributedRuntime", "Endpoint", "Namespace"]

Handler = Callable[..., AsyncIterator[Any]]


class _Wrapper:
    upstream: Any

    def __getattr__(self, name: str) -> Any:
        if name == "upstream" or name.startswith("__"):  # not set yet, or requested by copy and pickle
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.upstream, name)

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} of {self.upstream!r}>"


class DistributedRuntime(_Wrapper):
    """Dynamo's runtime with the guide's ``from_settings()`` and ``namespace()``.

    The guide's environment variables are read when a runtime is created. Arguments and errors are those of
    ``dynamo.runtime.DistributedRuntime``. Raises HealthCheckRejectedError if ``DYN_HEALTH_CHECK_ENABLED`` or
    ``DYN_HEALTH_CHECK_INTERVAL`` is not valid.
    """

    def __init__(self, event_loop: Any, discovery_backend: str, request_plane: str, **options: Any) -> None:
        with dynamo_environment():
            self.upstream = _dynamo.DistributedRuntime(
                event_loop, discovery_backend, request_plane, **options
            )

    @classmethod
    async def from_settings(cls) -> "DistributedRuntime":
        """Create a runtime from the environment, with the defaults of Dynamo's command line.

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
        """``path``: ``namespace.component.endpoint``, as in Dynamo. Raises ValueError."""
        return Endpoint(self.upstream.endpoint(path), path)


class Namespace:
    """The result of ``runtime.namespace(name)``. It only has a name; Dynamo creates an endpoint."""

    def __init__(self, runtime: DistributedRuntime, name: str) -> None:
        self._runtime = runtime
        self.name = name

    def component(self, name: str) -> "Component":
        return Component(self._runtime, self, name)


class Component:
    """The result of ``namespace.component(name)``. It only has a name; Dynamo creates an endpoint."""

    def __init__(self, runtime: DistributedRuntime, namespace: Namespace, name: str) -> None:
        self._runtime = runtime
        self._namespace = namespace
        self.name = name

    def endpoint(self, name: str) -> "Endpoint":
        """Raises Dynamo's ValueError if one of the three names is not valid."""
        return self._runtime.endpoint(f"{self._namespace.name}.{self.name}.{name}")


class Endpoint(_Wrapper):
    """Dynamo's endpoint with the guide's health-check payloads."""

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
        """Serve until shutdown. Like Dynamo's method, it begins with the call, before it is awaited.

        ``handler``: an async generator function of the request, or of the request and Dynamo's context.
        ``health_check_payload`` has priority over every other level. Raises HealthCheckRejectedError, a
        ValueError, before the endpoint is served. To serve without health checks, call
        ``upstream.serve_endpoint``.
        """
        payload = payload_to_send(health_check_payload, self._path)
        served: Awaitable[None] = self.upstream.serve_endpoint(
            _with_named_context(handler), graceful_shutdown, metrics_labels, payload
        )
        return served


def _with_named_context(handler: Handler) -> Handler:
    """``handler`` with a parameter ``context``: Dynamo passes the context by this name, and only if it
    exists.
    """
    try:
        parameters = inspect.signature(handler).parameters.values()
    except (TypeError, ValueError):  # a built-in function without a signature
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
