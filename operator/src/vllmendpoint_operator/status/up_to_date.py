"""``UpToDate``: all replicas run the current revision."""

from typing import Any

from vllmendpoint_api import FrontendMode, Reason
from vllmendpoint_operator.model import Endpoint, Observed, Pod
from vllmendpoint_operator.plan.frontend import frontend_name
from vllmendpoint_operator.plan.workload import deployment_name

from .available import not_created
from .conditions import Finding, false, true
from .why import Cause, causes, worst

__all__ = ["up_to_date", "updated_replicas"]


def updated_replicas(endpoint: Endpoint, observed: Observed) -> int:
    deployment = observed.child("Deployment", deployment_name(endpoint))
    if deployment is None or not _seen(deployment):
        return 0
    return int((deployment.get("status") or {}).get("updatedReplicas", 0))


def up_to_date(endpoint: Endpoint, observed: Observed) -> Finding:
    wanted = [(deployment_name(endpoint), endpoint.spec.replicas, "replicas")]
    if endpoint.spec.frontend.mode == FrontendMode.MANAGED:
        wanted.append((frontend_name(endpoint), endpoint.spec.frontend.replicas, "frontend pods"))
    for name, replicas, what in wanted:
        deployment = observed.child("Deployment", name)
        if deployment is None:
            return false(Reason.ROLLING_OUT, f"the Deployment {name} is not there yet.")
        status = deployment.get("status") or {}
        updated = int(status.get("updatedReplicas", 0))
        total = int(status.get("replicas", 0))
        if not _seen(deployment) or updated < replicas or total > updated:
            old = max(0, total - updated)
            detail = f", {old} of an older one left" if old else ""
            counts = f"{updated} of {replicas} {what} run the current revision{detail}"
            pods = observed.workers if what == "replicas" else observed.frontends
            serving = sum(pod.ready for pod in pods)
            # Where nothing serves, Available says why.
            if serving and _seen(deployment) and (stop := _stop(endpoint, observed, name, pods, updated)):
                return false(
                    Reason.ROLLOUT_STOPPED,
                    f"{counts}; the rollout waits, {serving} of {replicas} serve on: {stop.message}",
                )
            return false(Reason.ROLLING_OUT, f"{counts}.")
    return true(Reason.UP_TO_DATE, "All replicas run the current revision.")


def _stop(
    endpoint: Endpoint, observed: Observed, name: str, pods: tuple[Pod, ...], updated: int
) -> Cause | None:
    """What keeps the newest pods from being ready; None while they are on their way.

    A replica that does not become ready takes up what ``maxUnavailable`` allows: no other is replaced.
    """
    budget = endpoint.spec.worker.startup_timeout_seconds
    newest = _newest(pods) if updated else []
    leaving = [pod for pod in pods if pod.terminating]
    cause = worst([*causes([*newest, *leaving], budget).values(), not_created(observed, name)])
    return cause if cause is not None and cause.reason is not Reason.STARTING else None


def _newest(pods: tuple[Pod, ...]) -> list[Pod]:
    """Those of the ReplicaSet that made a pod last: the current revision's, where it has any."""
    living = [pod for pod in pods if pod.phase != "Failed" and not pod.terminating]
    if not living:
        return []
    # In whole seconds: of those made in the same one, it is the one that is not ready yet.
    last = max(living, key=lambda pod: (str(pod.obj["metadata"].get("creationTimestamp", "")), not pod.ready))
    return [pod for pod in living if _template(pod) == _template(last)]


def _template(pod: Pod) -> str:
    return str((pod.obj["metadata"].get("labels") or {}).get("pod-template-hash", ""))


def _seen(deployment: dict[str, Any]) -> bool:
    """The Deployment controller has looked at the newest spec."""
    observed = int((deployment.get("status") or {}).get("observedGeneration", -1))
    return observed >= int(deployment["metadata"].get("generation", 0))
