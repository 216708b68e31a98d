"""The conditions that ``spec.paused`` changes: the operator applies no changes."""

from collections.abc import Mapping

from vllmendpoint_api import Condition, Reason
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed
from vllmendpoint_operator.status.component import Component, components
from vllmendpoint_operator.status.diagnosis.sentences import counted, quantity

from .finding import Finding, false

__all__ = ["paused"]


def paused(
    endpoint: Endpoint, observed: Observed, findings: Mapping[Condition, Finding]
) -> dict[Condition, Finding]:
    """The findings that replace those of ``findings``."""
    changed = {
        Condition.UP_TO_DATE: false(
            Reason.PAUSED,
            "The operator applies no changes because spec.paused is true. Set it to false to continue.",
        )
    }
    if findings[Condition.AVAILABLE].reason is not Reason.STARTING:
        return changed
    for component in components(endpoint, observed):
        if (
            component.desired_replicas < component.replicas
            and component.ready_replicas < component.min_available
        ):
            changed[Condition.AVAILABLE] = false(Reason.PAUSED, _unavailable(component))
            break
    return changed


def _unavailable(component: Component) -> str:
    count = quantity(component.ready_replicas, component.replicas, component.noun)
    action = (
        f"create the Deployment {component.name}"
        if component.deployment is None
        else f"scale up the Deployment {component.name}, which has "
        f"{counted(component.desired_replicas, component.noun)},"
    )
    return (
        f"{count} ready (minimum: {component.min_available}). The operator does not {action} because "
        "spec.paused is true. Set it to false to continue."
    )
