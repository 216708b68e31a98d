"""The finding for one condition, and the entries of ``status.conditions``."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from vllmendpoint_api import CONDITION_REASONS, Condition, ConditionEntry, ConditionStatus, Reason
from vllmendpoint_operator.observe.snapshot import Endpoint

__all__ = ["Finding", "condition_entries", "false", "previous_finding", "timestamp", "true", "unknown"]

_MAX_MESSAGE: Final = 32_768
"""Characters, as the CRD allows."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Status, reason and message of one condition."""

    status: ConditionStatus
    reason: Reason
    message: str
    """Complete sentences."""

    @property
    def is_true(self) -> bool:
        return self.status is ConditionStatus.TRUE


def true(reason: Reason, message: str) -> Finding:
    return Finding(ConditionStatus.TRUE, reason, message)


def false(reason: Reason, message: str) -> Finding:
    return Finding(ConditionStatus.FALSE, reason, message)


def unknown(reason: Reason, message: str) -> Finding:
    return Finding(ConditionStatus.UNKNOWN, reason, message)


def previous_finding(endpoint: Endpoint, condition: Condition) -> Finding | None:
    """The condition in the current status; None if it is of another generation or of an unknown reason."""
    for entry in endpoint.status.conditions if endpoint.status is not None else ():
        if (
            entry.type == condition
            and entry.observed_generation == endpoint.generation
            and entry.reason in CONDITION_REASONS[condition]
        ):
            return Finding(ConditionStatus(entry.status), Reason(entry.reason), entry.message)
    return None


def timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def condition_entries(
    findings: Mapping[Condition, Finding],
    previous: Iterable[ConditionEntry],
    generation: int,
    now: datetime,
) -> tuple[ConditionEntry, ...]:
    """``lastTransitionTime`` changes only if the condition's status does."""
    previous_entries = {entry.type: entry for entry in previous}
    result = []
    for condition, finding in findings.items():
        before = previous_entries.get(condition.value)
        unchanged = before is not None and before.status == finding.status
        result.append(
            ConditionEntry(
                type=condition.value,
                status=finding.status,
                reason=finding.reason.value,
                message=finding.message[:_MAX_MESSAGE],
                last_transition_time=before.last_transition_time
                if before is not None and unchanged
                else timestamp(now),
                observed_generation=generation,
            )
        )
    return tuple(result)
