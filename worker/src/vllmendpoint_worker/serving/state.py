"""The worker's state, shared by the main event loop and the report server's thread.

The state is one frozen :class:`StateSnapshot`, replaced under a lock. The report is built from it at the time
of each request: a blocked main loop shows in the report although the loop cannot update the state.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from vllmendpoint_api import (
    DEFAULT_TIMEOUT_SECONDS,
    ConfigurationReport,
    HandlersReport,
    HealthCheckReport,
    PingReport,
    ProbeReport,
    RankReport,
    Reason,
    Stage,
    StageReport,
    Verdict,
    VerdictReport,
    WorkerReport,
)
from vllmendpoint_worker.process.clock import Clock

from .snapshots import Snapshot, SnapshotHolder

__all__ = ["LOOP_GRACE_SECONDS", "StateSnapshot", "WorkerState"]

LOOP_GRACE_SECONDS: Final = 3.0
"""The main loop counts as blocked without a heartbeat for the probe's timeout and this."""

_LOAD_STAGES: Final = (
    Stage.STARTING_ENGINE,
    Stage.LOADING_WEIGHTS,
    Stage.COMPILING,
    Stage.ALLOCATING_CACHE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSnapshot(Snapshot):
    """The content of a report."""

    verdict: VerdictReport
    configuration: ConfigurationReport = field(default_factory=ConfigurationReport)
    health_check: HealthCheckReport | None = None
    last_probe: ProbeReport | None = None
    ready: bool = False
    not_ready_reason: str = "the worker is starting"
    instance_id: str = ""
    model_type: str = ""
    handlers: HandlersReport = field(default_factory=HandlersReport)
    custom_ping: PingReport | None = None
    ranks: tuple[RankReport, ...] = ()


class WorkerState(SnapshotHolder[StateSnapshot]):
    """Holder of the current :class:`StateSnapshot`."""

    def __init__(self, *, worker_version: str, pod_uid: str = "", clock: Clock | None = None) -> None:
        clock = clock or Clock()
        now = clock.wall()
        snapshot = StateSnapshot(
            stage=StageReport(name=Stage.IMPORTING, since=now),
            verdict=VerdictReport(state=Verdict.STARTING, reason=Reason.STARTING, since=now),
        )
        super().__init__(snapshot, worker_version=worker_version, pod_uid=pod_uid, clock=clock)
        self._last_heartbeat: float | None = None
        self._starting = False
        self.blocking_frame: Callable[[], str] = str
        """Returns the location of the main thread in a custom handler's code, or ""."""

    @property
    def probe_timeout(self) -> float:
        """Longest probe in seconds; the default until the configuration is resolved."""
        health_check = self._snapshot.health_check
        return health_check.timeout_seconds if health_check else float(DEFAULT_TIMEOUT_SECONDS)

    @property
    def is_registered(self) -> bool:
        """Whether the model has been registered with Dynamo. Stays true during the shutdown."""
        return self.stage in (Stage.SERVING, Stage.STOPPING)

    def enter_stage(self, name: Stage, detail: str = "") -> None:
        """Enter a stage. ``since`` changes only if the stage does."""
        current = self._snapshot.stage
        since = current.since if current.name == name else self._clock.wall()
        self.update(stage=StageReport(name=name, since=since, detail=detail[:2048]))

    def advance_load(self, stage: Stage) -> None:
        """Enter a later stage of the engine's load. The engine's processes report stages in any order."""
        with self._lock:
            current = self.stage
            loading = stage in _LOAD_STAGES and current in _LOAD_STAGES
            if loading and _LOAD_STAGES.index(stage) > _LOAD_STAGES.index(current):
                self.enter_stage(stage)

    def heartbeat(self, *, starting: bool = False) -> None:
        """Record that the main loop runs. Called several times per second once custom handlers may run on it.

        While the worker is ``starting``, its own code may block the loop, and only a custom handler that does
        so is reported.
        """
        self._starting = starting
        self._last_heartbeat = self._clock.monotonic()

    def stop_heartbeat(self) -> None:
        """The worker is stopping: missing heartbeats no longer count."""
        self._last_heartbeat = None

    def blocked_for(self) -> float:
        """Seconds since the last heartbeat of the main loop if the loop counts as blocked, else 0."""
        last = self._last_heartbeat
        if last is None:
            return 0.0
        silent = self._clock.monotonic() - last
        if silent <= self.probe_timeout + LOOP_GRACE_SECONDS or (
            self._starting and not self.blocking_frame()
        ):
            return 0.0
        return silent

    def readiness(self) -> tuple[bool, str]:
        if self.blocked_for():
            return False, "the worker's event loop is blocked"
        snapshot = self._snapshot
        return snapshot.ready, snapshot.not_ready_reason

    def report(self) -> WorkerReport:
        snapshot = self._snapshot
        ready, verdict, stage = snapshot.ready, snapshot.verdict, snapshot.stage
        if blocked := self.blocked_for():
            ready, frame = False, self.blocking_frame()
            if frame and self._starting:
                stage = stage.model_copy(update={"detail": f"a custom handler blocks the worker, {frame}"})
            if verdict.state != Verdict.DEAD:
                verdict = self._blocked_verdict(verdict, blocked, frame)
        return WorkerReport(
            worker_version=self._worker_version,
            pod_uid=self._pod_uid,
            instance_id=snapshot.instance_id,
            time=self._clock.wall(),
            started=snapshot.started,
            ready=ready,
            stage=stage,
            configuration=snapshot.configuration,
            health_check=snapshot.health_check,
            verdict=verdict,
            last_probe=snapshot.last_probe,
            model_type=snapshot.model_type,
            handlers=snapshot.handlers,
            custom_ping=snapshot.custom_ping,
            ranks=snapshot.ranks,
        )

    def _blocked_verdict(self, verdict: VerdictReport, seconds: float, frame: str) -> VerdictReport:
        cause = f" by a custom handler, {frame}" if frame else ""
        return VerdictReport(
            state=Verdict.STALLED,
            reason=Reason.ENGINE_STALLED,
            message=f"The worker's event loop is blocked{cause}. The worker cannot probe or answer requests.",
            since=self._clock.wall_of(self._clock.monotonic() - seconds).replace(microsecond=0),
            last_proof_of_life=verdict.last_proof_of_life,
        )

    @staticmethod
    def _without_volatile(snapshot: StateSnapshot) -> StateSnapshot:
        """Without the proof of life, which changes with every user request."""
        return replace(snapshot, verdict=snapshot.verdict.model_copy(update={"last_proof_of_life": None}))
