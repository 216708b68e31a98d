"""Workers whose engines generate, but whose KV caches are not transferred, from the reports of frontends.

With ``spec.prefill``, a frontend probes each worker through a worker of the other role. A worker's own health
check does not transfer a KV cache, so it cannot detect that.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from vllmendpoint_api import FrontendReport, Reason, RouteState, Verdict, names
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed, Pod

from .routes import awaits_reports, is_settled, serves

__all__ = ["failed_transfers"]

_USABLE: Final = frozenset({Verdict.GENERATING, Verdict.BUSY})
"""Verdicts of a worker of the other role that could be a partner."""


def failed_transfers(endpoint: Endpoint, observed: Observed) -> dict[str, str]:
    """Name of a pod -> what a frontend reports about its probes of the pod; may be empty.

    Contains the ready workers that generate by their own health check while all frontends report their routes
    as failing, although a worker of the other role is ready and generates.
    """
    if endpoint.spec.prefill is None:
        return {}
    if awaits_reports(observed):  # a new leader does not have all reports yet
        return dict(_previous(endpoint))
    reports = [
        pod.stream.frontend
        for pod in observed.frontends
        if not (pod.terminating or pod.finished) and serves(pod) and pod.stream.frontend is not None
    ]
    found = {}
    for pods, others in ((observed.workers, observed.prefill), (observed.prefill, observed.workers)):
        partners = {_revision(pod) for pod in others if pod.ready and _verdict(pod) in _USABLE}
        for pod in pods:
            # Workers of different revisions transfer nothing.
            is_candidate = pod.ready and _verdict(pod) is Verdict.GENERATING and _revision(pod) in partners
            if is_candidate and is_settled(pod, observed.now):
                message = _failure(pod, reports)
                if message is not None:
                    found[pod.name] = message
    return found


def _previous(endpoint: Endpoint) -> Iterator[tuple[str, str]]:
    for worker in endpoint.status.workers if endpoint.status is not None else ():
        if worker.reason == Reason.TRANSFER_FAILED:
            yield worker.name, worker.message


def _failure(pod: Pod, reports: Iterable[FrontendReport]) -> str | None:
    """The message of the first frontend if all of them report the route to the pod as failing."""
    report = pod.stream.report
    instance = report.instance_id if report is not None else ""
    messages = []
    for frontend in reports:
        route = next((route for route in frontend.routes if instance and route.instance_id == instance), None)
        if route is None or route.state != RouteState.FAILING or not frontend.probing:
            return None
        messages.append(route.message)
    return messages[0] if messages else None


def _verdict(pod: Pod) -> Verdict | None:
    report = pod.stream.report
    return None if report is None or pod.stream.disconnected else Verdict(report.verdict.state)


def _revision(pod: Pod) -> str:
    return str((pod.obj["metadata"].get("labels") or {}).get(names.LABEL_REVISION, ""))
