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
    HandlerStatus,
    Reason,
    VLLMEndpointStatus,
    names,
)
from vllmendpoint_operator.apply.edits import Edit, advice
from vllmendpoint_operator.observe.snapshot import Endpoint
from vllmendpoint_operator.status.conditions import timestamp

__all__ = ["Transition", "edited", "event", "handlers_changed", "nulls_lost", "transitions", "warned"]

_ON_THE_WAY: Final = frozenset(
    {Reason.STARTING, Reason.PENDING, Reason.ROLLING_OUT, Reason.NO_WORKERS, Reason.PAUSED}
)
"""A rollout's steps are the Deployment's own Events; that it stops is one of ours."""


@dataclass(frozen=True, slots=True)
class Transition:
    type: str
    """``Normal`` or ``Warning``."""
    reason: str
    message: str
    once: str = ""
    """What repeats itself: while an Event of it exists, no other is made. Empty: each is one of its own."""


def transitions(before: Iterable[ConditionEntry], after: Iterable[ConditionEntry]) -> list[Transition]:
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
                found.append(Transition("Normal", entry.reason, entry.message))
        elif entry.type in READY_PARTS:
            if entry.status == ConditionStatus.FALSE and entry.reason not in _ON_THE_WAY:
                found.append(Transition("Warning", entry.reason, entry.message))
            elif entry.status == ConditionStatus.TRUE and _was_broken(previous):
                found.append(Transition("Normal", entry.reason, entry.message))
    return found


def handlers_changed(before: VLLMEndpointStatus | None, after: VLLMEndpointStatus) -> list[Transition]:
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
            said.append(f"The handler of {route} changed from {_named(was)} to {_named(now)}.")
    return [Transition("Normal", "HandlersChanged", " ".join(said))] if said else []


def _named(handler: HandlerStatus) -> str:
    name = handler.handler or "vLLM's own"
    return f"{name} ({handler.source})"


def warned(texts: Iterable[str]) -> list[Transition]:
    """What the API server takes and yet warns of: it stands in no condition."""
    return [
        Transition("Warning", "APIServerWarning", f"the API server warns of the {text}") for text in texts
    ]


def nulls_lost(texts: Iterable[str]) -> list[Transition]:
    return [Transition("Warning", "PodTemplateNull", text) for text in texts]


def edited(edits: Iterable[Edit]) -> list[Transition]:
    """What others changed in a child: once for each field and manager, however often they change it."""
    return [_accepted(edit) if edit.accepted else _reverted(edit) for edit in edits]


def _accepted(edit: Edit) -> Transition:
    message = (
        f"The API server stores {edit.fields} of the {edit.kind} {edit.name} otherwise than the operator "
        "applies it, because an admission policy or webhook changes it. The operator keeps the stored value."
    )
    return Transition("Normal", "AdmissionChangeAccepted", message, message)


def _reverted(edit: Edit) -> Transition:
    by = f"Field manager {' and '.join(edit.managers)}" if edit.managers else "Another client"
    message = (
        f"{by} changed {edit.fields} of the {edit.kind} {edit.name}. The operator has restored what the "
        f"{names.KIND} specifies. {advice(edit)}"
    )
    return Transition("Warning", "ChangeReverted", message, message)


def _was_broken(entry: ConditionEntry | None) -> bool:
    return entry is not None and entry.status == ConditionStatus.FALSE and entry.reason not in _ON_THE_WAY


def event(endpoint: Endpoint, transition: Transition, now: datetime, reporter: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "namespace": endpoint.namespace,
            "name": f"{endpoint.name}.{_suffix(endpoint, transition)}",
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


def _suffix(endpoint: Endpoint, transition: Transition) -> str:
    if not transition.once:
        return uuid.uuid4().hex[:16]
    return sha256(f"{endpoint.uid} {transition.once}".encode()).hexdigest()[:16]
