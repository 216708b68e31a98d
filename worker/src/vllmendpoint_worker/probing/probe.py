"""Runs one probe: one request over the worker's own request path, aborted at its timeout."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol
from uuid import uuid4

from vllmendpoint_api import Outcome
from vllmendpoint_worker.payload.expect import Expectation
from vllmendpoint_worker.process.clock import Clock

from .answer import Answer
from .progress import PROBE_PREFIX

__all__ = ["ABORT_SECONDS", "ProbeResult", "ProbeTarget", "run_probe"]

ABORT_SECONDS: Final = 1.0
"""Longest wait for an aborted stream to close."""


class ProbeTarget(Protocol):
    """The engine, or one of its data-parallel ranks, as probing uses it."""

    def generate(self, request: Mapping[str, Any], request_id: str) -> AsyncIterator[Mapping[str, Any]]:
        """The request path that requests of users take."""
        ...

    def in_flight(self) -> int:
        """Number of requests that the engine client has sent and that have not ended."""
        ...

    def dead(self) -> str | None:
        """The cause if the engine is dead, else None."""
        ...


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """``ended``: monotonic seconds; ``latency``: seconds."""

    outcome: Outcome
    latency: float
    tokens: int
    ended: float
    detail: str = ""
    error: BaseException | None = None
    """What the request path raised. Its text may repeat the payload and must not be published."""
    chunks: Sequence[Mapping[str, Any]] = ()
    """The answer, which can be replayed to a frontend. Empty if Dynamo's handlers have no such form."""


async def run_probe(
    target: ProbeTarget,
    request: Mapping[str, Any],
    timeout: float,  # noqa: ASYNC109  (a timeout is a result, not an error)
    clock: Clock,
    expect: Expectation | None = None,
) -> ProbeResult:
    """Read the whole stream within ``timeout`` seconds, else abort it. Raises only CancelledError."""
    started = clock.monotonic()
    answer = Answer(expect)
    reading = asyncio.create_task(_read_stream(target, request, answer), name="probe")
    try:
        done, _ = await asyncio.wait({reading}, timeout=timeout)
        ended = clock.monotonic()
    finally:
        if not reading.done():
            reading.cancel()
            # The engine may not process the abort either, so this wait is bounded.
            await asyncio.wait({reading}, timeout=ABORT_SECONDS)
    latency = ended - started
    if not done:
        if reading.done() and not reading.cancelled():
            reading.exception()  # retrieved, so that asyncio does not log it
        return ProbeResult(Outcome.TIMEOUT, latency, answer.tokens, ended)
    if reading.cancelled():  # by the engine
        return ProbeResult(Outcome.ERROR, latency, answer.tokens, ended, asyncio.CancelledError.__name__)
    if (error := reading.exception()) is not None:
        outcome = Outcome.ERROR if target.dead() is None else Outcome.ENGINE_DEAD
        return ProbeResult(outcome, latency, answer.tokens, ended, type(error).__name__, error)
    outcome, detail = answer.outcome()
    return ProbeResult(outcome, latency, answer.tokens, ended, detail, chunks=tuple(answer.chunks))


async def _read_stream(target: ProbeTarget, request: Mapping[str, Any], answer: Answer) -> None:
    stream = target.generate(request, f"{PROBE_PREFIX}{uuid4().hex}")
    try:
        async for chunk in stream:
            answer.add(chunk)
    finally:
        if (close := getattr(stream, "aclose", None)) is not None:
            with suppress(RuntimeError):  # it is closing already: the consumer was cancelled inside it
                await close()
