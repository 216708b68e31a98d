"""Which operator manages an endpoint, where several watch its namespace. Pure.

The annotation decides, then ``status.operator``, which stays with the first operator that writes it. An
operator that does not manage an endpoint writes nothing but one condition.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from vllmendpoint_api import ConditionStatus, Reason, names
from vllmendpoint_operator.status.conditions import timestamp

__all__ = [
    "CONFLICT_FIELD_MANAGER",
    "assigned_operator",
    "conflict_condition",
    "existing_conflict",
    "managing_operator",
    "names_manager",
    "without_conflict",
]

CONFLICT_FIELD_MANAGER: Final = "vllmendpoint-operator-stepped-back"
"""Field manager of the one condition, for all operators alike: what one of them wrote another may replace."""

Object = dict[str, Any]


def assigned_operator(metadata: Object) -> str:
    """The operator that the annotation names; empty: none."""
    return str((metadata.get("annotations") or {}).get(names.ANNOTATION_OPERATOR, "")).strip()


def managing_operator(metadata: Object, status: Object) -> str:
    """The operator that manages the endpoint; empty: the first to claim it."""
    return assigned_operator(metadata) or str(status.get("operator") or "")


def conflict_condition(obj: Object, me: str, now: datetime) -> Object | None:
    """The condition that ``me`` writes, which does not manage ``obj``; None where it stands already.

    Whoever wrote it: of several that step back, the first one speaks for all.
    """
    owner = managing_operator(obj["metadata"], obj["status"])
    how = "annotation" if assigned_operator(obj["metadata"]) else "status.operator"
    before = existing_conflict(obj["status"])
    if before is not None and _names(before, owner):
        return None
    return {
        "type": names.CONDITION_OPERATOR_CONFLICT,
        "status": ConditionStatus.TRUE.value,
        "reason": Reason.MANAGED_BY_ANOTHER_OPERATOR.value,
        "message": f"The operator {me} watches this namespace too. It leaves the endpoint alone, since "
        f"{_managed_by(owner)} ({how}). To hand the endpoint over, annotate it with "
        f"{names.ANNOTATION_OPERATOR}={me}.",
        "lastTransitionTime": before["lastTransitionTime"] if before is not None else timestamp(now),
        "observedGeneration": obj["metadata"]["generation"],
    }


def names_manager(entry: Object, me: str) -> bool:
    """The condition says that another operator leaves the endpoint to ``me``, which manages it."""
    return _names(entry, me)


def existing_conflict(status: Object) -> Object | None:
    """The condition of an operator that stepped back, if there is one."""
    conditions: Iterable[Object] = status.get("conditions") or ()
    return next((one for one in conditions if one["type"] == names.CONDITION_OPERATOR_CONFLICT), None)


def without_conflict(status: Object) -> Object:
    """``status`` as the operator writes it that manages the endpoint."""
    conditions = status.get("conditions")
    if not conditions:
        return status
    own = [entry for entry in conditions if entry.get("type") != names.CONDITION_OPERATOR_CONFLICT]
    return {**status, "conditions": own}


def _names(entry: Object, owner: str) -> bool:
    return f"{_managed_by(owner)} (" in entry["message"]


def _managed_by(owner: str) -> str:
    return f"it is managed by {owner}"
