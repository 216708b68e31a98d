"""Decides which operator manages an endpoint if several operators watch its namespace. Pure.

The annotation decides, then ``status.operator``, which the first operator writes. An operator that does not
manage an endpoint writes only the condition ``OperatorConflict``.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from vllmendpoint_api import ConditionStatus, Reason, names
from vllmendpoint_operator.status.conditions.finding import timestamp

__all__ = [
    "CONFLICT_FIELD_MANAGER",
    "conflict_condition",
    "existing_conflict",
    "managing_operator",
    "names_manager",
    "without_conflict",
]

CONFLICT_FIELD_MANAGER: Final = "vllmendpoint-operator-stepped-back"
"""Field manager of the condition. All operators share it, so that each may replace another's condition."""

Object = dict[str, Any]


def managing_operator(metadata: Object, status: Object) -> str:
    """Name of the operator that manages the endpoint; empty if the first operator may claim it."""
    return _assigned_operator(metadata) or str(status.get("operator") or "")


def conflict_condition(obj: Object, operator: str, now: datetime) -> Object | None:
    """The condition that ``operator``, which does not manage ``obj``, must write.

    None if a condition names the managing operator already: one is enough, whichever operator wrote it.
    """
    manager = managing_operator(obj["metadata"], obj["status"])
    source = "annotation" if _assigned_operator(obj["metadata"]) else "status.operator"
    existing = existing_conflict(obj["status"])
    if existing is not None and names_manager(existing, manager):
        return None
    return {
        "type": names.CONDITION_OPERATOR_CONFLICT,
        "status": ConditionStatus.TRUE.value,
        "reason": Reason.MANAGED_BY_ANOTHER_OPERATOR.value,
        "message": f"The operator {operator} also watches this namespace. It does not change the endpoint, "
        f"because {_managed_by(manager)} ({source}). To transfer the endpoint, set its annotation "
        f"{names.ANNOTATION_OPERATOR}={operator}.",
        "lastTransitionTime": existing["lastTransitionTime"] if existing is not None else timestamp(now),
        "observedGeneration": obj["metadata"]["generation"],
    }


def existing_conflict(status: Object) -> Object | None:
    """The condition ``OperatorConflict`` of a status, if it has one."""
    conditions: Iterable[Object] = status.get("conditions") or ()
    return next((entry for entry in conditions if entry["type"] == names.CONDITION_OPERATOR_CONFLICT), None)


def names_manager(condition: Object, operator: str) -> bool:
    """Whether a condition ``OperatorConflict`` names ``operator`` as the managing operator."""
    return f"{_managed_by(operator)} (" in condition["message"]


def without_conflict(status: Object) -> Object:
    """``status`` without the condition ``OperatorConflict``: the part that the managing operator writes."""
    conditions = status.get("conditions")
    if not conditions:
        return status
    own = [entry for entry in conditions if entry.get("type") != names.CONDITION_OPERATOR_CONFLICT]
    return {**status, "conditions": own}


def _assigned_operator(metadata: Object) -> str:
    """The operator that the annotation names; empty without one."""
    return str((metadata.get("annotations") or {}).get(names.ANNOTATION_OPERATOR, "")).strip()


def _managed_by(operator: str) -> str:
    """Part of the message that operators of all versions must write alike: they compare it."""
    return f"it is managed by {operator}"
