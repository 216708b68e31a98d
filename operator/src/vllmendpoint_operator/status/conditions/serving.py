"""``Serving``: clients get answers from every ready replica through every ready frontend.

A replica whose engine does not generate is the subject of ``Generating``, and a pod that does not start is
the subject of ``Available``.
"""

from collections.abc import Sequence
from typing import Final

from vllmendpoint_api import Condition, ConditionStatus, Reason, Stage
from vllmendpoint_operator.components import has_frontend, url
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed, Pod
from vllmendpoint_operator.status.diagnosis.sentences import (
    counted,
    pods_named,
    quantities,
    quantity,
    sentence,
)
from vllmendpoint_operator.status.kv_events import describe_missing_events, missing_events
from vllmendpoint_operator.status.routes import (
    FrontendRoutes,
    MissingRoute,
    ReadyWorkers,
    awaits_reports,
    frontend_routes,
    has_settled_worker,
    intersection,
    is_settled,
    quantity_by_role,
    ready_workers,
    serves,
)

from .finding import Finding, false, previous_finding, true, unknown

__all__ = ["routed_replicas", "serving"]

_ALONE: Final = "No prefill replica is ready, so the other replicas compute the prompts, too."


def serving(endpoint: Endpoint, observed: Observed) -> Finding:
    if not has_frontend(endpoint):
        return true(
            Reason.NO_FRONTEND,
            "The endpoint has no frontend because frontend.mode is None. Clients connect to the workers' "
            f"Service: {url(endpoint)}.",
        )
    pools = ready_workers(endpoint, observed)
    if not endpoint.spec.replicas and not any(workers.count for workers in pools):
        return unknown(Reason.SCALED_TO_ZERO, "The endpoint serves no requests because spec.replicas is 0.")
    started = [pod for pod in _frontends(observed) if pod.started]
    if not started and (stuck := _stuck_start(observed)):
        return false(Reason.NO_ROUTE, f"The endpoint answers no requests. {stuck}")
    if not started:
        return unknown(Reason.PENDING, "No frontend pod has started. See the condition Available.")
    # A new leader does not have all reports yet, so the previous finding of this generation holds.
    previous = previous_finding(endpoint, Condition.SERVING)
    if previous is not None and awaits_reports(observed):
        return previous
    reporting = [pod for pod in started if pod.has_report_port]
    if not reporting:
        return _outdated(started)
    return (
        _not_answering(reporting)
        or _no_route(endpoint, observed, reporting, pools)
        or _not_routed(observed, pools)
        or _unreachable(reporting)
        or _serving(endpoint, observed, reporting, pools)
    )


def routed_replicas(endpoint: Endpoint, observed: Observed) -> int:
    """Number of ready replicas that answer through every ready frontend that reports."""
    if not has_frontend(endpoint):
        return 0
    return intersection(_ready_routes(observed, ready_workers(endpoint, observed)[0]))


def _frontends(observed: Observed) -> list[Pod]:
    return [pod for pod in observed.frontends if not (pod.terminating or pod.finished)]


def _reporting_and_ready(observed: Observed) -> list[Pod]:
    return [
        pod
        for pod in _frontends(observed)
        if pod.ready and pod.stream.frontend is not None and not pod.stream.disconnected
    ]


def _ready_routes(observed: Observed, workers: ReadyWorkers) -> list[FrontendRoutes]:
    return [frontend_routes(pod, workers, observed.now) for pod in _reporting_and_ready(observed)]


def _outdated(frontends: list[Pod]) -> Finding:
    total = len(frontends)
    count = quantity(total, total, "frontend pod", "runs", "run")
    return unknown(
        Reason.FRONTEND_OUTDATED,
        f"{count} an earlier release that does not report its routes. Set spec.restartedAt to replace "
        "workers and frontends.",
    )


def _not_answering(reporting: list[Pod]) -> Finding | None:
    affected = [pod for pod in reporting if _is_unanswering(pod)]
    if not affected:
        return None
    pod = affected[0]
    others = sum(other.ready for other in reporting if other not in affected)
    effect = "Clients' requests go to the other frontends" if others else "The endpoint accepts no requests"
    return false(
        Reason.FRONTEND_NOT_ANSWERING,
        f"{quantity(len(affected), len(reporting), 'frontend pod')} not answering: {_silence(pod)} {effect}. "
        f"See the log of pod {pod.name}, or delete the pod to replace it.",
    )


def _is_unanswering(pod: Pod) -> bool:
    """A failed report stream alone may be a problem of the operator's network: the kubelet must agree."""
    if pod.stream.disconnected or pod.stream.silent:
        return not pod.ready
    report = pod.stream.frontend
    return report is not None and report.stage.name == Stage.SERVING and not report.answering


def _silence(pod: Pod) -> str:
    report = pod.stream.frontend
    if pod.stream.disconnected or pod.stream.silent or report is None:
        return f"pod {pod.name} responds neither to the kubelet's readiness probe nor to the operator."
    detail = f" {sentence(report.message)}" if report.message else ""
    return f"the HTTP server of pod {pod.name} does not respond.{detail}"


def _no_route(
    endpoint: Endpoint, observed: Observed, reporting: list[Pod], pools: Sequence[ReadyWorkers]
) -> Finding | None:
    usable = [pod for pod in reporting if serves(pod)]
    if not usable:
        if any(pod.ready and pod.stream.disconnected for pod in reporting):
            return None  # FrontendUnreachable
        if stuck := _stuck_start(observed):
            return false(Reason.NO_ROUTE, f"The endpoint answers no requests. {stuck}")
        return unknown(Reason.PENDING, "No frontend pod serves yet. See the condition Available.")
    workers = pools[0]  # without a prefill worker, they also compute the prompts
    routes = [frontend_routes(pod, workers, observed.now) for pod in usable]
    if any(each.count for each in routes if each.pod.ready):
        return None
    settled = has_settled_worker(observed) and all(is_settled(pod, observed.now) for pod in usable)
    if _is_first_start(endpoint) and not settled:
        waiting = "No frontend has a route to a replica" if workers.count else "No replica is ready"
        return unknown(Reason.PENDING, f"{waiting} yet.")
    return false(Reason.NO_ROUTE, f"The endpoint answers no requests: {_obstacle(routes, workers)}")


def _missing(observed: Observed, frontends: list[Pod], pools: Sequence[ReadyWorkers]) -> list[MissingRoute]:
    return [
        route
        for pod in frontends
        for workers in pools
        for route in frontend_routes(pod, workers, observed.now).missing
    ]


def _stuck_start(observed: Observed) -> str:
    """Why a frontend does not finish its start, as sentences, or "".

    Dynamo starts its HTTP server after it has listed the objects in which it discovers workers.
    """
    for pod in _frontends(observed):
        report = pod.stream.frontend
        if (
            report is not None
            and not pod.stream.disconnected
            and report.stage.name not in (Stage.SERVING, Stage.STOPPING)
            and is_settled(pod, observed.now)
        ):
            return (
                f"Frontend pod {pod.name} does not finish its start. Check that its ServiceAccount may list "
                "and watch EndpointSlices and DynamoWorkerMetadata, and see the log of the pod."
            )
    return ""


def _obstacle(routes: Sequence[FrontendRoutes], workers: ReadyWorkers) -> str:
    """Why no frontend has a route."""
    if not workers.count:
        return f"no {workers.noun} is ready. See the condition Available."
    if not workers.expected:
        return f"no ready {workers.noun} generates. See the condition Generating."
    frontends = f"none of {counted(len(routes), 'frontend')}"
    cause = next((missing.cause for each in routes for missing in each.missing), "")
    if not cause:
        cause = next(
            (
                sentence(each.pod.stream.frontend.message)
                for each in routes
                if each.pod.stream.frontend is not None and each.pod.stream.frontend.message
            ),
            "The first probes have not ended yet.",
        )
    if any(each.count for each in routes):
        return f"{frontends} is ready. See the condition Available."
    return f"{frontends} has a route to a ready replica. {cause}"


def _is_first_start(endpoint: Endpoint) -> bool:
    """Whether the endpoint has not served since it was created or scaled up from 0."""
    for entry in endpoint.status.conditions if endpoint.status is not None else ():
        if entry.type == Condition.SERVING:
            return entry.status == ConditionStatus.UNKNOWN
    return True


def _not_routed(observed: Observed, pools: Sequence[ReadyWorkers]) -> Finding | None:
    settled = [pod for pod in _reporting_and_ready(observed) if is_settled(pod, observed.now)]
    missing = _missing(observed, settled, pools)
    if not missing:
        return None
    affected = sorted({route.worker for route in missing if route.worker})
    if not affected:
        return false(Reason.NOT_ROUTED, missing[0].cause)
    route = next(route for route in missing if route.worker == affected[0])
    count = quantity_by_role(affected, pools, "does not answer", "do not answer")
    return false(
        Reason.NOT_ROUTED,
        f"{count} through every frontend ({pods_named(affected)}). {route.cause}",
    )


def _unreachable(reporting: list[Pod]) -> Finding | None:
    affected = [pod for pod in reporting if pod.ready and pod.stream.disconnected]
    if not affected:
        return None
    error = affected[0].stream.error or "the stream ended"
    return unknown(
        Reason.FRONTEND_UNREACHABLE,
        f"{quantity(len(affected), len(reporting), 'frontend pod')} unreachable: the operator receives no "
        f"report from port 9091 of pod {affected[0].name} ({error}), so its routes are unknown. Check that "
        "NetworkPolicies allow the operator to connect to it.",
    )


def _serving(
    endpoint: Endpoint, observed: Observed, reporting: list[Pod], pools: Sequence[ReadyWorkers]
) -> Finding:
    counts = [
        (intersection(_ready_routes(observed, each)), each.count, f"ready {each.noun}")
        for each in pools
        if each.count
    ]
    frontends = _reporting_and_ready(observed)
    total = max(len(_frontends(observed)), endpoint.spec.frontend.replicas)
    message = (
        f"{quantities(counts, 'answers', 'answer')} through {len(frontends)} of {counted(total, 'frontend')}."
    )
    if len(counts) < len(pools):
        message += f" {_ALONE}"
    # A frontend without any route is not ready. The Service sends clients to the others.
    unready = [pod for pod in reporting if serves(pod) and not pod.ready and is_settled(pod, observed.now)]
    cause = next((route.cause for route in _missing(observed, unready, pools)), "")
    cause = cause or _stuck_start(observed)
    message = f"{message} {cause}".rstrip()
    unreceived = [
        missing
        for pod in frontends
        if is_settled(pod, observed.now)
        for missing in missing_events(endpoint, observed, pod, pools)
    ]
    if unreceived:
        return true(Reason.KV_EVENTS_MISSING, f"{message} {describe_missing_events(unreceived, pools)}")
    return true(Reason.SERVING, message)
