"""Which changes of a status are written at once, and which wait for the next ones."""

from typing import Final

from vllmendpoint_api import READY_PARTS, Condition, ConditionStatus, VLLMEndpointStatus

from .events import handlers_changed, transitions

__all__ = ["STEP_SECONDS", "presses"]

STEP_SECONDS: Final = 5.0
"""How long after the last write the steps of a start, counts and wording wait. In a burst of a thousand
endpoints most of them would be outdated before anybody reads them."""

_AT_ONCE: Final = frozenset({Condition.READY, Condition.STALLED})


def presses(before: VLLMEndpointStatus | None, now: VLLMEndpointStatus) -> bool:
    """Whether to tell at once: a first visit, another spec, Ready, a part that broke or was mended."""
    if before is None or before.observed_generation != now.observed_generation:
        return True
    if transitions(before.conditions, now.conditions) or handlers_changed(before, now):
        return True
    old = {entry.type: entry.status for entry in before.conditions}
    return any(
        entry.status != old.get(entry.type)
        and (
            entry.type in _AT_ONCE
            or (entry.type in READY_PARTS and old.get(entry.type) == ConditionStatus.TRUE)
        )
        for entry in now.conditions
    )
