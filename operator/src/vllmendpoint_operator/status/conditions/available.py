"""``Available``: enough replicas are ready, and the frontend is ready."""

from collections.abc import Sequence

from vllmendpoint_api import Condition, Reason
from vllmendpoint_operator.errors import ConditionError
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed
from vllmendpoint_operator.status.component import Component, frontend_component, worker_components
from vllmendpoint_operator.status.component_diagnosis import diagnose_component
from vllmendpoint_operator.status.diagnosis.pod_diagnosis import PodDiagnosis
from vllmendpoint_operator.status.diagnosis.sentences import counted, quantities, quantity
from vllmendpoint_operator.status.routes import has_settled_worker

from .finding import Finding, false, previous_finding, true

__all__ = ["available"]


def available(endpoint: Endpoint, observed: Observed, problem: ConditionError | None) -> Finding:
    """``problem``: why the spec could not be applied."""
    workers = worker_components(endpoint, observed)
    if not endpoint.spec.replicas:
        return _scaled_to_zero(workers, endpoint.spec.paused)
    if lacking := [each for each in workers if each.ready_replicas < each.min_available]:
        return _too_few_replicas(endpoint, observed, lacking, problem)
    if (frontend := _unavailable_frontend(endpoint, observed, problem)) is not None:
        return false(frontend.reason, frontend.message)
    counts = ((each.ready_replicas, each.replicas, each.noun) for each in workers)
    return true(Reason.AVAILABLE, f"{quantities(counts)} ready.")


def _too_few_replicas(
    endpoint: Endpoint, observed: Observed, lacking: list[Component], problem: ConditionError | None
) -> Finding:
    # A new leader has no reports yet. The previous finding still holds for a worker that is not ready.
    pods = [pod for each in lacking for pod in each.pods]
    if any(pod.awaiting_first_report and pod.started and not pod.ready for pod in pods):
        previous = previous_finding(endpoint, Condition.AVAILABLE)
        if previous is not None and not previous.is_true:
            return previous
    diagnoses = [diagnose_component(each, problem, observed.now) for each in lacking]
    message = " ".join(
        f"{_count(each)} ready (minimum: {each.min_available}). {diagnosis.message}"
        for each, diagnosis in zip(lacking, diagnoses, strict=True)
    )
    diagnosis = next((each for each in diagnoses if each.reason is not Reason.STARTING), diagnoses[0])
    # The problem is None here, because the message above already contains it.
    frontend = _unavailable_frontend(endpoint, observed, None)
    if frontend is None or frontend.reason is Reason.STARTING:
        return false(diagnosis.reason, message)
    # A model may load for an hour, so a frontend that cannot start is reported meanwhile.
    reason = frontend.reason if diagnosis.reason is Reason.STARTING else diagnosis.reason
    return false(reason, f"{message} {frontend.message}")


def _unavailable_frontend(
    endpoint: Endpoint, observed: Observed, problem: ConditionError | None
) -> PodDiagnosis | None:
    """None if a frontend pod is ready or the endpoint has no frontend.

    A frontend without a route counts as starting, unless a replica has been ready for some seconds: its cause
    is that of the replicas.
    """
    frontend = frontend_component(endpoint, observed)
    if frontend is None or frontend.ready_replicas:
        return None
    diagnosis = diagnose_component(frontend, problem, observed.now)
    waiting = diagnosis.reason is Reason.NO_ROUTE and not has_settled_worker(observed)
    starting = waiting or diagnosis.reason is Reason.STARTING
    reason = Reason.STARTING if starting else Reason.FRONTEND_UNAVAILABLE
    message = f"{_count(frontend)} ready, so the endpoint accepts no requests. {diagnosis.message}"
    return PodDiagnosis(reason, message)


def _scaled_to_zero(workers: Sequence[Component], paused: bool) -> Finding:
    """``ScaledToZero`` if no pod is left except terminating ones."""
    left = sum(not pod.finished and not pod.terminating for each in workers for pod in each.pods)
    remaining = [each for each in workers if each.desired_replicas]
    if not left and not remaining:
        return true(Reason.SCALED_TO_ZERO, "The endpoint serves no requests because spec.replicas is 0.")
    scale = "The field spec.replicas is 0"
    if remaining:
        count = counted(remaining[0].desired_replicas, remaining[0].noun)
        scale += f", but the Deployment {remaining[0].name} still has {count}"
    if ready := sum(each.ready_replicas for each in workers):
        verb = "serves" if ready == 1 else "serve"
        return true(Reason.AVAILABLE, f"{scale}. {counted(ready, 'pod')} still {verb} requests.")
    if paused and remaining:
        return false(
            Reason.PAUSED,
            f"{scale} because spec.paused is true. {_unready(left)} "
            "Set spec.paused to false to scale it down.",
        )
    return false(Reason.PENDING, f"{scale}. {_unready(left)}")


def _unready(pods: int) -> str:
    if pods > 1:
        return f"{pods} pods exist, but none is ready."
    return "1 pod exists, but it is not ready." if pods else "No pod exists."


def _count(component: Component) -> str:
    return quantity(component.ready_replicas, component.replicas, component.noun)
