"""Answers the probes of frontends with the worker's own probes.

A frontend's probe proves the route. The worker's newest complete probe, which is the answer, proves the
engine (docs/decisions/0039-frontends-probe-and-report.md).
"""

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Any

from vllmendpoint_api import Outcome, Verdict
from vllmendpoint_worker.errors import EngineNotGeneratingError
from vllmendpoint_worker.process.clock import Clock

from .publisher import HealthPublisher

__all__ = ["FrontendProbes", "Reply", "choose_reply"]


class Reply(Enum):
    """How a frontend's probe is answered."""

    ROUTE_ONLY = auto()
    """Without a proof of the engine."""
    REPLAY = auto()
    """With the newest complete probe."""
    PROBE = auto()
    """With a probe that runs now."""
    REFUSE = auto()
    """With an error."""


def choose_reply(verdict: Verdict, proof_age: float | None, period: float) -> Reply:
    """Pure. ``verdict`` as published; ``proof_age`` in seconds, None without a proof of life."""
    match verdict:
        case Verdict.DISABLED:
            return Reply.ROUTE_ONLY
        case Verdict.STALLED | Verdict.FAILING | Verdict.DEAD:
            return Reply.REFUSE
        case Verdict.BUSY:
            return Reply.REPLAY
        case Verdict.GENERATING if proof_age is not None and proof_age < period:
            return Reply.REPLAY
    return Reply.PROBE


class FrontendProbes:
    def __init__(self, publisher: HealthPublisher, clock: Clock) -> None:
        self._publisher = publisher
        self._clock = clock

    async def answer(self) -> Sequence[Mapping[str, Any]]:
        """The chunks of the answer; empty if there is no probe to replay.

        Waits for a probe if the last proof of life is older than one period. Raises EngineNotGeneratingError,
        and ProbeUnavailableError if probing is turned off meanwhile.
        """
        prober = self._publisher.prober
        if prober is None:
            raise EngineNotGeneratingError("The engine is starting.")
        proof = prober.proof
        age = None if proof is None else self._clock.monotonic() - proof
        reply = choose_reply(self._publisher.verdict, age, prober.settings.period)
        if reply is Reply.ROUTE_ONLY:
            return ()
        if reply is Reply.PROBE:
            result = await prober.probe_now(join=True)
            complete = result.outcome is Outcome.COMPLETE or self._publisher.verdict is Verdict.BUSY
            reply = Reply.REPLAY if complete else Reply.REFUSE
        if reply is Reply.REFUSE:
            verdict = self._publisher.verdict.value
            raise EngineNotGeneratingError(f"The engine does not generate tokens: the verdict is {verdict}.")
        return prober.last_complete.chunks if prober.last_complete is not None else ()
