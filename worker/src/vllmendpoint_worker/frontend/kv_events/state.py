"""Whether this frontend's router receives the KV events of a worker: the states and when they change. Pure.

A check sends the same new prompt twice to one worker. If the second request has a higher KV hit rate in the
router than the first, the worker's events have reached the router. Times are monotonic seconds.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from vllmendpoint_api import KVEventsState

__all__ = ["CheckEnd", "CheckOutcome", "KVEvents", "after_check", "next_check_at", "with_source"]

CHECK_SECONDS: Final = 30.0
"""Interval between checks of a route whose events arrive."""
RETRY_SECONDS: Final = 2.0
"""Time after a failed check until it is repeated."""
MISSING_SECONDS: Final = 10.0
"""Interval between checks of a route whose events are missing."""
SOURCE_SECONDS: Final = 5.0
"""Time from the first probe of a worker until its missing source of KV events is a problem."""
FAILURE_THRESHOLD: Final = 2

NO_SOURCE: Final = (
    "The worker publishes no KV events. vLLM turns prefix caching off for some models: see the log of the "
    "worker, or set another frontend.routing.mode."
)


class CheckOutcome(StrEnum):
    """Results of checks, and values of the label ``outcome``."""

    RECEIVED = "received"
    MISSING = "missing"
    """The worker has the prompt in its KV cache, and the router does not know it."""
    NOT_CACHED = "not_cached"
    """The worker does not keep the prompt in its KV cache."""
    FAILED = "failed"
    """A request was not answered, so nothing is known. The route's own probes report that."""


@dataclass(frozen=True, slots=True)
class CheckEnd:
    ended: float
    outcome: CheckOutcome
    message: str = ""
    """What is wrong, as a sentence."""


@dataclass(frozen=True, slots=True)
class KVEvents:
    """``since``: of the state. ``discovered``: when the worker answered its first probe."""

    discovered: float
    since: float
    state: KVEventsState = KVEventsState.PENDING
    message: str = ""
    has_source: bool = False
    last_check: CheckEnd | None = None
    failures: int = 0
    """Consecutive checks with the outcome MISSING or NOT_CACHED."""


def with_source(events: KVEvents, has_source: bool, now: float) -> KVEvents:
    """The state after a poll. ``has_source``: Dynamo has discovered the worker's source of KV events."""
    if has_source:
        if events.has_source:
            return events
        # The next check decides, immediately.
        return _enter(
            replace(events, has_source=True, last_check=None, failures=0), KVEventsState.PENDING, "", now
        )
    events = replace(events, has_source=False)
    if now - events.discovered < SOURCE_SECONDS:
        return events
    return _enter(events, KVEventsState.MISSING, NO_SOURCE, now)


def after_check(events: KVEvents, end: CheckEnd) -> KVEvents:
    events = replace(events, last_check=end)
    match end.outcome:
        case CheckOutcome.FAILED:
            return events
        case CheckOutcome.RECEIVED:
            return _enter(replace(events, failures=0), KVEventsState.RECEIVED, "", end.ended)
    events = replace(events, failures=events.failures + 1)
    if events.failures < FAILURE_THRESHOLD:
        return events
    return _enter(events, KVEventsState.MISSING, end.message, end.ended)


def next_check_at(events: KVEvents) -> float | None:
    """When the next check is due; None without a source of events."""
    if not events.has_source:
        return None
    if events.last_check is None:
        return events.since
    if events.last_check.outcome is CheckOutcome.RECEIVED:
        return events.last_check.ended + CHECK_SECONDS
    is_missing = events.state is KVEventsState.MISSING
    return events.last_check.ended + (MISSING_SECONDS if is_missing else RETRY_SECONDS)


def _enter(events: KVEvents, state: KVEventsState, message: str, now: float) -> KVEvents:
    since = events.since if events.state is state else now
    return replace(events, state=state, message=message, since=since)
