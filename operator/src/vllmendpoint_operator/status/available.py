"""``Available``: enough replicas are ready, and the frontend is up."""

import math
from typing import Any

from vllmendpoint_api import FrontendMode, Reason
from vllmendpoint_operator.model import Endpoint, Observed
from vllmendpoint_operator.plan.frontend import frontend_name
from vllmendpoint_operator.plan.workload import deployment_name

from .conditions import Finding, false, true
from .why import Cause, why, worst

__all__ = ["available", "required"]


def required(replicas: int, max_unavailable: int | str) -> int:
    """Ready replicas needed: at least one, whatever the strategy allows to be down."""
    if isinstance(max_unavailable, str) and max_unavailable.endswith("%"):
        down = math.floor(replicas * int(max_unavailable[:-1]) / 100)
    else:
        down = int(max_unavailable)
    return max(1, replicas - down)


def available(endpoint: Endpoint, observed: Observed) -> Finding:
    replicas = endpoint.spec.replicas
    if replicas == 0:
        return true(Reason.SCALED_TO_ZERO, "replicas is 0: nothing is served, as asked.")
    ready = sum(pod.ready for pod in observed.workers)
    needed = required(replicas, endpoint.spec.strategy.rolling_update.max_unavailable)
    counts = f"{ready} of {replicas} replicas ready, {needed} needed"
    if ready < needed:
        budget = endpoint.spec.worker.startup_timeout_seconds
        cause = worst(found for pod in observed.workers if (found := why(pod, budget)) is not None)
        cause = cause or _not_created(observed, deployment_name(endpoint))
        return false(cause.reason, f"{counts}: {cause.message}")
    if endpoint.spec.frontend.mode == FrontendMode.MANAGED and not any(
        pod.ready for pod in observed.frontends
    ):
        cause = worst(found for pod in observed.frontends if (found := why(pod, 120)) is not None)
        cause = cause or _not_created(observed, frontend_name(endpoint))
        return false(Reason.FRONTEND_UNAVAILABLE, f"the frontend is not ready: {cause.message}")
    return true(Reason.AVAILABLE, f"{ready} of {replicas} replicas ready.")


def _not_created(observed: Observed, name: str) -> Cause:
    deployment = observed.child("Deployment", name)
    failure = _condition(deployment, "ReplicaFailure")
    if failure.get("status") == "True":
        return Cause(Reason.POD_CREATION_FAILED, f"pods cannot be created: {failure.get('message', '')}")
    return Cause(Reason.STARTING, "its pods are being created.")


def _condition(obj: dict[str, Any] | None, kind: str) -> dict[str, Any]:
    for condition in ((obj or {}).get("status") or {}).get("conditions") or []:
        if condition.get("type") == kind:
            found: dict[str, Any] = condition
            return found
    return {}
