"""One Event a transition. Which transitions are worth one is a pure decision."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
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
from vllmendpoint_operator.status.conditions import timestamp

__all__ = [
    "PendingEvent",
    "condition_events",
    "edit_events",
    "event_body",
    "handler_events",
    "lost_null_events",
    "warning_events",
]

_PROGRESS_REASONS: Final = frozenset(
    {Reason.STARTING, Reason.PENDING, Reason.ROLLING_OUT, Reason.NO_WORKERS, Reason.PAUSED}
)
"""A rollout's steps are the Deployment's own Events; that it stops is one of ours."""


@dataclass(frozen=True, slots=True)
class PendingEvent:
    type: str
    """``Normal`` or ``Warning``."""
    reason: str
    message: str
    deduplication_key: str = ""
    """What repeats itself: while an Event of it exists, no other is made. Empty: each is one of its own."""


def condition_events(before: Iterable[ConditionEntry], after: Iterable[ConditionEntry]) -> list[PendingEvent]:
    """A part that broke or was mended, and ``Ready``; not the steps of an ordinary start."""
    old = {entry.type: entry for entry in before}
    found = []
    for entry in after:
        previous = old.get(entry.type)
        changed = previous is None or (previous.status, previous.reason) != (entry.status, entry.reason)
        if not changed:
            continue
        if entry.type == Condition.READY:
            if entry.status == ConditionStatus.TRUE:
                found.append(PendingEvent("Normal", entry.reason, entry.message))
        elif entry.type in READY_PARTS:
            if entry.status == ConditionStatus.FALSE and entry.reason not in _PROGRESS_REASONS:
                found.append(PendingEvent("Warning", entry.reason, entry.message))
            elif entry.status == ConditionStatus.TRUE and _had_error(previous):
                found.append(PendingEvent("Normal", entry.reason, entry.message))
    return found


def handler_events(before: VLLMEndpointStatus | None, after: VLLMEndpointStatus) -> list[PendingEvent]:
    """Another script, or another path to a handler, is in force: one Event for all of it."""
    old, new = (before.handlers if before is not None else None), after.handlers
    if old is None or new is None:
        return []
    said = []
    if old.script_digest != new.script_digest:
        digests = f"from {old.script_digest or 'none'} to {new.script_digest or 'none'}"
        said.append(f"The handlers' script changed {digests}; no worker was restarted.")
    for route, was, now in (
        ("/ping", old.ping, new.ping),
        ("/invocations", old.invocations, new.invocations),
    ):
        if was != now:  # no word of a restart: one that the environment names changes with one
            said.append(f"The handler of {route} changed from {_handler_name(was)} to {_handler_name(now)}.")
    return [PendingEvent("Normal", EventReason.HANDLERS_CHANGED, " ".join(said))] if said else []


def _handler_name(handler: HandlerStatus) -> str:
    name = handler.handler or "vLLM's own"
    return f"{name} ({handler.source})"


def warning_events(texts: Iterable[str]) -> list[PendingEvent]:
    """What the API server takes and yet warns of: it stands in no condition."""
    return [
        PendingEvent("Warning", EventReason.API_SERVER_WARNING, f"the API server warns of the {text}")
        for text in texts
    ]


def lost_null_events(texts: Iterable[str]) -> list[PendingEvent]:
    return [PendingEvent("Warning", EventReason.POD_TEMPLATE_NULL, text) for text in texts]


def edit_events(edits: Iterable[Edit]) -> list[PendingEvent]:
    """What others changed in a child: once for each field and manager, however often they change it."""
    return [_accepted_edit_event(edit) if edit.accepted else _reverted_edit_event(edit) for edit in edits]


def _accepted_edit_event(edit: Edit) -> PendingEvent:
    message = (
        f"The API server stores {edit.fields} of the {edit.kind} {edit.name} otherwise than the operator "
        "applies it, because an admission policy or webhook changes it. The operator keeps the stored value."
    )
    return PendingEvent("Normal", EventReason.ADMISSION_CHANGE_ACCEPTED, message, message)


def _reverted_edit_event(edit: Edit) -> PendingEvent:
    by = f"Field manager {' and '.join(edit.managers)}" if edit.managers else "Another client"
    message = (
        f"{by} changed {edit.fields} of the {edit.kind} {edit.name}. The operator has restored what the "
        f"{names.KIND} specifies. {advice(edit)}"
    )
    return PendingEvent("Warning", EventReason.CHANGE_REVERTED, message, message)


def _had_error(entry: ConditionEntry | None) -> bool:
    return (
        entry is not None and entry.status == ConditionStatus.FALSE and entry.reason not in _PROGRESS_REASONS
    )


def event_body(endpoint: Endpoint, transition: PendingEvent, now: datetime, reporter: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "namespace": endpoint.namespace,
            "name": f"{endpoint.name}.{_name_suffix(endpoint, transition)}",
        },
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "namespace": endpoint.namespace,
            "name": endpoint.name,
            "uid": endpoint.uid,
        },
        "type": transition.type,
        "reason": transition.reason,
        "message": transition.message[:1024],
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "count": 1,
        "source": {"component": names.MANAGED_BY},
        "reportingComponent": names.MANAGED_BY,
        "reportingInstance": reporter,
    }


def _name_suffix(endpoint: Endpoint, transition: PendingEvent) -> str:
    if not transition.deduplication_key:
        return uuid.uuid4().hex[:16]
    return sha256(f"{endpoint.uid} {transition.deduplication_key}".encode()).hexdigest()[:16]
