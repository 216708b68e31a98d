"""The frontend's state, shared by the prober, the main event loop and the report server's thread."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from vllmendpoint_api import (
    AcceptedWorkers,
    FrontendReport,
    KVEventsReport,
    RouteReport,
    RouteState,
    Stage,
    StageReport,
)
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.serving.snapshots import MAX_WORD, Snapshot, SnapshotHolder

from .discovery import Discovery, Instance
from .kv_events.state import KVEvents
from .probing.routes import Route
from .settings import ProbeRules

__all__ = ["FrontendSnapshot", "FrontendState"]

_MAX_ROUTES: Final = 256
_MAX_ACCEPTED: Final = 64
_MAX_MODELS: Final = 64
_MAX_TEXT: Final = 2048

_STARTING: Final = "The frontend is starting."
_STOPPING: Final = "The frontend is shutting down."

_ORDER: Final = (RouteState.FAILING, RouteState.NOT_ACCEPTED, RouteState.PENDING, RouteState.ANSWERED)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendSnapshot(Snapshot):
    """The content of a report."""

    answering: bool = False
    reachable: bool = False
    """Whether there is a route to at least one worker."""
    message: str = _STARTING
    """Why the HTTP server does not respond, or why there is no route."""
    rules: ProbeRules = field(default_factory=ProbeRules)
    discovery: Discovery = field(default_factory=Discovery)
    routes: tuple[Route, ...] = ()
    kv_routing: bool = False
    """Whether the router selects workers by their KV events."""
    kv_events: Mapping[Instance, KVEvents] = field(default_factory=dict)
    """Of the workers that have answered a probe."""


class FrontendState(SnapshotHolder[FrontendSnapshot]):
    """Holder of the current :class:`FrontendSnapshot`, and what the report server needs of it."""

    def __init__(self, *, worker_version: str, pod_uid: str = "", clock: Clock | None = None) -> None:
        clock = clock or Clock()
        snapshot = FrontendSnapshot(stage=StageReport(name=Stage.IMPORTING, since=clock.wall()))
        super().__init__(snapshot, worker_version=worker_version, pod_uid=pod_uid, clock=clock)
        self._wall_times: dict[float, datetime] = {}
        """Of monotonic moments, so that a moment has the same wall time in each report."""

    @property
    def probe_timeout(self) -> float:
        return self._snapshot.rules.timeout

    def enter_stage(self, name: Stage) -> None:
        """Enter a stage. STOPPING is final."""
        with self._lock:
            if self.stage not in (name, Stage.STOPPING):
                self.update(stage=StageReport(name=name, since=self._clock.wall()))

    def blocked_for(self) -> float:
        """0: no code of a user runs in a frontend, so the main loop is not watched."""
        return 0.0

    def readiness(self) -> tuple[bool, str]:
        """Whether the frontend is ready, and if not, the reason on one line."""
        snapshot = self._snapshot
        if self.stage is Stage.STOPPING:
            return False, _STOPPING
        ready = self.stage is Stage.SERVING and snapshot.answering and snapshot.reachable
        return ready, "" if ready else snapshot.message or _STARTING

    def report(self) -> FrontendReport:
        snapshot = self._snapshot
        ready, reason = self.readiness()
        routes = sorted(snapshot.routes, key=lambda route: (_ORDER.index(route.state), route.instance))
        walls = self._wall_times_of(routes, snapshot.kv_events.values())
        return FrontendReport(
            worker_version=self._worker_version,
            pod_uid=self._pod_uid,
            time=self._clock.wall(),
            ready=ready,
            stage=snapshot.stage,
            answering=snapshot.answering,
            message=reason[:_MAX_TEXT],
            models=tuple(name[:MAX_WORD] for name in snapshot.discovery.models[:_MAX_MODELS]),
            probing=snapshot.rules.probing,
            accepted=_accepted(snapshot.discovery),
            routes=tuple(
                _route(route, snapshot.kv_events.get(route.instance), walls) for route in routes[:_MAX_ROUTES]
            ),
            kv_routing=snapshot.kv_routing,
        )

    def _wall_times_of(self, routes: Iterable[Route], kv_events: Iterable[KVEvents]) -> dict[float, datetime]:
        known, moments = self._wall_times, {events.since for events in kv_events}
        for route in routes:
            moments |= {route.since} if route.last_answer is None else {route.since, route.last_answer}
        walls = {moment: known.get(moment) or self._clock.wall_of(moment) for moment in moments}
        self._wall_times = walls
        return walls

    @staticmethod
    def _without_volatile(snapshot: FrontendSnapshot) -> FrontendSnapshot:
        """Without what changes with every probe."""
        routes = tuple(
            replace(route, last_answer=None, last_probe=None, failures=0, unaccepted_since=None)
            for route in snapshot.routes
        )
        kv_events = {
            instance: replace(events, last_check=None, failures=0)
            for instance, events in snapshot.kv_events.items()
        }
        return replace(snapshot, routes=routes, kv_events=kv_events)


def _route(route: Route, kv_events: KVEvents | None, walls: Mapping[float, datetime]) -> RouteReport:
    return RouteReport(
        instance_id=str(route.instance.id),
        namespace=route.instance.namespace[:MAX_WORD],
        state=route.state,
        message=route.message[:_MAX_TEXT],
        since=walls[route.since],
        last_answer=None if route.last_answer is None else walls[route.last_answer],
        kv_events=None
        if kv_events is None
        else KVEventsReport(
            state=kv_events.state, message=kv_events.message[:_MAX_TEXT], since=walls[kv_events.since]
        ),
    )


def _accepted(discovery: Discovery) -> tuple[AcceptedWorkers, ...]:
    rows = [
        AcceptedWorkers(namespace=namespace[:MAX_WORD], role=role[:MAX_WORD], workers=min(count, 1_000_000))
        for namespace, roles in sorted(discovery.accepted.items())
        for role, count in sorted(roles.items())
    ]
    return tuple(rows[:_MAX_ACCEPTED])
