"""The report port: a tiny HTTP/1.1 server on a thread and an event loop of its own.

It is up before the heavy imports and answers while the main loop loads the engine, stalls or is blocked, so
it uses nothing but the standard library and the state. One request a connection; clients, request size and
every wait are bounded; a client that reads too slowly is dropped.

=======================  ======================================================================
``GET /status``          the report (JSON); with ``?watch=true`` a line at once, at every change,
                         and every 5 s, until the client goes
``GET /ready``           200, or 503 with one line that says why not
``GET /started``         200 once the worker serves or has refused its configuration
``GET /live``            200: the process lives
``POST /probe``          probe now; answers the outcome
``GET /metrics``         Prometheus text
=======================  ======================================================================
"""

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from vllmendpoint_worker.errors import ProbeUnavailableError, WorkerError
from vllmendpoint_worker.process.listening import listeners

from .state import WorkerState

__all__ = ["HEARTBEAT_SECONDS", "ReportServer"]

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS: Final = 5.0
MAX_CLIENTS: Final = 64
MAX_HEAD_BYTES: Final = 8192
MAX_BODY_BYTES: Final = 4096
REQUEST_SECONDS: Final = 5.0
WRITE_SECONDS: Final = 5.0
WATCH_BUFFER_BYTES: Final = 256 * 1024
PROBE_SLACK_SECONDS: Final = 15.0
"""``POST /probe`` waits for the probe in flight and its own, each at most its timeout, and this."""

_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


class _BadRequest(WorkerError):
    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class ReportServer:
    """Serves ``state`` on ``host:port`` (0 = any) from a daemon thread.

    ``probe`` is called for ``POST /probe`` on this server's thread and returns a future of the outcome's JSON
    form; ``metrics`` returns Prometheus text; ``blocked`` is told, once a second, for how long the main loop
    has been blocked. All three may be set after the start.
    """

    def __init__(self, state: WorkerState, host: str, port: int) -> None:
        self._state = state
        self._host = host
        self._port = port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="report-server", daemon=True)
        self._up = threading.Event()
        self._failed: OSError | None = None
        self._stop: asyncio.Event | None = None
        self._changed = asyncio.Event()
        self._clients: set[asyncio.Task[None]] = set()
        self.probe: Callable[[], Future[dict[str, Any]]] | None = None
        self.metrics: Callable[[], bytes] | None = None
        self.blocked: Callable[[float], None] | None = None

    @property
    def port(self) -> int:
        """The port in use, once started."""
        return self._port

    def start(self, timeout: float = 10.0) -> None:
        """Start and wait until the port answers. Raises OSError where it cannot be bound."""
        self._thread.start()
        if not self._up.wait(timeout):
            raise TimeoutError("the report server did not start")
        if self._failed is not None:
            raise self._failed

    def stop(self, timeout: float = 5.0) -> None:
        """Close the port and end the thread; harmless where it never started."""
        if self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # the loop has closed already
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._failed = error
        finally:
            self._up.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        servers = [
            await asyncio.start_server(self._accept, sock=listener, limit=MAX_HEAD_BYTES)
            for listener in listeners(self._host, self._port)
        ]
        self._port = servers[0].sockets[0].getsockname()[1]
        self._state.subscribe(self._notify)
        watching = asyncio.create_task(self._watch_main_loop(), name="main-loop-watch")
        self._up.set()
        try:
            await self._stop.wait()
        finally:
            for server in servers:
                server.close()
            tasks = [watching, *self._clients]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _notify(self) -> None:
        """Called from any thread when the state changed."""
        if self._loop is not None and not self._loop.is_closed():
            with suppress(RuntimeError):  # it closed in between
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _watch_main_loop(self) -> None:
        was_blocked = False
        while True:
            await asyncio.sleep(1.0)
            seconds = self._state.blocked_for()
            if bool(seconds) != was_blocked:
                was_blocked = bool(seconds)
                self._wake()
            if seconds and self.blocked is not None:
                self.blocked(seconds)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._client(reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    method, target = await _request(reader)
            except _BadRequest as error:
                await self._answer(writer, error.status, str(error))
                return
            await self._route(method, target, writer)
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            logger.debug("A client of the report port went away or was too slow")
        finally:
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            writer.close()
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()

    async def _route(self, method: str, target: str, writer: asyncio.StreamWriter) -> None:
        url = urlsplit(target)
        allowed = "POST" if url.path == "/probe" else "GET"
        if url.path not in ("/status", "/ready", "/started", "/live", "/probe", "/metrics"):
            await self._answer(writer, 404, "not found")
        elif method != allowed:
            await self._answer(writer, 405, f"use {allowed}")
        elif url.path == "/status" and parse_qs(url.query).get("watch", [""])[-1].lower() in ("true", "1"):
            await self._watch(writer)
        elif url.path == "/status":
            await self._answer(writer, 200, self._line(), "application/json")
        elif url.path == "/ready":
            ready, why = self._state.readiness()
            await self._answer(writer, 200 if ready else 503, "ready" if ready else why)
        elif url.path == "/started":
            started = self._state.snapshot.started
            stage = self._state.snapshot.stage.name
            await self._answer(writer, 200 if started else 503, "started" if started else f"stage {stage}")
        elif url.path == "/live":
            await self._answer(writer, 200, "live")
        elif url.path == "/metrics":
            text = self.metrics() if self.metrics is not None else b""
            await self._answer(writer, 200, text, "text/plain; version=0.0.4; charset=utf-8")
        else:
            await self._probe(writer)

    async def _probe(self, writer: asyncio.StreamWriter) -> None:
        if self.probe is None:
            await self._answer(writer, 503, "the worker does not serve yet")
            return
        health_check = self._state.snapshot.health_check
        bound = 2 * (health_check.timeout_seconds if health_check else 5.0) + PROBE_SLACK_SECONDS
        try:
            async with asyncio.timeout(bound):
                outcome = await asyncio.wrap_future(self.probe())
        except TimeoutError:
            await self._answer(writer, 504, "the probe did not end in time")
        except ProbeUnavailableError as error:
            await self._answer(writer, 503, str(error))
        else:
            await self._answer(writer, 200, json.dumps(outcome), "application/json")

    async def _watch(self, writer: asyncio.StreamWriter) -> None:
        """The report at once, at every change, and as a heartbeat. Ends with the client."""
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nCache-Control: no-store\r\n"
        writer.transport.set_write_buffer_limits(high=WATCH_BUFFER_BYTES)
        writer.write(f"{head}Connection: close\r\n\r\n".encode())
        while True:
            changed = self._changed
            writer.write(self._line().encode() + b"\n")
            async with asyncio.timeout(WRITE_SECONDS):
                await writer.drain()
            if writer.transport.get_write_buffer_size() > WATCH_BUFFER_BYTES or writer.transport.is_closing():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await changed.wait()

    def _line(self) -> str:
        return json.dumps(self._state.report().wire(), separators=(",", ":"))

    async def _answer(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        body: str | bytes,
        kind: str = "text/plain; charset=utf-8",
    ) -> None:
        content = body.encode() if isinstance(body, str) else body
        if kind.startswith("text/plain") and isinstance(body, str):
            content += b"\n"
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + content)
        async with asyncio.timeout(WRITE_SECONDS):
            await writer.drain()


async def _request(reader: asyncio.StreamReader) -> tuple[str, str]:
    """Method and target; the body, if any, is read and thrown away."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise _BadRequest(413, "the request's head is too large") from None
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[1].startswith("/") or not words[2].startswith("HTTP/1."):
        raise _BadRequest(400, "not an HTTP/1.1 request")
    length = 0
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "transfer-encoding":
            raise _BadRequest(400, "send a body with Content-Length")
        if name.strip().lower() == "content-length":
            if not value.strip().isdecimal():
                raise _BadRequest(400, "Content-Length is not a number")
            length = int(value)
    if length > MAX_BODY_BYTES:
        raise _BadRequest(413, "the request's body is too large")
    if length:
        await reader.readexactly(length)
    return words[0], words[1]
