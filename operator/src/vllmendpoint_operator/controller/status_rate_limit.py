"""When a changed status is written: at once, or with the changes that follow. Pure."""

from dataclasses import dataclass
from typing import Final

from vllmendpoint_api import READY_PARTS, Condition, ConditionStatus, VLLMEndpointStatus

from .events import handlers_changed, transitions

__all__ = ["MOST_AT_ONCE", "STEP_SECONDS", "Pace", "presses"]

STEP_SECONDS: Final = 5.0
"""How long after the last write the steps of a start, counts and wording wait. In a burst of a thousand
endpoints most of them would be outdated before anybody reads them."""

MOST_AT_ONCE: Final = 10
"""Writes at once that an endpoint may have saved up; one more comes with every ``STEP_SECONDS``. A worker
that goes to and fro, or lies, must not keep the API server busy."""

_AT_ONCE: Final = frozenset({Condition.READY, Condition.STALLED})


@dataclass(slots=True)
class Pace:
    """Of one endpoint's writes. Moments in seconds, on a monotonic clock."""

    last: float
    saved: float = float(MOST_AT_ONCE)

    def wait(self, now: float, *, pressing: bool) -> float:
        """Seconds until the status may be written; 0 or less: now."""
        passed = now - self.last
        if pressing and self.saved + passed / STEP_SECONDS >= 1:
            return 0.0
        return STEP_SECONDS - passed

    def written(self, now: float) -> None:
        self.saved = min(MOST_AT_ONCE, self.saved + (now - self.last) / STEP_SECONDS) - 1
        self.last = now


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
