"""``status.frontends``: one entry per frontend pod, the least healthy first."""

from typing import Final

from vllmendpoint_api import MAX_FRONTENDS_IN_STATUS, FrontendStatus, Reason
from vllmendpoint_operator.components import FRONTEND_STARTUP_SECONDS
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed, Pod

from .conditions.finding import timestamp
from .diagnosis.pod_diagnosis import PodDiagnosis
from .diagnosis.pods import diagnose_pods
from .kv_events import describe_missing_events, missing_events
from .routes import FrontendRoutes, awaits_reports, frontend_routes, is_settled, ready_workers

__all__ = ["frontend_statuses"]

_MAX_MESSAGE: Final = 1024
"""Characters, as the CRD allows."""


def frontend_statuses(endpoint: Endpoint, observed: Observed) -> tuple[FrontendStatus, ...]:
    """At most MAX_FRONTENDS_IN_STATUS entries, without terminating and finished pods."""
    previous = {entry.name: entry for entry in endpoint.status.frontends} if endpoint.status else {}
    diagnoses = diagnose_pods(observed.frontends, FRONTEND_STARTUP_SECONDS)
    entries = [
        _frontend_status(endpoint, pod, previous.get(pod.name), observed, diagnoses.get(pod.name))
        for pod in observed.frontends
        if not pod.terminating and not pod.finished
    ]
    entries.sort(key=lambda entry: (entry.ready, not entry.reason, entry.name))
    return tuple(entries[:MAX_FRONTENDS_IN_STATUS])


def _frontend_status(
    endpoint: Endpoint,
    pod: Pod,
    previous: FrontendStatus | None,
    observed: Observed,
    diagnosis: PodDiagnosis | None,
) -> FrontendStatus:
    if previous is not None and pod.started and pod.has_report_port and awaits_reports(observed):
        # A new leader does not have all reports yet, so the previous entry still holds.
        return previous.model_copy(update={"ready": pod.ready, "restart_count": pod.restarts})
    routes: list[FrontendRoutes] = []
    if pod.running and pod.stream.frontend is not None and not pod.stream.disconnected:
        pools = ready_workers(endpoint, observed)
        routes = [frontend_routes(pod, workers, observed.now) for workers in pools]
    problem = (_problem(endpoint, pod, routes, observed) if pod.ready else diagnosis) or None
    reason = problem.reason.value if problem is not None else ""
    since = timestamp(observed.now)
    if previous is not None and (previous.ready, previous.reason) == (pod.ready, reason):
        since = previous.last_transition_time
    return FrontendStatus(
        name=pod.name,
        node_name=pod.node,
        ready=pod.ready,
        routed_replicas=routes[0].count if routes else 0,
        reason=reason,
        message=problem.message[:_MAX_MESSAGE] if problem is not None else "",
        restart_count=pod.restarts,
        last_transition_time=since,
    )


def _problem(
    endpoint: Endpoint, pod: Pod, routes: list[FrontendRoutes], observed: Observed
) -> PodDiagnosis | None:
    """What is wrong with a ready frontend."""
    report = pod.stream.frontend
    if not pod.has_report_port:
        return PodDiagnosis(
            Reason.FRONTEND_OUTDATED,
            f"Pod {pod.name} runs an earlier release that does not report its routes. Set spec.restartedAt "
            "to replace workers and frontends.",
        )
    if pod.stream.disconnected:
        return PodDiagnosis(
            Reason.FRONTEND_UNREACHABLE,
            f"The operator receives no report from port 9091 of pod {pod.name} "
            f"({pod.stream.error or 'the stream ended'}).",
        )
    if report is not None and not report.answering:
        return PodDiagnosis(
            Reason.FRONTEND_NOT_ANSWERING, f"The HTTP server of pod {pod.name} does not respond."
        )
    missing = [route for each in routes for route in each.missing]
    if missing and is_settled(pod, observed.now):
        return PodDiagnosis(Reason.NOT_ROUTED, missing[0].cause)
    pools = ready_workers(endpoint, observed)
    unreceived = list(missing_events(endpoint, observed, pod, pools))
    if unreceived and is_settled(pod, observed.now):
        return PodDiagnosis(Reason.KV_EVENTS_MISSING, describe_missing_events(unreceived, pools))
    return None
