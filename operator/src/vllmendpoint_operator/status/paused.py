"""What ``spec.paused`` does to the conditions: nothing is under way, and nobody need wait for it."""

from collections.abc import Mapping

from vllmendpoint_api import Condition, Reason
from vllmendpoint_operator.model import Endpoint, Observed
from vllmendpoint_operator.plan.workload import deployment_name

from .conditions import Finding, false

__all__ = ["paused"]


def paused(
    endpoint: Endpoint, observed: Observed, findings: Mapping[Condition, Finding]
) -> dict[Condition, Finding]:
    """What a paused endpoint says in place of these findings."""
    said = {
        Condition.UP_TO_DATE: false(
            Reason.PAUSED, "spec.paused is true: no change is applied until it is false."
        )
    }
    deployment = observed.child("Deployment", deployment_name(endpoint))
    made = 0 if deployment is None else int(deployment["spec"].get("replicas", 1))
    wanted = endpoint.spec.replicas
    if findings[Condition.AVAILABLE].reason is Reason.STARTING and made < wanted:
        stands = (
            "there is no Deployment yet"
            if deployment is None
            else f"the Deployment was last asked for {made}"
        )
        said[Condition.AVAILABLE] = false(
            Reason.PAUSED,
            f"{sum(pod.ready for pod in observed.workers)} of {wanted} replicas ready: {stands}, and "
            "spec.paused is true; set it to false to go on.",
        )
    return said
