"""Publishes the verdict, the probes and readiness in the worker state and the metrics."""

from typing import Any

from vllmendpoint_api import Mode, PingReport, PingState, ProbeReport, Reason, Verdict, VerdictReport
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.serving.state import WorkerState

from .metrics import Metrics
from .prober import Prober, ProbeResult
from .ranks import Ranks
from .verdict import fit_for_ping, ready

__all__ = ["Publisher"]


class Publisher:
    """What the worker shows of its health. ``prober`` is set once there is one.

    ``resolved``, ``warmed``, ``serving`` and ``stopping`` are steps of the worker's life, set by its owner.
    """

    def __init__(self, state: WorkerState, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self.metrics = Metrics(self._since_proof)
        self.prober: Prober | Ranks | None = None
        self.resolved = False
        self.warmed = False
        self.serving = False
        self.stopping = False
        self._ping: PingReport | None = None
        self._probe: tuple[ProbeResult, ProbeReport] | None = None
        self._since: tuple[float, Any] | None = None

    @property
    def mode(self) -> Mode:
        return self.prober.settings.mode if self.prober is not None else Mode.ENFORCE

    @property
    def verdict(self) -> Verdict:
        """As shown: a dead engine is dead, whatever the mode."""
        verdict = self.prober.state.verdict if self.prober is not None else Verdict.STARTING
        return Verdict.DISABLED if self.mode is Mode.DISABLED and verdict is not Verdict.DEAD else verdict

    def fit(self) -> bool:
        """Whether the default ``/ping`` may say 200."""
        return fit_for_ping(self.verdict, self.mode, serving=self.serving)

    def healthy(self) -> bool:
        """For upstream's ``/health``: our verdict, from the moment there is one."""
        return not self.stopping and fit_for_ping(self.verdict, self.mode, serving=self.warmed)

    def publish(self) -> None:
        """Show the prober's state as it is now."""
        prober = self.prober
        if prober is None:
            return
        state = prober.state
        self.metrics.verdict(self.verdict)
        if self._since is None or self._since[0] != state.since:
            self._since = (state.since, self._clock.wall_of(state.since))
        disabled = self.verdict is Verdict.DISABLED
        is_ready, why = ready(
            self.verdict,
            self.mode,
            serving=self.serving,
            resolved_once=self.resolved,
            warmed=self.warmed,
            stopping=self.stopping,
        )
        if is_ready and (failing := self._failing_ping()):
            is_ready, why = False, f"the custom ping handler fails: {failing}"
        proof = prober.last_proof
        self._state.update(
            verdict=VerdictReport(
                state=self.verdict,
                reason=Reason.PROBING_DISABLED if disabled else state.reason,
                message="Probing is off." if disabled else state.message[:2048],
                since=self._since[1],
                last_proof_of_life=self._clock.wall_of(proof) if proof is not None else None,
            ),
            last_probe=self.probe_report(prober.last) if prober.last is not None else None,
            ranks=prober.report(),
            ready=is_ready,
            not_ready_reason=why,
        )

    def pinged(self, report: PingReport | None) -> None:
        """The custom ping handler's newest state; None where there is none."""
        self._ping = report
        self._state.update(custom_ping=report)
        self.publish()

    def _failing_ping(self) -> str:
        """What is wrong with it, where that gates readiness: in every mode but Observe."""
        if self._ping is None or self._ping.state == PingState.PASSING or self.mode is Mode.OBSERVE:
            return ""
        return self._ping.message

    def probe_report(self, result: ProbeResult) -> ProbeReport:
        """Made once a probe: the report must not change while nothing does."""
        if self._probe is None or self._probe[0] is not result:
            report = ProbeReport(
                time=self._clock.wall_of(result.ended),
                latency_milliseconds=round(result.latency * 1000, 1),
                tokens=result.tokens,
                outcome=result.outcome,
            )
            self._probe = (result, report)
        return self._probe[1]

    def _since_proof(self) -> float:
        proof = self.prober.last_proof if self.prober is not None else None
        return self._clock.monotonic() - proof if proof is not None else float("inf")
