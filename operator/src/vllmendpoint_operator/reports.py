"""One streaming connection a worker pod: the newest report of each.

A report is hostile input, since customer code runs in that pod: only pods whose owner chain is
ours are asked, a line is capped, the schema checks enums and lengths, control characters go, and
a report of another pod's UID is not believed.
"""

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from pydantic import ValidationError

from vllmendpoint_api import WorkerReport, names

from . import http_stream

__all__ = ["Link", "Reports", "Target"]

log = logging.getLogger(__name__)

MAX_REPORT_BYTES: Final = 128 * 1024
SILENCE_SECONDS: Final = 15.0
"""A worker sends a line every 5 s at least; three missed and the stream counts as lost."""
MAX_REPORTS_A_SECOND: Final = 50
"""Each costs the operator work, and may cost a write: a worker that floods is cut off."""
CONNECTING_GRACE_SECONDS: Final = 10.0
"""How long a pod that was never heard, or whose stream ended, may take until it counts as unreachable."""
_PATH: Final = "/status?watch=true"
_CONNECT_SECONDS: Final = 5.0
_RETRY_FIRST: Final = 0.5
_RETRY_LAST: Final = 5.0
_PLAIN = re.compile(rb"[^\\\x7f-\xff]*")
"""JSON of such bytes has no control character in a string: raw ones are no JSON, others need a backslash."""
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


@dataclass(slots=True)
class _Stream:
    """One worker's, between two looks: a report that is kept as it was read is a tenth of its model."""

    target: Target
    task: asyncio.Task[None] | None = None
    line: bytes = b""
    news: bytes = b""
    """What of the report is news, to compare the next one with."""
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
        self._streams: dict[tuple[str, str], dict[str, _Stream]] = {}
        """owner -> pod UID -> its stream"""

    async def __aenter__(self) -> "Reports":
        return self

    async def __aexit__(self, *_: object) -> None:
        held = [stream for streams in self._streams.values() for stream in streams.values()]
        tasks = [stream.task for stream in held if stream.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._streams.clear()

    def link(self, owner: tuple[str, str], uid: str) -> Link:
        """What is known of the pod ``uid`` of the endpoint ``owner``."""
        stream = self._streams.get(owner, {}).get(uid)
        if stream is None:
            return Link()
        report = parse(stream.line, uid) if stream.line else None
        return Link(report, stream.connected, stream.settled, stream.error)

    def follow(self, owner: tuple[str, str], targets: Mapping[str, Target]) -> bool:
        """Hold exactly these streams for the endpoint; those that stand go on. True where one is new."""
        held = self._streams.pop(owner, {})
        for uid, stream in held.items():
            if targets.get(uid) != stream.target and stream.task is not None:
                stream.task.cancel()
        kept, new = {}, False
        for uid, target in targets.items():
            if uid in held and held[uid].target == target:
                kept[uid] = held[uid]
            else:
                stream = kept[uid] = _Stream(target)
                stream.task = asyncio.create_task(self._hold(stream))
                new = True
        if kept:
            self._streams[owner] = kept
        return new

    async def _hold(self, stream: _Stream) -> None:
        target = stream.target
        loop = asyncio.get_running_loop()
        lost = loop.time()
        delay = _RETRY_FIRST
        while True:
            try:
                await self._read(stream)
                error = "the worker closed the stream"
                delay = _RETRY_FIRST
            except (OSError, TimeoutError, ValueError) as failure:
                error = _clean(f"{type(failure).__name__}: {failure}".rstrip(": "))
            was_connected, was_settled = stream.connected, stream.settled
            if was_connected:
                log.info("worker stream lost", extra={"pod_uid": target.uid, "why": error})
                lost = loop.time()
            late = loop.time() - lost >= CONNECTING_GRACE_SECONDS
            stream.connected, stream.settled, stream.error = False, late, error[:300]
            if late and (was_connected or not was_settled):
                self._changed(target.owner, True)
            await asyncio.sleep(random.uniform(delay / 2, delay))
            delay = min(delay * 2, _RETRY_LAST)

    async def _read(self, stream: _Stream) -> None:
        loop = asyncio.get_running_loop()
        answer = http_stream.get(
            stream.target.address, self._port, _PATH, connect=_CONNECT_SECONDS, silence=SILENCE_SECONDS
        )
        buffer = b""
        second, count = loop.time(), 0
        async with contextlib.aclosing(answer) as parts:
            async for part in parts:
                *lines, buffer = (buffer + part).split(b"\n")
                if len(buffer) > MAX_REPORT_BYTES or any(len(line) > MAX_REPORT_BYTES for line in lines):
                    raise ValueError(f"a report larger than {MAX_REPORT_BYTES} bytes")
                if loop.time() - second >= 1:
                    second, count = loop.time(), 0
                for line in lines:
                    count += 1
                    if count > MAX_REPORTS_A_SECOND:
                        raise ValueError(f"more than {MAX_REPORTS_A_SECOND} reports a second")
                    if line.strip():
                        self._take(stream, line)

    def _take(self, stream: _Stream, line: bytes) -> None:
        report = parse(line, stream.target.uid)
        news, weighty = _news(report), _weighty(report)
        urgent = not stream.connected or weighty != stream.weighty
        told = urgent or news != stream.news
        stream.line, stream.news, stream.weighty = line, news, weighty
        stream.connected, stream.settled, stream.error = True, True, ""
        if told:
            self._changed(stream.target.owner, urgent)


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


def _news(report: WorkerReport) -> bytes:
    """The report without what moves all the time."""
    verdict = report.verdict.model_copy(update={"last_proof_of_life": None})
    probe = report.last_probe
    if probe is not None:
        probe = probe.model_copy(
            update={"time": report.stage.since, "latency_milliseconds": 0.0, "tokens": 0}
        )
    still = report.model_copy(update={"time": report.stage.since, "verdict": verdict, "last_probe": probe})
    return sha256(still.model_dump_json().encode()).digest()
