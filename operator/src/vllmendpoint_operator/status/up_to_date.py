"""``UpToDate``: all replicas run the current revision."""

from typing import Any

from vllmendpoint_api import FrontendMode, Reason
from vllmendpoint_operator.model import Endpoint, Observed
from vllmendpoint_operator.plan.frontend import frontend_name
from vllmendpoint_operator.plan.workload import deployment_name

from .conditions import Finding, false, true

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
            return false(
                Reason.ROLLING_OUT, f"{updated} of {replicas} {what} run the current revision{detail}."
            )
    return true(Reason.UP_TO_DATE, "All replicas run the current revision.")


def _seen(deployment: dict[str, Any]) -> bool:
    """The Deployment controller has looked at the newest spec."""
    observed = int((deployment.get("status") or {}).get("observedGeneration", -1))
    return observed >= int(deployment["metadata"].get("generation", 0))
