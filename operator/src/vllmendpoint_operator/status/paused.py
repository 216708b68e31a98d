"""What ``spec.paused`` does to the conditions: nothing is under way, and nobody need wait for it."""

from collections.abc import Mapping

from vllmendpoint_api import Condition, Reason
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed

from .conditions import Finding, false
from .parts import parts

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
    if findings[Condition.AVAILABLE].reason is not Reason.STARTING:
        return said
    for part in parts(endpoint, observed):
        if part.asked_for < part.replicas and part.ready < part.needed:
            stands = (
                f"there is no Deployment {part.name} yet"
                if part.deployment is None
                else f"the Deployment {part.name} was last asked for {part.asked_for}"
            )
            said[Condition.AVAILABLE] = false(
                Reason.PAUSED,
                f"{part.ready} of {part.replicas} {part.what} ready: {stands}, and spec.paused is true; "
                "set it to false to go on.",
            )
            break
    return said
