"""Which ready replicas each frontend routes to, from the reports of both."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from vllmendpoint_api import FrontendReport, RouteReport, RouteState, Stage, Verdict
from vllmendpoint_operator.components import PREFILL, WORKER
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed, Pod

from .component import NOUNS
from .diagnosis.sentences import quantities, quantity, sentence

__all__ = [
    "FrontendRoutes",
    "MissingRoute",
    "ReadyWorkers",
    "awaits_reports",
    "frontend_routes",
    "has_settled_worker",
    "intersection",
    "is_settled",
    "quantity_by_role",
    "ready_workers",
    "serves",
    "settling_seconds",
]

_SETTLING: Final = timedelta(seconds=10)
"""Time from the readiness of a worker or frontend until a missing route is a problem: discovery and the first
probe take a moment."""
_RECHECK_SECONDS: Final = 2.0
_MAX_ROUTES: Final = 256
"""A report with this number of routes may be truncated."""
_PREFILL_ROLE: Final = "prefill"
"""Dynamo's worker type of prefill workers."""
_SERVING_VERDICTS: Final = frozenset({Verdict.GENERATING, Verdict.BUSY, Verdict.DISABLED})


@dataclass(frozen=True, slots=True)
class ReadyWorkers:
    """The ready replicas of one role, by what their reports contain.

    ``Generating`` reports those that do not generate.
    """

    component: str
    """``worker`` or ``prefill``"""
    identified: dict[str, Pod]
    """Instance ID -> pod."""
    unidentified: tuple[Pod, ...]
    """Without an instance ID: workers of earlier releases, and workers without a report."""
    not_generating: tuple[Pod, ...]

    @property
    def noun(self) -> str:
        """What a message calls one of them, in the singular and without "ready"."""
        return NOUNS[self.component]

    @property
    def expected(self) -> tuple[Pod, ...]:
        """The replicas that a frontend must have a route to."""
        return (*self.identified.values(), *self.unidentified)

    @property
    def count(self) -> int:
        return len(self.expected) + len(self.not_generating)


@dataclass(frozen=True, slots=True)
class MissingRoute:
    """A settled ready replica that does not answer through a frontend."""

    worker: str
    """Name of the pod; empty if only the number of accepted replicas is known."""
    cause: str
    """Complete sentences: the pods, the cause, the effect and the remedy."""


@dataclass(frozen=True, slots=True)
class FrontendRoutes:
    """The routes of one frontend to the ready replicas."""

    pod: Pod
    answered: frozenset[str]
    """Names of the identified replicas that answer through this frontend."""
    unidentified: int
    """Number of the other replicas that the frontend accepts."""
    missing: tuple[MissingRoute, ...]

    @property
    def count(self) -> int:
        return len(self.answered) + self.unidentified


def ready_workers(endpoint: Endpoint, observed: Observed) -> tuple[ReadyWorkers, ...]:
    """Of the workers and, with ``spec.prefill``, of the prefill workers."""
    workers = _ready_workers(WORKER, observed.workers)
    return (
        (workers,) if endpoint.spec.prefill is None else (workers, _ready_workers(PREFILL, observed.prefill))
    )


def _ready_workers(component: str, pods: Iterable[Pod]) -> ReadyWorkers:
    identified, unidentified, not_generating = {}, [], []
    for pod in pods:
        if not pod.ready:
            continue
        report = pod.stream.report
        if report is not None and report.verdict.state not in _SERVING_VERDICTS:
            not_generating.append(pod)
        elif report is not None and report.instance_id:
            identified[report.instance_id] = pod
        else:
            unidentified.append(pod)
    return ReadyWorkers(component, identified, tuple(unidentified), tuple(not_generating))


def frontend_routes(pod: Pod, workers: ReadyWorkers, now: datetime) -> FrontendRoutes:
    """``pod``: a frontend with a report."""
    report = pod.stream.frontend
    assert report is not None, "the frontend has a report"
    by_id = {route.instance_id: route for route in report.routes}
    identified = workers.identified if report.probing else {}
    answered = frozenset(
        worker.name
        for instance, worker in identified.items()
        if instance in by_id and by_id[instance].state == RouteState.ANSWERED
    )
    others = len(workers.expected) - len(identified)
    known = sum(1 for instance in identified if _is_accepted(by_id.get(instance)))
    accepted = sum(entry.workers for entry in report.accepted if _is_of(workers, entry.role)) - known
    accepted = max(0, accepted)
    missing = [
        MissingRoute(worker.name, cause)
        for instance, worker in identified.items()
        if is_settled(worker, now)
        and (cause := _cause(pod.name, worker.name, report, by_id.get(instance))) is not None
    ]
    if accepted < others and all(is_settled(worker, now) for worker in workers.expected):
        missing.append(MissingRoute("", _too_few_accepted(pod.name, workers.noun, accepted, others)))
    return FrontendRoutes(pod, answered, min(accepted, others), tuple(missing))


def _is_of(workers: ReadyWorkers, role: str) -> bool:
    """``role``: Dynamo's worker type."""
    return (role == _PREFILL_ROLE) == (workers.component == PREFILL)


def serves(frontend: Pod) -> bool:
    """Whether its HTTP server runs, by its newest report."""
    report = frontend.stream.frontend
    return not frontend.stream.disconnected and report is not None and report.stage.name == Stage.SERVING


def awaits_reports(observed: Observed) -> bool:
    """Whether a frontend or a ready worker has not sent its first report to this operator yet."""
    return any(
        pod.awaiting_first_report and pod.started for pod in observed.frontends if pod.has_report_port
    ) or any(pod.awaiting_first_report and pod.ready for pod in observed.all_workers)


def is_settled(pod: Pod, now: datetime) -> bool:
    """Whether the pod has been ready, or a frontend has served, long enough for its routes to exist."""
    return _remaining(_since(pod), now) is None


def has_settled_worker(observed: Observed) -> bool:
    """Whether a frontend must have a route, because a replica has been ready long enough. Prefill workers do
    not matter: without one, a decode worker serves alone.
    """
    return any(pod.ready and is_settled(pod, observed.now) for pod in observed.workers)


def settling_seconds(observed: Observed) -> float | None:
    """Seconds until the next judgement that no event triggers; None if there is none.

    It concerns routes of a pod that has become ready, and a frontend that the kubelet finds unready although
    its newest report is positive: its heartbeat may be missing soon.
    """
    frontends = [pod for pod in observed.frontends if pod.has_report_port]
    if not frontends:
        return None
    pods = [pod for pod in (*observed.all_workers, *frontends) if not pod.terminating]
    remaining = (_remaining(_since(pod), observed.now) for pod in pods)
    found = [seconds for seconds in remaining if seconds is not None]
    if any(_contradicts_kubelet(pod) for pod in frontends if not pod.terminating):
        found.append(_RECHECK_SECONDS)
    return min(found, default=None)


def _contradicts_kubelet(pod: Pod) -> bool:
    report, stream = pod.stream.frontend, pod.stream
    return report is not None and report.ready and not pod.ready and stream.connected and not stream.silent


def _since(pod: Pod) -> datetime | None:
    report = pod.stream.frontend
    if pod.ready or report is None:
        return pod.ready_since
    # A frontend without a route is not ready.
    return report.stage.since if report.stage.name != Stage.STOPPING else None


def _remaining(since: datetime | None, now: datetime) -> float | None:
    # The clocks of nodes may differ by some seconds.
    if since is None or abs(now - since) >= _SETTLING:
        return None
    return (since + _SETTLING - now).total_seconds()


def _is_accepted(route: RouteReport | None) -> bool:
    return route is not None and route.state != RouteState.NOT_ACCEPTED


def _cause(frontend: str, worker: str, report: FrontendReport, route: RouteReport | None) -> str | None:
    """None if the worker answers, or its first probe has not ended."""
    if route is None:
        return None if len(report.routes) >= _MAX_ROUTES else _not_discovered(frontend, worker)
    if route.state == RouteState.NOT_ACCEPTED:
        roles = {row.role for row in report.accepted if row.namespace == route.namespace and row.workers}
        if roles == {_PREFILL_ROLE}:
            return (
                f"Frontend pod {frontend} sends no requests to pod {worker}, because no replica of the same "
                "revision decodes. See the condition Available."
            )
        return (
            f"Frontend pod {frontend} sends no requests to pod {worker}, because the model card of the pod "
            "differs from that of the other replicas of its Dynamo namespace. Check that all replicas load "
            f"the same model files and options, then delete pod {worker}."
        )
    if route.state == RouteState.FAILING:
        detail = f" {sentence(route.message)}" if route.message else ""
        return (
            f"The probes that frontend pod {frontend} sends to pod {worker} fail.{detail} Clients' requests "
            "on this route may fail too. Check the NetworkPolicies between the pods, and their nodes."
        )
    return None


def _not_discovered(frontend: str, worker: str) -> str:
    return (
        f"Frontend pod {frontend} has not discovered pod {worker}, so it sends no requests to it. Check that "
        "the frontend's ServiceAccount may watch EndpointSlices and DynamoWorkerMetadata."
    )


def _too_few_accepted(frontend: str, noun: str, accepted: int, total: int) -> str:
    count = quantity(accepted, total, f"ready {noun}")
    return (
        f"{count} accepted by frontend pod {frontend}, which sends no requests to the others. Check that all "
        "replicas load the same model files and options, and that the frontend's ServiceAccount may watch "
        "EndpointSlices and DynamoWorkerMetadata."
    )


def quantity_by_role(
    names: Collection[str], pools: Sequence[ReadyWorkers], singular: str, plural: str
) -> str:
    """``1 of 2 ready replicas and 1 of 1 ready prefill replica do not answer``, for pods of these names."""
    counts = ((sum(pod.name in names for pod in each.expected), each.count, each.noun) for each in pools)
    return quantities(
        [(count, total, f"ready {noun}") for count, total, noun in counts if count], singular, plural
    )


def intersection(routes: Iterable[FrontendRoutes]) -> int:
    """Number of ready replicas that answer through all of these frontends."""
    found = list(routes)
    if not found:
        return 0
    answered = frozenset.intersection(*(each.answered for each in found))
    return len(answered) + min(each.unidentified for each in found)
