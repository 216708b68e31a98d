"""``Available``: enough replicas are ready, and the frontend is up."""

from typing import Any

from vllmendpoint_api import FrontendMode, Reason
from vllmendpoint_operator.errors import PlanError
from vllmendpoint_operator.model import Endpoint, Observed
from vllmendpoint_operator.plan.disruption import required
from vllmendpoint_operator.plan.frontend import frontend_name
from vllmendpoint_operator.plan.workload import deployment_name

from .cause import one_line
from .conditions import Finding, false, true
from .why import Cause, causes, why, worst

__all__ = ["available", "not_created"]


def available(endpoint: Endpoint, observed: Observed, problem: PlanError | None) -> Finding:
    """``problem``: why the spec could not be applied."""
    replicas = endpoint.spec.replicas
    if replicas == 0:
        return true(Reason.SCALED_TO_ZERO, "replicas is 0: nothing is served, as asked.")
    ready = sum(pod.ready for pod in observed.workers)
    needed = required(replicas, endpoint.spec.strategy.rolling_update)
    counts = f"{ready} of {replicas} replicas ready, {needed} needed"
    if ready < needed:
        budget = endpoint.spec.worker.startup_timeout_seconds
        cause = _cause(endpoint, observed, problem, budget)
        return false(cause.reason, f"{counts}: {cause.message}")
    if endpoint.spec.frontend.mode == FrontendMode.MANAGED and not any(
        pod.ready for pod in observed.frontends
    ):
        down = worst(causes(observed.frontends, 120).values())
        down = down or not_created(observed, frontend_name(endpoint), problem)
        # While it starts, it is the start that goes on, as with workers.
        reason = Reason.STARTING if down.reason is Reason.STARTING else Reason.FRONTEND_UNAVAILABLE
        return false(reason, f"the frontend is not ready: {down.message}")
    return true(Reason.AVAILABLE, f"{ready} of {replicas} replicas ready.")


def _cause(endpoint: Endpoint, observed: Observed, problem: PlanError | None, budget: int) -> Cause:
    """What stands in the way of the pods that are there; else of those that are not."""
    living = [pod for pod in observed.workers if pod.phase != "Failed"]
    cause = worst(causes(living, budget).values())
    if cause is None or len(living) < endpoint.spec.replicas:
        lacking = not_created(observed, deployment_name(endpoint), problem)
        cause = lacking if cause is None or lacking.reason is not Reason.STARTING else cause
    # Kubernetes keeps a pod that was taken off its node, as a record: it tells why there is a new one.
    gone = next((pod for pod in observed.workers if pod.phase == "Failed" and not pod.terminating), None)
    before = why(gone, budget) if gone is not None else None
    if before is None:
        return cause
    if cause.reason is Reason.STARTING:
        return Cause(before.reason, f"{before.message} In its place: {cause.message}")
    return Cause(cause.reason, f"{cause.message} Before: {before.message}")


def not_created(observed: Observed, name: str, problem: PlanError | None = None) -> Cause:
    """Why the Deployment ``name`` has fewer pods than it wants, as its controller says, or is not there."""
    deployment = observed.child("Deployment", name)
    if deployment is None and problem is not None:
        said = one_line(problem.message)
        if problem.reason is Reason.PENDING:
            return Cause(Reason.STARTING, f"its pods are not made yet: {said}.")
        return Cause(Reason.NOT_READY, f"no pod is made until this is mended: {said}.")
    failure = _condition(deployment, "ReplicaFailure")
    if failure.get("status") != "True":
        return Cause(Reason.STARTING, "its pods are being created.")
    said = one_line(str(failure.get("message", "")))
    if "exceeded quota" in said:
        advice = "Raise the ResourceQuota, or ask for less."
    elif "violates PodSecurity" in said:
        advice = "Mend worker.podTemplate, or have the namespace's Pod Security level lowered."
    else:
        advice = "It is tried again."
    return Cause(Reason.POD_CREATION_FAILED, f"pods cannot be created: {said}. {advice}")


def _condition(obj: dict[str, Any] | None, kind: str) -> dict[str, Any]:
    for condition in ((obj or {}).get("status") or {}).get("conditions") or []:
        if condition.get("type") == kind:
            found: dict[str, Any] = condition
            return found
    return {}
