"""The SageMaker port: vLLM's own app (``/ping``, ``/invocations``, ``/v1/...``) over Dynamo's engine client.

A middleware in front of it serves nothing over a dead engine, and answers vLLM's own health checks
(``/ping``, ``/health``) with 503 over a stalled engine, which vLLM does not detect.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, MutableMapping, Sequence
from typing import Any, Final

import uvicorn

from vllmendpoint_api import Verdict
from vllmendpoint_worker.errors import EngineStartError
from vllmendpoint_worker.process.listening import listeners
from vllmendpoint_worker.upstream import HttpApp, NoSignalServer

__all__ = ["HttpServer", "ReadinessMiddleware", "bind_port"]

logger = logging.getLogger(__name__)

START_SECONDS: Final = 20.0
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Coroutine[Any, Any, None]]


class ReadinessMiddleware:
    """The ASGI app in front of vLLM's app and the user's middleware, which may answer health checks too.

    ``is_healthy``: whether a health check succeeds. ``is_health_check``: whether a request is a health check.
    ``verdict``: the current verdict.
    """

    def __init__(
        self,
        app: App,
        *,
        is_healthy: Callable[[], bool],
        is_health_check: Callable[[Scope], bool],
        verdict: Callable[[], Verdict],
    ) -> None:
        self._app = app
        self._is_healthy = is_healthy
        self._is_health_check = is_health_check
        self._verdict = verdict

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        verdict = self._verdict()
        if verdict is Verdict.DEAD or (
            scope["type"] == "http" and not self._is_healthy() and self._is_health_check(scope)
        ):
            await _refuse(scope["type"], send, f'{{"error": "the worker\'s verdict is {verdict.value}"}}')
            return
        await self._app(scope, receive, send)


async def _refuse(kind: str, send: Any, body: str) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1013})  # before it is accepted: the client gets a 403
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})


def bind_port(host: str, port: int) -> list[socket.socket]:
    """Sockets that do not listen yet. Binding them early reports a port that is in use before the load.

    ``host``: as for :func:`listeners`. Raises EngineStartError.
    """
    try:
        return listeners(host, port)
    except OSError as error:
        raise EngineStartError(f"port {port} cannot be bound: {error.strerror}") from error


class HttpServer:
    """A uvicorn server on the running loop, without signal handlers. Owns the task that ``start`` creates."""

    def __init__(
        self, http: HttpApp, middleware: ReadinessMiddleware, listeners: Sequence[socket.socket]
    ) -> None:
        config = uvicorn.Config(
            middleware, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=20
        )
        config.h11_max_incomplete_event_size = http.max_event_bytes
        self._server = NoSignalServer(config)
        http.app.state.server = self._server  # vLLM stops it if the engine dies during a stream
        self._listeners = listeners
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when the port answers."""
        self._task = asyncio.create_task(self._server.serve(sockets=list(self._listeners)), name="http")
        async with asyncio.timeout(START_SECONDS):
            while not self._server.started:
                if self._task.done():
                    raise EngineStartError("the HTTP server stopped while it started")
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Wait for the requests in flight, at most 20 s, then close."""
        if self._task is None:
            return
        self._server.should_exit = True
        done, _ = await asyncio.wait({self._task}, timeout=25.0)
        if not done:
            logger.warning("The HTTP server did not stop in time and is aborted")
            await self.abort()

    async def abort(self) -> None:
        """Stop without waiting for requests in flight. No effect after :meth:`stop`."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1.0)
