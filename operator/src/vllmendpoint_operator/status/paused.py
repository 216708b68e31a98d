"""What ``spec.paused`` does to the conditions: nothing is under way, and nobody need wait for it."""

from collections.abc import Mapping

from vllmendpoint_api import Condition, Reason
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed

from .conditions import Finding, false
from .diagnosis.sentences import counted, quantity
from .parts import parts

__all__ = ["paused"]


def paused(
    endpoint: Endpoint, observed: Observed, findings: Mapping[Condition, Finding]
) -> dict[Condition, Finding]:
    """What a paused endpoint says in place of these findings."""
    said = {
        Condition.UP_TO_DATE: false(
            Reason.PAUSED,
            "The operator applies no changes because spec.paused is true. Set it to false to continue.",
        )
    }
    if findings[Condition.AVAILABLE].reason is not Reason.STARTING:
        return said
    for part in parts(endpoint, observed):
        if part.asked_for < part.replicas and part.ready < part.needed:
            stands = (
                f"does not create the Deployment {part.name}"
                if part.deployment is None
                else f"does not scale up the Deployment {part.name}, which has "
                f"{counted(part.asked_for, part.what)},"
            )
            said[Condition.AVAILABLE] = false(
                Reason.PAUSED,
                f"{quantity(part.ready, part.replicas, part.what)} ready (minimum: {part.needed}). The "
                f"operator {stands} because spec.paused is true. Set it to false to continue.",
            )
            break
    return said
