"""Why pods of a component are missing or not ready."""

from datetime import datetime, timedelta
from typing import Final

from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import ConditionError
from vllmendpoint_operator.observe.snapshot import Pod

from .component import Component
from .diagnosis.pod_diagnosis import PodDiagnosis, most_severe
from .diagnosis.pods import diagnose_pod, diagnose_pods
from .diagnosis.rejected_pods import remedy
from .diagnosis.sentences import one_line

__all__ = ["diagnose_component", "diagnose_missing_pods"]

_REPLACED_WITHIN: Final = timedelta(minutes=5)
"""Maximum time between the end of a pod and the creation of its replacement."""


def diagnose_component(component: Component, problem: ConditionError | None, now: datetime) -> PodDiagnosis:
    """The most severe problem of the newest pods, or of missing pods; for a component that is not ready.

    ``problem``: why the spec could not be applied.
    """
    unfinished = [pod for pod in component.pods if not pod.finished]
    newest = component.current_pods or unfinished
    leaving = [pod for pod in unfinished if pod.terminating and pod not in newest]
    diagnosis = most_severe(diagnose_pods([*newest, *leaving], component.startup_timeout_seconds).values())
    if diagnosis is None or _lacks_pods(component, unfinished):
        missing = diagnose_missing_pods(component, problem)
        diagnosis = missing if diagnosis is None or missing.reason is not Reason.STARTING else diagnosis
    replaced = next(
        (diagnose_pod(pod, component.startup_timeout_seconds) for pod in _replaced_pods(component.pods, now)),
        None,
    )
    if replaced is None:
        return diagnosis
    if diagnosis.reason is Reason.STARTING:
        message = f"{replaced.message} Its replacement is not ready yet. {diagnosis.message}"
        return PodDiagnosis(replaced.reason, message)
    message = f"{diagnosis.message} An earlier pod was removed from its node. {replaced.message}"
    return PodDiagnosis(diagnosis.reason, message)


def diagnose_missing_pods(component: Component, problem: ConditionError | None) -> PodDiagnosis:
    """Why the Deployment has too few pods: the spec is not applied, or the API server rejects the pods."""
    if problem is not None and component.desired_replicas < component.replicas:
        error = one_line(problem.message)
        action = f"{'create' if component.deployment is None else 'scale up'} the Deployment {component.name}"
        if problem.reason is Reason.PENDING:
            return PodDiagnosis(Reason.STARTING, f"The operator cannot {action} yet: {error}.")
        return PodDiagnosis(
            Reason.NOT_READY, f"The operator does not {action} until this error is fixed: {error}."
        )
    error = component.replica_failure
    if not error:
        return PodDiagnosis(
            Reason.STARTING, f"The pods of the Deployment {component.name} are being created."
        )
    return PodDiagnosis(
        Reason.POD_CREATION_FAILED,
        f"Kubernetes cannot create pods of the Deployment {component.name}: {one_line(error)}. "
        f"{remedy(error, component.kind, component.container_names)}",
    )


def _lacks_pods(component: Component, unfinished: list[Pod]) -> bool:
    current = unfinished if component.current_pods is None else component.current_pods
    return min(len(unfinished), len(current)) < component.replicas


def _replaced_pods(pods: tuple[Pod, ...], now: datetime) -> list[Pod]:
    """Finished pods, the newest first, that a pod that is not ready yet replaces or is going to replace.

    Kubernetes keeps finished pods for weeks, so only those count that ended at most 5 minutes before the
    creation of their replacement, or before ``now`` if it does not exist yet.
    """
    not_ready = [pod for pod in pods if not (pod.finished or pod.ready or pod.terminating)]
    times = [datetime.fromisoformat(created) for pod in not_ready if (created := _created_at(pod))]
    if len(times) < len(not_ready) or not not_ready:
        times.append(now)
    finished = [pod for pod in pods if pod.finished and not pod.terminating and _ended_near(pod, times)]
    return sorted(finished, key=_ended_at, reverse=True)


def _ended_near(pod: Pod, times: list[datetime]) -> bool:
    if not (ended := _ended_at(pod)):
        return True
    return any(abs(time - datetime.fromisoformat(ended)) <= _REPLACED_WITHIN for time in times)


def _created_at(pod: Pod) -> str:
    return str(pod.obj["metadata"].get("creationTimestamp") or "")


def _ended_at(pod: Pod) -> str:
    """Time of the last change of the pod's conditions."""
    return max((c.get("lastTransitionTime") or "" for c in pod.status.get("conditions") or []), default="")
