"""Decides which changes are reported as Events, and with which text. Pure."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final

from vllmendpoint_api import (
    READY_PARTS,
    Condition,
    ConditionEntry,
    ConditionStatus,
    EventReason,
    HandlerStatus,
    Reason,
    VLLMEndpointStatus,
    names,
)
from vllmendpoint_operator.apply.edits import Edit, advice
from vllmendpoint_operator.observe.snapshot import Endpoint
from vllmendpoint_operator.status.conditions.finding import timestamp

__all__ = [
    "EventType",
    "PendingEvent",
    "condition_events",
    "dropped_null_events",
    "edit_events",
    "event_body",
    "handler_events",
    "warning_events",
]

_MAX_MESSAGE_LENGTH: Final = 1024
"""Limit of the API server."""
_PROGRESS_REASONS: Final = frozenset(
    {Reason.STARTING, Reason.PENDING, Reason.ROLLING_OUT, Reason.NO_WORKERS, Reason.PAUSED}
)
"""Reasons of False that are not errors. The Deployments' own Events report the progress of a rollout."""
_DEGRADED_REASONS: Final = frozenset({Reason.KV_EVENTS_MISSING})
"""Reasons of True that are errors, although requests are answered."""


class EventType(StrEnum):
    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """An Event that is not recorded yet."""

    type: EventType
    reason: str
    message: str
    deduplication_key: str = ""
    """While an Event with this key exists, the operator records no other one. Empty: always recorded."""


def condition_events(old: Iterable[ConditionEntry], new: Iterable[ConditionEntry]) -> list[PendingEvent]:
    """An Event for each part of Ready that fails or recovers, and when Ready becomes True."""
    before = {entry.type: entry for entry in old}
    events = (_condition_event(before.get(entry.type), entry) for entry in new)
    return [event for event in events if event is not None]


def _condition_event(old: ConditionEntry | None, new: ConditionEntry) -> PendingEvent | None:
    if old is not None and (old.status, old.reason) == (new.status, new.reason):
        return None
    is_true = new.status == ConditionStatus.TRUE
    if new.type == Condition.READY and is_true:
        return PendingEvent(EventType.NORMAL, new.reason, new.message)
    if new.type not in READY_PARTS:
        return None
    if _is_error(new):
        return PendingEvent(EventType.WARNING, new.reason, new.message)
    if is_true and old is not None and _is_error(old):
        return PendingEvent(EventType.NORMAL, new.reason, new.message)
    return None


def _is_error(entry: ConditionEntry) -> bool:
    if entry.reason in _DEGRADED_REASONS:
        return entry.status == ConditionStatus.TRUE
    return entry.status == ConditionStatus.FALSE and entry.reason not in _PROGRESS_REASONS


def handler_events(old: VLLMEndpointStatus | None, new: VLLMEndpointStatus) -> list[PendingEvent]:
    """One Event if the handler script or the handler of a route has changed."""
    before, after = (old.handlers if old is not None else None), new.handlers
    if before is None or after is None:
        return []
    sentences = []
    if before.script_digest != after.script_digest:
        digests = f"from {before.script_digest or 'none'} to {after.script_digest or 'none'}"
        sentences.append(f"The handler script changed {digests}. No worker was restarted.")
    for route, was, now in (
        ("/ping", before.ping, after.ping),
        ("/invocations", before.invocations, after.invocations),
    ):
        # No sentence about restarts: a handler from the environment changes only with a restart.
        if was != now:
            sentences.append(
                f"The handler of {route} changed from {_handler_name(was)} to {_handler_name(now)}."
            )
    if not sentences:
        return []
    return [PendingEvent(EventType.NORMAL, EventReason.HANDLERS_CHANGED, " ".join(sentences))]


def _handler_name(handler: HandlerStatus) -> str:
    name = handler.handler or "vLLM's handler"
    return f"{name} ({handler.source})"


def warning_events(warnings: Iterable[str]) -> list[PendingEvent]:
    """Events for warnings of the API server about objects that it accepted: no condition reports these.

    ``warnings``: each begins with the kind and the name of the object.
    """
    return [
        PendingEvent(
            EventType.WARNING,
            EventReason.API_SERVER_WARNING,
            f"The API server returned a warning for the {warning}",
        )
        for warning in warnings
    ]


def dropped_null_events(messages: Iterable[str]) -> list[PendingEvent]:
    """Events for nulls of a podTemplate that never reached the API server."""
    return [PendingEvent(EventType.WARNING, EventReason.POD_TEMPLATE_NULL, message) for message in messages]


def edit_events(edits: Iterable[Edit]) -> list[PendingEvent]:
    """Events for changes of children by others: one per set of fields and managers, not one per change."""
    return [_accepted_edit_event(edit) if edit.accepted else _reverted_edit_event(edit) for edit in edits]


def _accepted_edit_event(edit: Edit) -> PendingEvent:
    message = (
        f"The API server stores another value for {edit.fields} of the {edit.kind} {edit.name} than the "
        "operator applied, because an admission policy or webhook changes it. The operator keeps the stored "
        "value."
    )
    return PendingEvent(EventType.NORMAL, EventReason.ADMISSION_CHANGE_ACCEPTED, message, message)


def _reverted_edit_event(edit: Edit) -> PendingEvent:
    author = f"Field manager {' and '.join(edit.managers)}" if edit.managers else "Another client"
    message = (
        f"{author} changed {edit.fields} of the {edit.kind} {edit.name}. The operator has restored what the "
        f"{names.KIND} specifies. {advice(edit)}"
    )
    return PendingEvent(EventType.WARNING, EventReason.CHANGE_REVERTED, message, message)


def event_body(
    endpoint: Endpoint, event: PendingEvent, now: datetime, reporting_instance: str
) -> dict[str, Any]:
    """The Event as an object of the API."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "namespace": endpoint.namespace,
            "name": f"{endpoint.name}.{_name_suffix(endpoint, event)}",
        },
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "namespace": endpoint.namespace,
            "name": endpoint.name,
            "uid": endpoint.uid,
        },
        "type": event.type.value,
        "reason": event.reason,
        "message": event.message[:_MAX_MESSAGE_LENGTH],
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "count": 1,
        "source": {"component": names.MANAGED_BY},
        "reportingComponent": names.MANAGED_BY,
        "reportingInstance": reporting_instance,
    }


def _name_suffix(endpoint: Endpoint, event: PendingEvent) -> str:
    """The same for the same deduplication key, so that a second Event has the name of the first one."""
    if not event.deduplication_key:
        return uuid.uuid4().hex[:16]
    return sha256(f"{endpoint.uid} {event.deduplication_key}".encode()).hexdigest()[:16]
