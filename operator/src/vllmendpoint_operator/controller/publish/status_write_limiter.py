"""Limits how often the status of an endpoint is written. Pure."""

from dataclasses import dataclass
from typing import Final

from vllmendpoint_api import READY_PARTS, Condition, ConditionStatus, VLLMEndpointStatus

from .events import condition_events, handler_events

__all__ = ["BURST", "WRITE_INTERVAL_SECONDS", "StatusWriteLimiter", "is_urgent"]

WRITE_INTERVAL_SECONDS: Final = 5.0
"""Seconds from a write to the next one that is not urgent. One token is added per interval.

While an endpoint starts, its state changes more often than a user reads it.
"""
BURST: Final = 10
"""Maximum number of tokens, and so of urgent writes without a pause.

A worker whose state flaps, or that sends false reports, must not load the API server.
"""
_URGENT_CONDITIONS: Final = frozenset({Condition.READY, Condition.STALLED})


@dataclass(slots=True)
class StatusWriteLimiter:
    """Token bucket for the status writes of one endpoint. Times are seconds of a monotonic clock.

    Each write takes a token. An urgent write may take any token; other writes wait until the interval since
    the last write has elapsed, and so keep the burst for urgent ones.
    """

    last_write: float
    tokens: float = float(BURST)
    """Number of tokens immediately after the last write; fractions are part of the next token."""

    def delay(self, now: float, *, urgent: bool) -> float:
        """Seconds until the status may be written; 0 if it may be written now."""
        if urgent and self._available(now) >= 1:
            return 0.0
        return max(0.0, WRITE_INTERVAL_SECONDS - (now - self.last_write))

    def record_write(self, now: float) -> None:
        self.tokens = self._available(now) - 1
        self.last_write = now

    def _available(self, now: float) -> float:
        added = (now - self.last_write) / WRITE_INTERVAL_SECONDS
        return min(BURST, self.tokens + added)


def is_urgent(before: VLLMEndpointStatus | None, after: VLLMEndpointStatus) -> bool:
    """Whether a change must be written without delay.

    Urgent changes are the first status, the first status of a generation, a change that causes an Event, a
    change of ``Ready`` or ``Stalled``, and the change of a condition in ``READY_PARTS`` from True.
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
