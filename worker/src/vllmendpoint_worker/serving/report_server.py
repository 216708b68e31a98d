"""The report port: a small HTTP/1.1 server on a thread and an event loop of its own.

It answers before the heavy imports, and while the main loop loads the engine, stalls or is blocked. Each
connection serves one request. The number of clients, the size of a request and every wait are bounded; a
client that reads too slowly is disconnected. Addresses share the places for clients equally.

=======================  ======================================================================
``GET /status``          the report (JSON); with ``?watch=true`` one line immediately, at every
                         change, and every 5 s, until the client disconnects
``GET /ready``           200, or 503 with the reason on one line
``GET /started``         200 when the program serves, or the worker has rejected its configuration
``GET /live``            200 while the process runs
``POST /probe``          run a probe and answer its outcome
``GET /metrics``         Prometheus text
=======================  ======================================================================

h11 parses the requests; its import takes 13 ms. uvicorn does not fit: it has no timeout for reading a request
or for writing a response, and its import takes 80 ms.
"""

import asyncio
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, Protocol
from urllib.parse import parse_qs

import h11

from vllmendpoint_api import Contract, Stage, names
from vllmendpoint_worker.errors import ProbeUnavailableError
from vllmendpoint_worker.process.launch import ENV_REPORT_HOST, port_from_environment
from vllmendpoint_worker.process.listening import listeners
from vllmendpoint_worker.process.shutdown import EXIT_FAILURE, terminate

__all__ = ["HEARTBEAT_SECONDS", "ReportServer", "ReportedState", "start_report_server"]

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


class ReportedState(Protocol):
    """The state of a worker or of a frontend. Its methods are called on the server's thread."""

    @property
    def stage(self) -> Stage: ...

    @property
    def started(self) -> bool: ...

    @property
    def probe_timeout(self) -> float:
        """Longest probe in seconds."""
        ...

    def subscribe(self, callback: Callable[[], None]) -> None: ...

    def blocked_for(self) -> float: ...

    def readiness(self) -> tuple[bool, str]: ...

    def report(self) -> Contract: ...


class ReportServer:
    """Serves ``state`` on ``host:port`` (0: any free port) from a daemon thread.

    Three callbacks may be set after the start; all are called on this server's thread. ``probe`` starts a
    probe for ``POST /probe`` and returns a future of the outcome as JSON. ``metrics`` returns Prometheus
    text. ``on_blocked`` receives, once per second while the main loop is blocked, for how long in seconds.
    """

    def __init__(self, state: ReportedState, host: str, port: int) -> None:
        self._state = state
        self._host = host
        self._port = port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="report-server", daemon=True)
        self._started = threading.Event()
        self._bind_error: OSError | None = None
        self._stop: asyncio.Event | None = None
        self._changed = asyncio.Event()
        self._clients: set[asyncio.Task[None]] = set()
        self._places: dict[asyncio.Task[None], str] = {}
        """Address of each served client, the oldest first."""
        self.probe: Callable[[], Future[dict[str, Any]]] | None = None
        self.metrics: Callable[[], bytes] | None = None
        self.on_blocked: Callable[[float], None] | None = None

    @property
    def port(self) -> int:
        """The port in use, once started."""
        return self._port

    def start(self, timeout: float = 10.0) -> None:
        """Start, and return when the port answers. Raises OSError if it cannot be bound."""
        self._thread.start()
        if not self._started.wait(timeout):
            raise TimeoutError("the report server did not start")
        if self._bind_error is not None:
            raise self._bind_error

    def stop(self, timeout: float = 5.0) -> None:
        """Close the port and end the thread. No effect if the server never started."""
        if self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # the loop is already closed
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._bind_error = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        servers = [
            await asyncio.start_server(self._accept, sock=listener, limit=MAX_HEAD_BYTES)
            for listener in listeners(self._host, self._port)
        ]
        self._port = servers[0].sockets[0].getsockname()[1]
        self._state.subscribe(self._on_change)
        watching = asyncio.create_task(self._watch_main_loop(), name="main-loop-watch")
        self._started.set()
        try:
            await self._stop.wait()
        finally:
            for server in servers:
                server.close()
            tasks = [watching, *self._clients]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _on_change(self) -> None:
        """Called from any thread when the state changed."""
        if self._loop is not None and not self._loop.is_closed():
            with suppress(RuntimeError):  # the loop was closed in between
                self._loop.call_soon_threadsafe(self._wake_watchers)

    def _wake_watchers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _watch_main_loop(self) -> None:
        was_blocked = False
        while True:
            await asyncio.sleep(1.0)
            seconds = self._state.blocked_for()
            if bool(seconds) != was_blocked:
                was_blocked = bool(seconds)
                self._wake_watchers()
            if seconds and self.on_blocked is not None:
                self.on_blocked(seconds)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = str((writer.get_extra_info("peername") or ("",))[0])
        if not self._has_place(address):
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve_client(reader, writer))
        self._clients.add(task)
        self._places[task] = address
        task.add_done_callback(self._clients.discard)
        task.add_done_callback(lambda done: self._places.pop(done, None))

    def _has_place(self, address: str) -> bool:
        """Whether a client of this address is served.

        If all places are taken, it replaces the oldest client of the address with the most clients, unless
        its own address would then have the most. So one address cannot exclude the kubelet or the operator.
        """
        if len(self._places) < MAX_CLIENTS:
            return True
        counts = Counter(self._places.values())
        largest, count = counts.most_common(1)[0]
        if counts[address] + 1 >= count:
            return False
        oldest = next(task for task, holder in self._places.items() if holder == largest)
        del self._places[oldest]
        oldest.cancel()
        return True

    async def _serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    request = await _read_request(reader)
            except h11.RemoteProtocolError as error:
                await _respond(writer, error.error_status_hint, f"{error}\n")
            else:
                await self._route(request, writer)
        except (ConnectionError, TimeoutError):
            logger.debug("A client of the report port disconnected or was too slow")
        finally:
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            writer.close()
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()

    async def _route(self, request: h11.Request, writer: asyncio.StreamWriter) -> None:
        path, _, query = request.target.decode().partition("?")
        allowed = "POST" if path == "/probe" else "GET"
        match path:
            case "/status" | "/ready" | "/started" | "/live" | "/metrics" | "/probe" if (
                request.method.decode() != allowed
            ):
                await _respond(writer, 405, f"use {allowed}\n")
            case "/status" if parse_qs(query).get("watch", [""])[-1].lower() in ("true", "1"):
                await self._stream_reports(writer)
            case "/status":
                await _respond(writer, 200, self._report(), "application/json")
            case "/ready":
                ready, reason = self._state.readiness()
                await _respond(writer, 200 if ready else 503, "ready\n" if ready else f"{reason}\n")
            case "/started":
                started = self._state.started
                stage = f"stage {self._state.stage}\n"
                await _respond(writer, 200 if started else 503, "started\n" if started else stage)
            case "/live":
                await _respond(writer, 200, "live\n")
            case "/metrics":
                text = self.metrics().decode() if self.metrics is not None else ""
                await _respond(writer, 200, text, "text/plain; version=0.0.4; charset=utf-8")
            case "/probe":
                await self._run_probe(writer)
            case _:
                await _respond(writer, 404, "not found\n")

    async def _run_probe(self, writer: asyncio.StreamWriter) -> None:
        if self.probe is None:
            await _respond(writer, 503, "no probe can run yet\n")
            return
        timeout = 2 * self._state.probe_timeout + PROBE_SLACK_SECONDS
        try:
            async with asyncio.timeout(timeout):
                outcome = await asyncio.wrap_future(self.probe())
        except TimeoutError:
            await _respond(writer, 504, "the probe did not end in time\n")
        except ProbeUnavailableError as error:
            await _respond(writer, 503, f"{error}\n")
        else:
            await _respond(writer, 200, json.dumps(outcome), "application/json")

    async def _stream_reports(self, writer: asyncio.StreamWriter) -> None:
        """Send the report immediately, at every change and as a heartbeat, until the client disconnects."""
        writer.transport.set_write_buffer_limits(high=WATCH_BUFFER_BYTES)
        _write_head(writer, 200, "Content-Type: application/x-ndjson", "Cache-Control: no-store")
        while True:
            changed = self._changed
            writer.write(self._report().encode() + b"\n")
            async with asyncio.timeout(WRITE_SECONDS):
                await writer.drain()
            if writer.transport.get_write_buffer_size() > WATCH_BUFFER_BYTES or writer.transport.is_closing():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await changed.wait()

    def _report(self) -> str:
        return json.dumps(self._state.report().wire(), separators=(",", ":"))


def start_report_server(state: ReportedState) -> ReportServer:
    """Start the server on the address and port of the environment. Exits the process if it cannot."""
    port = port_from_environment(names.ENV_REPORT_PORT, names.REPORT_PORT)
    server = ReportServer(state, os.environ.get(ENV_REPORT_HOST, ""), port)
    try:
        server.start()
    except OSError as error:
        terminate(EXIT_FAILURE, f"The report port cannot be bound: {error.strerror}.")
    logger.info("The report port answers: port=%d", server.port)
    return server


async def _read_request(reader: asyncio.StreamReader) -> h11.Request:
    """Read one request; its body is discarded. Raises h11.RemoteProtocolError, ConnectionError."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    declared = received = 0
    while True:
        match event := connection.next_event():
            case h11.Request():
                request = event
                declared = int(dict(event.headers).get(b"content-length", 0))
            case h11.Data():
                received += len(event.data)
            case h11.EndOfMessage():
                return request
            case h11.ConnectionClosed():
                raise ConnectionResetError
            case _:
                connection.receive_data(await reader.read(MAX_HEAD_BYTES))
        if max(declared, received) > MAX_BODY_BYTES:
            raise h11.RemoteProtocolError("the request's body is too large", error_status_hint=413)


async def _respond(
    writer: asyncio.StreamWriter, status: int, body: str, content_type: str = "text/plain; charset=utf-8"
) -> None:
    content = body.encode()
    _write_head(writer, status, f"Content-Type: {content_type}", f"Content-Length: {len(content)}")
    writer.write(content)
    async with asyncio.timeout(WRITE_SECONDS):
        await writer.drain()


def _write_head(writer: asyncio.StreamWriter, status: int, *headers: str) -> None:
    """The connection closes after the response, so a response may have no length."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *headers, "Connection: close", "", ""]
    writer.write("\r\n".join(lines).encode())
