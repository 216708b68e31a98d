"""One streaming connection a worker pod: the newest report of each.

A report is hostile input, since customer code runs in that pod: only pods whose owner chain is
ours are asked, a line is capped, the schema checks enums and lengths, control characters go, and
a report of another pod's UID is not believed.
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
from vllmendpoint_operator.cache.compression import Packer

from . import http_stream

__all__ = ["Link", "Reports", "Target"]

log = logging.getLogger(__name__)

MAX_REPORT_BYTES: Final = 128 * 1024
SILENCE_SECONDS: Final = 15.0
"""A worker sends a line every 5 s at least; three missed and the stream counts as lost."""
MAX_REPORTS_A_SECOND: Final = 50
"""Each costs the operator work, and may cost a write: a worker that floods is cut off."""
FIRST_REPORT_SECONDS: Final = 0.5
"""A new stream's first report comes within this time, as a rule in milliseconds."""
CONNECTING_GRACE_SECONDS: Final = 10.0
"""How long a pod that was never heard, or whose stream ended, may take until it counts as unreachable."""
_PATH: Final = "/status?watch=true"
_CONNECT_SECONDS: Final = 5.0
_RETRY_FIRST: Final = 0.5
_RETRY_LAST: Final = 5.0
_PLAIN = re.compile(rb"[^\\\x7f-\xff]*")
"""JSON of such bytes has no control character in a string: raw ones are no JSON, others need a backslash."""
_MOVES = re.compile(
    rb'"(?:time|lastProofOfLife)":\s*"[-+.:TZ\d]{20,35}"|"latencyMilliseconds":\s*[\d.]+|"tokens":\s*\d+'
)
"""What of a report moves all the time, and is no news: when it was made, and a probe's figures."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class Target:
    """Where one worker reports."""

    uid: str
    address: str
    owner: tuple[str, str]
    """(namespace, name) of the endpoint."""


@dataclass(frozen=True, slots=True)
class Link:
    """What is known of one worker's stream."""

    report: WorkerReport | None = None
    connected: bool = False
    settled: bool = False
    """Heard, or tried for longer than the grace: an absent stream now means something."""
    error: str = ""

    @property
    def lost(self) -> bool:
        return self.settled and not self.connected


@dataclass(slots=True, eq=False)
class _Stream:
    """One worker's, between two looks: a report that is kept packed is a thirtieth of its model."""

    target: Target
    lost: float
    """When it was last connected, on the loop's clock; at first, when it was first wanted."""
    delay: float
    """Until the next attempt, at the most."""
    body: http_stream.BodyStream | None = None
    connecting: asyncio.Task[None] | None = None
    retry: asyncio.TimerHandle | None = None
    part: bytes = b""
    """Of a line whose end has not come yet."""
    second: float = 0.0
    count: int = 0
    """Reports since then, which is a second ago at most."""
    packed: bytes = b""
    """The newest line."""
    still: int = 0
    """Digest of what of the report is news, to compare the next one with."""
    weighty: tuple[object, ...] = ()
    """What of it the user waits for, or loses requests by."""
    connected: bool = False
    settled: bool = False
    error: str = ""


class Reports:
    """Owns the streams. ``changed(owner, urgent)`` is told of the endpoint whose worker has news."""

    def __init__(
        self, changed: Callable[[tuple[str, str], bool], None], *, port: int = names.REPORT_PORT
    ) -> None:
        self._changed = changed
        self._port = port
        self._streams: dict[tuple[str, str], tuple[_Stream, ...]] = {}
        """By owner."""
        self._packer = Packer()
        self._connecting: set[asyncio.Task[None]] = set()
        self._context = copy_context()
        """Of all streams: what is logged of one is not of the reconcile that began it."""

    async def __aenter__(self) -> "Reports":
        return self

    async def __aexit__(self, *_: object) -> None:
        for owner in list(self._streams):
            self.follow(owner, ())
        await asyncio.gather(*self._connecting, return_exceptions=True)

    def link(self, owner: tuple[str, str], uid: str) -> Link:
        """What is known of the pod ``uid`` of the endpoint ``owner``."""
        stream = next((held for held in self._streams.get(owner, ()) if held.target.uid == uid), None)
        if stream is None:
            return Link()
        report = None
        try:
            if stream.packed:
                report = parse(self._packer.unpack(stream.packed), uid)
        except ValueError as malformed:  # in what moves all the time, which is not looked at before
            return Link(None, False, stream.settled, str(malformed))
        return Link(report, stream.connected, stream.settled, stream.error)

    def follow(self, owner: tuple[str, str], targets: Collection[Target]) -> bool:
        """Hold exactly these streams for the endpoint; those that stand go on. True while a worker that was
        only just asked for the first time may answer any moment.
        """
        now = asyncio.get_running_loop().time()
        held = {stream.target: stream for stream in self._streams.pop(owner, ())}
        begun = [_Stream(target, now, _RETRY_FIRST) for target in targets if target not in held]
        kept = [stream for target, stream in held.items() if target in targets]
        for stream in held.values():
            if stream.target not in targets:
                _close(stream)
        if kept or begun:
            self._streams[owner] = (*kept, *begun)
        for stream in begun:
            self._connect(stream)
        # One that was heard and lost again, and again, is waited for by nobody.
        return any(
            not (stream.settled or stream.packed) and now - stream.lost < FIRST_REPORT_SECONDS
            for stream in (*kept, *begun)
        )

    def _connect(self, stream: _Stream) -> None:
        task = stream.connecting = asyncio.create_task(
            self._ask(stream), name="report-connect", context=self._context
        )
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _ask(self, stream: _Stream) -> None:
        stream.part, stream.count = b"", 0
        try:
            stream.body = await http_stream.get(
                stream.target.address,
                self._port,
                _PATH,
                part=partial(self._read, stream),
                ended=partial(self._ended, stream),
                connect=_CONNECT_SECONDS,
                silence=SILENCE_SECONDS,
            )
        except (OSError, TimeoutError, ValueError) as failure:  # the last: no address
            self._ended(stream, failure)
        finally:
            stream.connecting = None

    def _ended(self, stream: _Stream, failure: Exception | None) -> None:
        """The stream is over, or did not come about: try again, later each time that nothing was heard."""
        target = stream.target
        if stream not in self._streams.get(target.owner, ()):
            return  # given up while it was being connected
        loop = asyncio.get_running_loop()
        error = "the worker closed the stream"
        if failure is not None:
            error = _clean(f"{type(failure).__name__}: {failure}".rstrip(": "))
        was_connected, was_settled = stream.connected, stream.settled
        if was_connected:
            log.info("worker stream lost", extra={"pod_uid": target.uid, "why": error})
            stream.lost = loop.time()
        if was_connected or failure is None:
            stream.delay = _RETRY_FIRST
        late = loop.time() - stream.lost >= CONNECTING_GRACE_SECONDS
        stream.connected, stream.settled, stream.error = False, late, error[:300]
        stream.body, stream.part = None, b""
        if late and (was_connected or not was_settled):
            self._changed(target.owner, True)
        wait = random.uniform(stream.delay / 2, stream.delay)
        stream.retry = loop.call_later(wait, self._connect, stream)
        stream.delay = min(stream.delay * 2, _RETRY_LAST)

    def _read(self, stream: _Stream, part: bytes) -> None:
        """Raises ValueError where it is no stream of reports."""
        now = asyncio.get_running_loop().time()
        if now - stream.second >= 1:
            stream.second, stream.count = now, 0
        *lines, stream.part = (stream.part + part).split(b"\n")
        if len(stream.part) > MAX_REPORT_BYTES or any(len(line) > MAX_REPORT_BYTES for line in lines):
            raise ValueError(f"a report larger than {MAX_REPORT_BYTES} bytes")
        for line in lines:
            stream.count += 1
            if stream.count > MAX_REPORTS_A_SECOND:
                raise ValueError(f"more than {MAX_REPORTS_A_SECOND} reports a second")
            if line.strip():
                self._take(stream, line)

    def _take(self, stream: _Stream, line: bytes) -> None:
        still = hash(_MOVES.sub(b"", line))
        if stream.connected and still == stream.still:
            stream.packed = self._packer.pack(line, "")
            return
        report = parse(line, stream.target.uid)
        weighty = _weighty(report)
        urgent = not stream.connected or weighty != stream.weighty
        stream.packed, stream.still, stream.weighty = self._packer.pack(line, ""), still, weighty
        stream.connected, stream.settled, stream.error = True, True, ""
        self._changed(stream.target.owner, urgent)


def _close(stream: _Stream) -> None:
    if stream.connecting is not None:
        stream.connecting.cancel()
    if stream.retry is not None:
        stream.retry.cancel()
    if stream.body is not None:
        stream.body.close()


def parse(line: bytes, pod_uid: str) -> WorkerReport:
    """One line of the stream. Raises ValueError, with a sentence that quotes nothing of the input."""
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
    if _PLAIN.fullmatch(line):
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


def _weighty(report: WorkerReport) -> tuple[object, ...]:
    """Not the steps of a start, of which a download has one a second."""
    ping = report.custom_ping
    return report.verdict.state, report.ready, report.configuration.state, ping and ping.state
