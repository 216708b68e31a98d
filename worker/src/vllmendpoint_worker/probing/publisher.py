"""Publishes verdict, probes and readiness in the worker state and the metrics."""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from vllmendpoint_api import Mode, PingReport, PingState, ProbeReport, Reason, Stage, Verdict, VerdictReport
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.serving.state import WorkerState

from .metrics import ProbeMetrics
from .probe import ProbeResult
from .prober import Prober
from .ranks import RankProbers
from .verdict import is_healthy, readiness

__all__ = ["HealthPublisher"]

_PROBED: Final = frozenset({Stage.REGISTERING, Stage.SERVING})


class HealthPublisher:
    """``prober`` is set when the engine can be probed; before that nothing is published."""

    def __init__(self, state: WorkerState, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self.metrics = ProbeMetrics(self._seconds_since_proof)
        self.prober: Prober | RankProbers | None = None
        self.on_stopped: list[Callable[[], None]] = []
        """Called after each publication while the engine is stalled or dead."""
        self._ping: PingReport | None = None
        self._last_report: tuple[ProbeResult, ProbeReport] | None = None
        self._since: tuple[float, datetime] | None = None

    @property
    def mode(self) -> Mode:
        return self.prober.settings.mode if self.prober is not None else Mode.ENFORCE

    @property
    def verdict(self) -> Verdict:
        """The verdict as published: ``Disabled`` if probing is off, but a dead engine is always ``Dead``."""
        verdict = self.prober.state.verdict if self.prober is not None else Verdict.STARTING
        return Verdict.DISABLED if self.mode is Mode.DISABLED and verdict is not Verdict.DEAD else verdict

    def is_stopped(self) -> bool:
        """Whether the engine certainly generates no tokens, in any mode that has a verdict."""
        return self.verdict in (Verdict.STALLED, Verdict.DEAD)

    def is_healthy(self) -> bool:
        """Whether the default ``/ping`` answers 200."""
        return is_healthy(self.verdict, self.mode, serving=self._state.is_registered)

    def is_healthy_for_dynamo(self) -> bool:
        """Whether Dynamo's ``/health`` and its canary succeed. From the first probe until the shutdown."""
        return is_healthy(self.verdict, self.mode, serving=True) and self._state.stage in _PROBED

    def publish(self) -> None:
        """Publish the prober's current state."""
        prober = self.prober
        if prober is None:
            return
        state = prober.state
        self.metrics.set_verdict(self.verdict)
        if self._since is None or self._since[0] != state.since:
            self._since = (state.since, self._clock.wall_of(state.since))
        disabled = self.verdict is Verdict.DISABLED
        ready, not_ready_reason = self._readiness()
        proof = prober.last_proof
        self._state.update(
            verdict=VerdictReport(
                state=self.verdict,
                reason=Reason.PROBING_DISABLED if disabled else state.reason,
                message="Probing is off." if disabled else state.message[:2048],
                since=self._since[1],
                last_proof_of_life=self._clock.wall_of(proof) if proof is not None else None,
            ),
            last_probe=self.probe_report(prober.last_result) if prober.last_result is not None else None,
            ranks=prober.report(),
            ready=ready,
            not_ready_reason=not_ready_reason,
        )
        if self.is_stopped():
            for callback in self.on_stopped:
                callback()

    def publish_ping(self, report: PingReport | None) -> None:
        """Publish the state of the custom ping handler. None: there is no custom ping handler."""
        self._ping = report
        self._state.update(custom_ping=report)
        self.publish()

    def probe_report(self, result: ProbeResult) -> ProbeReport:
        """Built once for each result: its wall time must not change from report to report."""
        if self._last_report is None or self._last_report[0] is not result:
            report = ProbeReport(
                time=self._clock.wall_of(result.ended),
                latency_milliseconds=round(result.latency * 1000, 1),
                tokens=result.tokens,
                outcome=result.outcome,
            )
            self._last_report = (result, report)
        return self._last_report[1]

    def _readiness(self) -> tuple[bool, str]:
        ready, reason = readiness(self.verdict, self.mode, self._state.stage)
        if ready and (failure := self._ping_failure()):
            return False, f"the custom ping handler fails: {failure}"
        return ready, reason

    def _ping_failure(self) -> str:
        """The failure of the custom ping handler, which affects readiness in every mode but Observe."""
        if self._ping is None or self._ping.state == PingState.PASSING or self.mode is Mode.OBSERVE:
            return ""
        return self._ping.message

    def _seconds_since_proof(self) -> float:
        proof = self.prober.last_proof if self.prober is not None else None
        return self._clock.monotonic() - proof if proof is not None else float("inf")
