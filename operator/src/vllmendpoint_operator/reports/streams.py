"""Keeps one stream open to each worker and frontend pod, and the newest report of each.

ReportStreams are untrusted input, because customer code runs in the worker pods:

- Only pods whose chain of controllers leads to an endpoint become targets.
- Lines are limited in size and rate, and the schema validates enums and lengths.
- Control characters are removed.
- A report must carry the UID of the pod that it came from.

1,000 streams take 18 MB (measured by ``tests/bench/test_report_streams.py``).
"""

import asyncio
import logging
import random
import re
from collections.abc import Callable, Collection
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import ValidationError

from vllmendpoint_api import FrontendReport, WorkerReport, names
from vllmendpoint_operator.cache.compression import ObjectCompressor

from .state import ReportTarget, StreamState

__all__ = ["ReportStreams"]

log = logging.getLogger(__name__)

MAX_REPORT_BYTES: Final = 128 * 1024
REPORT_TIMEOUT_SECONDS: Final = 15.0
"""A pod sends a report at least every 5 s; after three missing ones the stream is closed."""
MAX_REPORTS_PER_SECOND: Final = 50
"""Each report costs the operator CPU and possibly a status write."""
FIRST_REPORT_SECONDS: Final = 0.5
"""How long a reconcile waits for the first report of a new stream, which usually takes milliseconds."""
SILENCE_SECONDS: Final = 7.0
"""One missing heartbeat. The stream is closed after three."""
CONNECTING_GRACE_SECONDS: Final = 10.0
"""How long a pod may be without a stream before it counts as unreachable."""
_PATH: Final = "/status?watch=true"
_CONNECT_TIMEOUT_SECONDS: Final = 5.0
_FIRST_RETRY_SECONDS: Final = 0.5
_MAX_RETRY_SECONDS: Final = 5.0
_NO_ESCAPES = re.compile(rb"[^\\\x7f-\xff]*")
"""JSON text of these bytes has no control characters in its strings: JSON forbids raw ones, and an escaped
one needs a backslash."""
_VOLATILE_FIELDS = re.compile(
    rb'"(?:time|lastProofOfLife|lastAnswer)":\s*"[-+.:TZ\d]{20,35}"|"latencyMilliseconds":\s*[\d.]+|"tokens":\s*\d+'
)
"""Fields that differ in every report: times, and the figures of probes. They do not cause a reconcile."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(slots=True, eq=False)
class _Stream:
    """One pod's stream. The compressed report takes a thirtieth of the memory of its model."""

    target: ReportTarget
    disconnected_at: float
    """Time of the loop's clock at which the stream ended; before the first report, at which it was added."""
    retry_delay: float
    """Maximum seconds until the next attempt to connect."""
    task: asyncio.Task[None] | None = None
    partial_line: bytes = b""
    rate_window_start: float = 0.0
    reports_in_window: int = 0
    compressed_report: bytes = b""
    """The newest line."""
    stable_digest: int = 0
    """Hash of the newest line without its volatile fields."""
    urgency_key: tuple[object, ...] = ()
    """The fields of the newest report whose change is urgent."""
    received_at: float = 0.0
    """Time of the loop's clock at which the newest report arrived."""
    connected: bool = False
    grace_expired: bool = False
    error: str = ""


class ReportStreams:
    """The streams of all endpoints' pods.

    Args:
        on_change: called with the (namespace, name) of an endpoint when a report of one of its pods changes,
            or when a pod becomes unreachable. The second argument is True if users wait for the change, or
            lose requests until it is handled.
        port: the port on which pods serve reports.
    """

    def __init__(
        self, on_change: Callable[[tuple[str, str], bool], None], *, port: int = names.REPORT_PORT
    ) -> None:
        self._on_change = on_change
        self._port = port
        self._streams: dict[tuple[str, str], tuple[_Stream, ...]] = {}
        """Endpoint -> its streams."""
        self._compressor = ObjectCompressor()
        self._session: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = copy_context()
        """Context of all streams: their log lines must not carry the id of the reconcile that opened them."""

    async def __aenter__(self) -> "ReportStreams":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_SECONDS),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        for owner in list(self._streams):
            self.sync_targets(owner, ())
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    def state(self, owner: tuple[str, str], uid: str) -> StreamState:
        """Return the state of the stream to the pod ``uid`` of the endpoint ``owner``."""
        stream = next((held for held in self._streams.get(owner, ()) if held.target.uid == uid), None)
        if stream is None:
            return StreamState()
        try:
            line = self._compressor.decompress(stream.compressed_report) if stream.compressed_report else b""
            worker = parse(line, uid) if line and not stream.target.is_frontend else None
            frontend = parse_frontend(line, uid) if line and stream.target.is_frontend else None
        except ValueError as malformed:  # in a volatile field, which _on_report does not parse
            return StreamState(None, False, stream.grace_expired, str(malformed))
        silence = asyncio.get_running_loop().time() - stream.received_at
        silent = stream.connected and silence >= SILENCE_SECONDS
        return StreamState(worker, stream.connected, stream.grace_expired, stream.error, frontend, silent)

    def sync_targets(self, owner: tuple[str, str], targets: Collection[ReportTarget]) -> bool:
        """Open and close streams until the endpoint has exactly these; existing ones continue.

        Returns True while the first report of a new stream may arrive within FIRST_REPORT_SECONDS.
        """
        now = asyncio.get_running_loop().time()
        current = {stream.target: stream for stream in self._streams.pop(owner, ())}
        new = [_Stream(target, now, _FIRST_RETRY_SECONDS) for target in targets if target not in current]
        kept = [stream for target, stream in current.items() if target in targets]
        for stream in current.values():
            if stream.target not in targets and stream.task is not None:
                stream.task.cancel()
        if kept or new:
            self._streams[owner] = (*kept, *new)
        for stream in new:
            task = asyncio.create_task(self._run(stream), name="report-stream", context=self._context)
            stream.task = task
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        # Do not wait for workers that keep disconnecting.
        return any(
            not (stream.grace_expired or stream.compressed_report)
            and now - stream.disconnected_at < FIRST_REPORT_SECONDS
            for stream in (*kept, *new)
        )

    async def _run(self, stream: _Stream) -> None:
        """Keep the stream open until the task is cancelled."""
        while True:
            failure: Exception | None = None
            try:
                await self._read(stream)
            except (OSError, ValueError) as error:  # OSError includes timeouts
                failure = error
            except Exception:
                log.exception("defect of the operator: the stream is closed and opened again")
                failure = ValueError("the operator cannot process the report; its log contains the error")
            self._on_end(stream, failure)
            await asyncio.sleep(random.uniform(stream.retry_delay / 2, stream.retry_delay))
            stream.retry_delay = min(stream.retry_delay * 2, _MAX_RETRY_SECONDS)

    async def _read(self, stream: _Stream) -> None:
        """Connect and process reports until the pod closes the stream.

        Raises OSError, TimeoutError or ValueError. The messages do not quote what the pod sent.
        """
        assert self._session is not None
        address = stream.target.address
        url = f"http://{f'[{address}]' if ':' in address else address}:{self._port}{_PATH}"
        stream.partial_line, stream.reports_in_window = b"", 0
        clock = asyncio.get_running_loop().time
        try:
            async with (
                asyncio.timeout(REPORT_TIMEOUT_SECONDS) as deadline,
                self._session.get(url, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    raise ValueError(f"HTTP {response.status}")
                async for data in response.content.iter_any():
                    if self._on_data(stream, data):
                        deadline.reschedule(clock() + REPORT_TIMEOUT_SECONDS)
                    del data  # otherwise every stream keeps its last chunk
        except aiohttp.ConnectionTimeoutError:
            raise TimeoutError(f"no connection within {_CONNECT_TIMEOUT_SECONDS:g} s") from None
        except TimeoutError:
            raise TimeoutError(f"no report within {REPORT_TIMEOUT_SECONDS:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise error.os_error from None
        except (aiohttp.ClientError, HttpProcessingError):
            raise ValueError("the response is malformed or incomplete") from None

    def _on_end(self, stream: _Stream, failure: Exception | None) -> None:
        """Record that the stream ended, or could not be opened, and why. None: the pod closed it."""
        target, now = stream.target, asyncio.get_running_loop().time()
        error = f"the {'frontend' if target.is_frontend else 'worker'} closed the stream"
        if failure is not None:
            error = _clean(f"{type(failure).__name__}: {failure}".rstrip(": "))
        was_connected, had_expired = stream.connected, stream.grace_expired
        if was_connected:
            log.info("report stream disconnected", extra={"pod_uid": target.uid, "error": error})
            stream.disconnected_at = now
        if was_connected or failure is None:
            stream.retry_delay = _FIRST_RETRY_SECONDS
        expired = now - stream.disconnected_at >= CONNECTING_GRACE_SECONDS
        stream.connected, stream.grace_expired, stream.error = False, expired, error[:300]
        stream.partial_line = b""
        if expired and (was_connected or not had_expired):
            self._on_change(target.owner, True)

    def _on_data(self, stream: _Stream, data: bytes) -> bool:
        """Process the complete lines; return whether one of them is a report.

        Raises ValueError if it is not a stream of reports.
        """
        now = asyncio.get_running_loop().time()
        if now - stream.rate_window_start >= 1:
            stream.rate_window_start, stream.reports_in_window = now, 0
        *lines, stream.partial_line = (stream.partial_line + data).split(b"\n")
        if any(len(line) > MAX_REPORT_BYTES for line in (*lines, stream.partial_line)):
            raise ValueError(f"a report is larger than {MAX_REPORT_BYTES} bytes")
        received = False
        for line in lines:
            stream.reports_in_window += 1
            if stream.reports_in_window > MAX_REPORTS_PER_SECOND:
                raise ValueError(f"more than {MAX_REPORTS_PER_SECOND} reports per second")
            if line.strip():
                self._on_report(stream, line)
                stream.received_at = now
                received = True
        return received

    def _on_report(self, stream: _Stream, line: bytes) -> None:
        digest = hash(_VOLATILE_FIELDS.sub(b"", line))
        if stream.connected and digest == stream.stable_digest:
            stream.compressed_report = self._compressor.compress(line, "")
            return
        target = stream.target
        if target.is_frontend:
            urgency_key = _frontend_urgency_key(parse_frontend(line, target.uid))
        else:
            urgency_key = _urgency_key(parse(line, target.uid))
        urgent = not stream.connected or urgency_key != stream.urgency_key
        stream.compressed_report = self._compressor.compress(line, "")
        stream.stable_digest, stream.urgency_key = digest, urgency_key
        stream.connected, stream.grace_expired, stream.error = True, True, ""
        self._on_change(stream.target.owner, urgent)


def parse(line: bytes, pod_uid: str) -> WorkerReport:
    """Parse one line of a worker's stream.

    Raises ValueError for a malformed report, and for the report of another pod. The message does not quote
    the input.
    """
    return _parse(WorkerReport, line, pod_uid)


def parse_frontend(line: bytes, pod_uid: str) -> FrontendReport:
    """Parse one line of a frontend's stream. Raises ValueError as :func:`parse` does."""
    return _parse(FrontendReport, line, pod_uid)


_AnyReport = TypeVar("_AnyReport", WorkerReport, FrontendReport)


def _parse(model: type[_AnyReport], line: bytes, pod_uid: str) -> _AnyReport:
    try:
        report = model.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the report"
        raise ValueError(_clean(f"malformed report: {where}: {first['type']}")) from None
    except RecursionError:
        raise ValueError("malformed report: nested too deeply") from None
    if report.pod_uid != pod_uid:
        raise ValueError("the report is of another pod")
    if _NO_ESCAPES.fullmatch(line):
        return report
    return model.model_validate(_cleaned(report.model_dump()))


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, dict):
        return {_clean(str(key)): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(item) for item in value]
    return value


def _clean(text: str) -> str:
    return _CONTROL.sub(" ", text)


def _urgency_key(report: WorkerReport) -> tuple[object, ...]:
    """Excludes the progress of a start: a download reports some every second."""
    ping = report.custom_ping
    return report.verdict.state, report.ready, report.configuration.state, ping and ping.state


def _frontend_urgency_key(report: FrontendReport) -> tuple[object, ...]:
    routes = {
        route.instance_id: (route.state, route.kv_events and route.kv_events.state) for route in report.routes
    }
    return report.ready, report.answering, routes
