"""Keeps one stream open to each worker pod, and the newest report of each.

ReportStreams are untrusted input, because customer code runs in the worker pods:

- Only pods whose chain of controllers leads to an endpoint become targets.
- Lines are limited in size and rate, and the schema validates enums and lengths.
- Control characters are removed.
- A report must carry the UID of the pod that it came from.
"""

import asyncio
import logging
import random
import re
from collections.abc import Callable, Collection
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pydantic import ValidationError

from vllmendpoint_api import WorkerReport, names
from vllmendpoint_operator.cache.compression import ObjectCompressor

from . import http_stream
from .state import ReportTarget, StreamState

__all__ = ["ReportStreams"]

log = logging.getLogger(__name__)

MAX_REPORT_BYTES: Final = 128 * 1024
READ_TIMEOUT_SECONDS: Final = 15.0
"""A worker sends a report at least every 5 s; after three missing ones the stream counts as disconnected."""
MAX_REPORTS_PER_SECOND: Final = 50
"""Each report costs the operator CPU and possibly a status write."""
FIRST_REPORT_SECONDS: Final = 0.5
"""How long a reconcile waits for the first report of a new stream, which usually takes milliseconds."""
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
    rb'"(?:time|lastProofOfLife)":\s*"[-+.:TZ\d]{20,35}"|"latencyMilliseconds":\s*[\d.]+|"tokens":\s*\d+'
)
"""Fields that differ in every report: times, and the figures of probes. They do not cause a reconcile."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(slots=True, eq=False)
class _Stream:
    """One worker's stream. The compressed report takes a thirtieth of the memory of its model."""

    target: ReportTarget
    disconnected_at: float
    """Time of the loop's clock at which the stream ended; before the first report, at which it was added."""
    retry_delay: float
    """Maximum seconds until the next attempt to connect."""
    response: http_stream.StreamingResponse | None = None
    connecting: asyncio.Task[None] | None = None
    retry: asyncio.TimerHandle | None = None
    partial_line: bytes = b""
    rate_window_start: float = 0.0
    reports_in_window: int = 0
    compressed_report: bytes = b""
    """The newest line."""
    stable_digest: int = 0
    """Hash of the newest line without its volatile fields."""
    urgency_key: tuple[object, ...] = ()
    """The fields of the newest report whose change is urgent."""
    connected: bool = False
    grace_expired: bool = False
    error: str = ""


class ReportStreams:
    """The streams of all endpoints' workers.

    Args:
        on_change: called with the (namespace, name) of an endpoint when a report of one of its workers
            changes, or when a worker becomes unreachable. The second argument is True if users wait for the
            change, or lose requests until it is handled.
        port: the port on which workers serve reports.
    """

    def __init__(
        self, on_change: Callable[[tuple[str, str], bool], None], *, port: int = names.REPORT_PORT
    ) -> None:
        self._on_change = on_change
        self._port = port
        self._streams: dict[tuple[str, str], tuple[_Stream, ...]] = {}
        """Endpoint -> its streams."""
        self._compressor = ObjectCompressor()
        self._connecting: set[asyncio.Task[None]] = set()
        self._context = copy_context()
        """Context of all streams: their log lines must not carry the id of the reconcile that opened them."""

    async def __aenter__(self) -> "ReportStreams":
        return self

    async def __aexit__(self, *_: object) -> None:
        for owner in list(self._streams):
            self.sync_targets(owner, ())
        await asyncio.gather(*self._connecting, return_exceptions=True)

    def state(self, owner: tuple[str, str], uid: str) -> StreamState:
        """Return the state of the stream to the pod ``uid`` of the endpoint ``owner``."""
        stream = next((held for held in self._streams.get(owner, ()) if held.target.uid == uid), None)
        if stream is None:
            return StreamState()
        report = None
        try:
            if stream.compressed_report:
                report = parse(self._compressor.decompress(stream.compressed_report), uid)
        except ValueError as malformed:  # in a volatile field, which _on_report does not parse
            return StreamState(None, False, stream.grace_expired, str(malformed))
        return StreamState(report, stream.connected, stream.grace_expired, stream.error)

    def sync_targets(self, owner: tuple[str, str], targets: Collection[ReportTarget]) -> bool:
        """Open and close streams until the endpoint has exactly these; existing ones continue.

        Returns True while the first report of a new stream may arrive within FIRST_REPORT_SECONDS.
        """
        now = asyncio.get_running_loop().time()
        current = {stream.target: stream for stream in self._streams.pop(owner, ())}
        new = [_Stream(target, now, _FIRST_RETRY_SECONDS) for target in targets if target not in current]
        kept = [stream for target, stream in current.items() if target in targets]
        for stream in current.values():
            if stream.target not in targets:
                _close(stream)
        if kept or new:
            self._streams[owner] = (*kept, *new)
        for stream in new:
            self._start_connecting(stream)
        # Do not wait for workers that keep disconnecting.
        return any(
            not (stream.grace_expired or stream.compressed_report)
            and now - stream.disconnected_at < FIRST_REPORT_SECONDS
            for stream in (*kept, *new)
        )

    def _start_connecting(self, stream: _Stream) -> None:
        task = stream.connecting = asyncio.create_task(
            self._connect(stream), name="report-connect", context=self._context
        )
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, stream: _Stream) -> None:
        stream.partial_line, stream.reports_in_window = b"", 0
        try:
            stream.response = await http_stream.get(
                stream.target.address,
                self._port,
                _PATH,
                on_data=partial(self._on_data, stream),
                on_end=partial(self._on_end, stream),
                connect_timeout=_CONNECT_TIMEOUT_SECONDS,
                read_timeout=READ_TIMEOUT_SECONDS,
            )
        except (OSError, TimeoutError, ValueError) as failure:  # ValueError: not an IP address
            self._on_end(stream, failure)
        finally:
            stream.connecting = None

    def _on_end(self, stream: _Stream, failure: Exception | None) -> None:
        """Schedule the next attempt after a stream ended or could not be opened."""
        target = stream.target
        if stream not in self._streams.get(target.owner, ()):
            return  # sync_targets removed it while it was connecting
        loop = asyncio.get_running_loop()
        error = "the worker closed the stream"
        if failure is not None:
            error = _clean(f"{type(failure).__name__}: {failure}".rstrip(": "))
        was_connected, had_expired = stream.connected, stream.grace_expired
        if was_connected:
            log.info("worker stream disconnected", extra={"pod_uid": target.uid, "error": error})
            stream.disconnected_at = loop.time()
        if was_connected or failure is None:
            stream.retry_delay = _FIRST_RETRY_SECONDS
        expired = loop.time() - stream.disconnected_at >= CONNECTING_GRACE_SECONDS
        stream.connected, stream.grace_expired, stream.error = False, expired, error[:300]
        stream.response, stream.partial_line = None, b""
        if expired and (was_connected or not had_expired):
            self._on_change(target.owner, True)
        wait = random.uniform(stream.retry_delay / 2, stream.retry_delay)
        stream.retry = loop.call_later(wait, self._start_connecting, stream)
        stream.retry_delay = min(stream.retry_delay * 2, _MAX_RETRY_SECONDS)

    def _on_data(self, stream: _Stream, data: bytes) -> None:
        """Split the stream into lines. Raises ValueError if it is not a stream of reports."""
        now = asyncio.get_running_loop().time()
        if now - stream.rate_window_start >= 1:
            stream.rate_window_start, stream.reports_in_window = now, 0
        *lines, stream.partial_line = (stream.partial_line + data).split(b"\n")
        if any(len(line) > MAX_REPORT_BYTES for line in (*lines, stream.partial_line)):
            raise ValueError(f"a report is larger than {MAX_REPORT_BYTES} bytes")
        for line in lines:
            stream.reports_in_window += 1
            if stream.reports_in_window > MAX_REPORTS_PER_SECOND:
                raise ValueError(f"more than {MAX_REPORTS_PER_SECOND} reports per second")
            if line.strip():
                self._on_report(stream, line)

    def _on_report(self, stream: _Stream, line: bytes) -> None:
        digest = hash(_VOLATILE_FIELDS.sub(b"", line))
        if stream.connected and digest == stream.stable_digest:
            stream.compressed_report = self._compressor.compress(line, "")
            return
        report = parse(line, stream.target.uid)
        urgency_key = _urgency_key(report)
        urgent = not stream.connected or urgency_key != stream.urgency_key
        stream.compressed_report = self._compressor.compress(line, "")
        stream.stable_digest, stream.urgency_key = digest, urgency_key
        stream.connected, stream.grace_expired, stream.error = True, True, ""
        self._on_change(stream.target.owner, urgent)


def _close(stream: _Stream) -> None:
    if stream.connecting is not None:
        stream.connecting.cancel()
    if stream.retry is not None:
        stream.retry.cancel()
    if stream.response is not None:
        stream.response.close()


def parse(line: bytes, pod_uid: str) -> WorkerReport:
    """Parse one line of the stream.

    Raises ValueError for a malformed report, and for the report of another pod. The message does not quote
    the input.
    """
    try:
        report = WorkerReport.model_validate_json(line)
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
    return WorkerReport.model_validate(_cleaned(report.model_dump()))


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
