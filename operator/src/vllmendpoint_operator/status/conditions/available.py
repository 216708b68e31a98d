"""``Available``: enough replicas are ready, and the frontend is ready."""

from vllmendpoint_api import Condition, Reason
from vllmendpoint_operator.errors import ConditionError
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed
from vllmendpoint_operator.status.component import Component, frontend_component, worker_component
from vllmendpoint_operator.status.component_diagnosis import diagnose_component
from vllmendpoint_operator.status.diagnosis.pod_diagnosis import PodDiagnosis
from vllmendpoint_operator.status.diagnosis.sentences import counted, quantity
from vllmendpoint_operator.status.routes import has_settled_worker

from .finding import Finding, false, previous_finding, true

__all__ = ["available"]


def available(endpoint: Endpoint, observed: Observed, problem: ConditionError | None) -> Finding:
    """``problem``: why the spec could not be applied."""
    workers = worker_component(endpoint, observed)
    if workers.replicas == 0:
        return _scaled_to_zero(workers, endpoint.spec.paused)
    if workers.ready_replicas < workers.min_available:
        return _too_few_replicas(endpoint, observed, workers, problem)
    if (frontend := _unavailable_frontend(endpoint, observed, problem)) is not None:
        return false(frontend.reason, frontend.message)
    return true(Reason.AVAILABLE, f"{_count(workers)} ready.")


def _too_few_replicas(
    endpoint: Endpoint, observed: Observed, workers: Component, problem: ConditionError | None
) -> Finding:
    # A new leader has no reports yet. The previous finding still holds for a worker that is not ready.
    if any(pod.awaiting_first_report and pod.started and not pod.ready for pod in workers.pods):
        previous = previous_finding(endpoint, Condition.AVAILABLE)
        if previous is not None and not previous.is_true:
            return previous
    diagnosis = diagnose_component(workers, problem, observed.now)
    message = f"{_count(workers)} ready (minimum: {workers.min_available}). {diagnosis.message}"
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


def _scaled_to_zero(workers: Component, paused: bool) -> Finding:
    """``ScaledToZero`` if no pod is left except terminating ones."""
    left = sum(not pod.finished and not pod.terminating for pod in workers.pods)
    if not left and not workers.desired_replicas:
        return true(Reason.SCALED_TO_ZERO, "The endpoint serves no requests because spec.replicas is 0.")
    scale = "The field spec.replicas is 0"
    if workers.desired_replicas:
        remaining = counted(workers.desired_replicas, workers.noun)
        scale += f", but the Deployment {workers.name} still has {remaining}"
    if ready := workers.ready_replicas:
        verb = "serves" if ready == 1 else "serve"
        return true(Reason.AVAILABLE, f"{scale}. {counted(ready, 'pod')} still {verb} requests.")
    if paused and workers.desired_replicas:
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
