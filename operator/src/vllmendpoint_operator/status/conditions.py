"""One condition's verdict, and how it becomes an entry of ``status.conditions``."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from vllmendpoint_api import CONDITION_REASONS, Condition, ConditionEntry, ConditionStatus, Reason
from vllmendpoint_operator.observe.snapshot import Endpoint

__all__ = ["Finding", "entries", "false", "kept", "timestamp", "true", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a condition says now."""

    status: ConditionStatus
    reason: Reason
    message: str

    @property
    def holds(self) -> bool:
        return self.status is ConditionStatus.TRUE


def true(reason: Reason, message: str) -> Finding:
    return Finding(ConditionStatus.TRUE, reason, message)


def false(reason: Reason, message: str) -> Finding:
    return Finding(ConditionStatus.FALSE, reason, message)


def unknown(reason: Reason, message: str) -> Finding:
    return Finding(ConditionStatus.UNKNOWN, reason, message)


def kept(endpoint: Endpoint, condition: Condition) -> Finding | None:
    """What the condition said of this very generation, in reasons that this version knows."""
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


def entries(
    findings: Mapping[Condition, Finding],
    before: Iterable[ConditionEntry],
    generation: int,
    now: datetime,
) -> tuple[ConditionEntry, ...]:
    """``lastTransitionTime`` moves only where the status does."""
    old = {entry.type: entry for entry in before}
    result = []
    for condition, finding in findings.items():
        previous = old.get(condition.value)
        same = previous is not None and previous.status == finding.status
        result.append(
            ConditionEntry(
                type=condition.value,
                status=finding.status,
                reason=finding.reason.value,
                message=finding.message[:32_768],
                last_transition_time=previous.last_transition_time
                if same and previous is not None
                else timestamp(now),
                observed_generation=generation,
            )
        )
    return tuple(result)
