"""What the worker says of itself, shared by the main event loop and the report server's thread.

One frozen :class:`Facts`, replaced under a lock; the report is made from it when it is asked for, so that it
is true at that moment: where the main loop no longer beats, the report says so although nobody could update
it.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

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

__all__ = ["LOOP_GRACE_SECONDS", "Board", "Facts"]

LOOP_GRACE_SECONDS: Final = 3.0
"""The main loop is called blocked when it has not beaten for the probe's timeout and this."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the report is made of."""

    stage: StageReport
    verdict: VerdictReport
    configuration: ConfigurationReport = field(default_factory=ConfigurationReport)
    health_check: HealthCheckReport | None = None
    last_probe: ProbeReport | None = None
    ready: bool = False
    why_not_ready: str = "the worker is starting"
    started: bool = False
    model_type: str = ""
    handlers: HandlersReport = field(default_factory=HandlersReport)
    custom_ping: PingReport | None = None
    ranks: tuple[RankReport, ...] = ()


class Board:
    """Thread-safe holder of the current :class:`Facts`.

    ``subscribe`` callbacks are called from whichever thread changed something: they must only hand over to
    their own loop.
    """

    def __init__(self, *, worker_version: str, pod_uid: str = "", clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._worker_version = worker_version[:128]
        self._pod_uid = pod_uid[:128]
        self._lock = threading.RLock()  # the handler of a signal updates too, in the middle of anything
        self._subscribers: list[Callable[[], None]] = []
        self._last_beat: float | None = None
        self._starting = False
        self.culprit: Callable[[], str] = str
        """Where the main thread is, if it is in a custom handler's code: asked where the loop is blocked."""
        now = self._clock.wall()
        self._facts = Facts(
            stage=StageReport(name=Stage.IMPORTING, since=now),
            verdict=VerdictReport(state=Verdict.STARTING, reason=Reason.STARTING, since=now),
        )

    @property
    def facts(self) -> Facts:
        return self._facts

    def subscribe(self, callback: Callable[[], None]) -> None:
        with self._lock:
            self._subscribers.append(callback)

    def update(self, **changes: Any) -> None:
        """Replace fields of the facts; subscribers hear of it where more than the proof of life changed."""
        with self._lock:
            before = self._facts
            self._facts = replace(before, **changes)
            changed = _loud(self._facts) != _loud(before)
            subscribers = list(self._subscribers) if changed else []
        for callback in subscribers:
            callback()

    def stage(self, name: Stage, detail: str = "") -> None:
        """Enter a stage; ``since`` moves only with the name."""
        current = self._facts.stage
        since = current.since if current.name == name else self._clock.wall()
        self.update(stage=StageReport(name=name, since=since, detail=detail[:2048]))

    def beat(self, *, starting: bool = False) -> None:
        """The main loop lives. Called several times a second once customer code may run on it. While it is
        ``starting``, the worker's own code may block it: only a custom handler that blocks it is reported.
        """
        self._starting = starting
        self._last_beat = self._clock.monotonic()

    def rest(self) -> None:
        """The main loop beats no more, on purpose: the worker is stopping."""
        self._last_beat = None

    def blocked_for(self) -> float:
        """Seconds since the main loop last beat, where that is too long; else 0."""
        beat = self._last_beat
        if beat is None:
            return 0.0
        health_check = self._facts.health_check
        timeout = health_check.timeout_seconds if health_check else float(DEFAULT_TIMEOUT_SECONDS)
        silent = self._clock.monotonic() - beat
        if silent <= timeout + LOOP_GRACE_SECONDS or (self._starting and not self.culprit()):
            return 0.0
        return silent

    def readiness(self) -> tuple[bool, str]:
        if self.blocked_for():
            return False, "the worker's own event loop is blocked"
        facts = self._facts
        return facts.ready, facts.why_not_ready

    def report(self) -> WorkerReport:
        facts = self._facts
        ready, verdict, stage = facts.ready, facts.verdict, facts.stage
        if blocked := self.blocked_for():
            ready, where = False, self.culprit()
            if where and self._starting:
                stage = stage.model_copy(update={"detail": f"a custom handler blocks the worker, {where}"})
            if verdict.state != Verdict.DEAD:
                verdict = VerdictReport(
                    state=Verdict.STALLED,
                    reason=Reason.ENGINE_STALLED,
                    message="The worker's own event loop is blocked"
                    f"{f' by a custom handler, {where}' if where else ''}: nothing can be asked or answered.",
                    since=self._clock.wall_of(self._clock.monotonic() - blocked).replace(microsecond=0),
                    last_proof_of_life=verdict.last_proof_of_life,
                )
        return WorkerReport(
            worker_version=self._worker_version,
            pod_uid=self._pod_uid,
            time=self._clock.wall(),
            started=facts.started,
            ready=ready,
            stage=stage,
            configuration=facts.configuration,
            health_check=facts.health_check,
            verdict=verdict,
            last_probe=facts.last_probe,
            model_type=facts.model_type,
            handlers=facts.handlers,
            custom_ping=facts.custom_ping,
            ranks=facts.ranks,
        )


def _loud(facts: Facts) -> Facts:
    """The facts without what changes with every user request: that goes out with the next line."""
    return replace(facts, verdict=facts.verdict.model_copy(update={"last_proof_of_life": None}))
