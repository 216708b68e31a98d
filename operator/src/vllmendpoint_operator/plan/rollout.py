"""When a rollout of a Deployment is complete, as ``kubectl rollout status`` has it."""

from typing import Any

__all__ = ["is_observed", "rolled_out"]


def is_observed(deployment: dict[str, Any]) -> bool:
    """Whether the Deployment controller has seen the newest spec: its counts are of that one then."""
    observed = int((deployment.get("status") or {}).get("observedGeneration", -1))
    return observed >= int(deployment["metadata"].get("generation", 0))


def rolled_out(deployment: dict[str, Any], *, available: bool = True) -> bool:
    """All replicas are of the newest template, no older pod is left and, with ``available``, all are up.

    Source: ``DeploymentStatusViewer.Status`` of ``k8s.io/kubectl/pkg/polymorphichelpers``.
    """
    status = deployment.get("status") or {}
    updated = int(status.get("updatedReplicas", 0))
    return (
        is_observed(deployment)
        and updated >= int(deployment["spec"].get("replicas", 1))
        and int(status.get("replicas", 0)) <= updated
        and (not available or int(status.get("availableReplicas", 0)) >= updated)
    )
