"""Limits how often the status of an endpoint is written. Pure."""

from dataclasses import dataclass
from typing import Final

from vllmendpoint_api import READY_PARTS, Condition, ConditionStatus, VLLMEndpointStatus

from .events import condition_events, handler_events

__all__ = ["BURST", "WRITE_INTERVAL_SECONDS", "StatusWriteLimiter", "is_urgent"]

WRITE_INTERVAL_SECONDS: Final = 5.0
"""Minimum time in seconds between two writes that are not urgent, and time in which one token is added.

When a thousand endpoints start, most intermediate states would be outdated before anyone reads them.
"""
BURST: Final = 10
"""Maximum number of tokens, and so of urgent writes without a pause.

A worker whose state flaps, or that sends false reports, must not load the API server.
"""
_URGENT_CONDITIONS: Final = frozenset({Condition.READY, Condition.STALLED})


@dataclass(slots=True)
class StatusWriteLimiter:
    """Token bucket for the status writes of one endpoint. Times are seconds of a monotonic clock."""

    last_write: float
    tokens: float = float(BURST)

    def delay(self, now: float, *, urgent: bool) -> float:
        """Seconds until the status may be written; 0 or less if it may be written now."""
        elapsed = now - self.last_write
        if urgent and self.tokens + elapsed / WRITE_INTERVAL_SECONDS >= 1:
            return 0.0
        return WRITE_INTERVAL_SECONDS - elapsed

    def record_write(self, now: float) -> None:
        self.tokens = min(BURST, self.tokens + (now - self.last_write) / WRITE_INTERVAL_SECONDS) - 1
        self.last_write = now


def is_urgent(before: VLLMEndpointStatus | None, after: VLLMEndpointStatus) -> bool:
    """Whether a change must be written without delay.

    Urgent are the first status, the first status of a generation, a change that causes an Event, a change of
    ``Ready`` or ``Stalled``, and a part of ``Ready`` that is no longer True.
    """
    if before is None or before.observed_generation != after.observed_generation:
        return True
    if condition_events(before.conditions, after.conditions) or handler_events(before, after):
        return True
    old = {entry.type: entry.status for entry in before.conditions}
    return any(
        entry.status != old.get(entry.type)
        and (
            entry.type in _URGENT_CONDITIONS
            or (entry.type in READY_PARTS and old.get(entry.type) == ConditionStatus.TRUE)
        )
        for entry in after.conditions
    )
