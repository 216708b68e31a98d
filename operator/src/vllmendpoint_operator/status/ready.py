"""``Ready``, and kstatus's ``Reconciling`` and ``Stalled``: what the other conditions come to."""

from collections.abc import Mapping
from typing import Final

from vllmendpoint_api import READY_PARTS, Condition, ConditionStatus, Reason

from .conditions import Finding, false, true

__all__ = ["ready", "reconciling", "stalled"]

_HARMLESS: Final = frozenset({Reason.PROBING_DISABLED})
_TERMINAL: Final = (Condition.ACCEPTED, Condition.RESOLVED_REFS, Condition.CONFIGURATION_RESOLVED)
_WORKING: Final = frozenset({Reason.STARTING, Reason.PENDING, Reason.ROLLING_OUT})


def ready(parts: Mapping[Condition, Finding], strength: str) -> Finding:
    """True when all parts are. Else the first that is False; where none is, the first that is Unknown.

    A part that nobody can know yet (no worker runs) must not hide why none does. ``strength``: how many of
    the replicas serve, which is not all where some are missing that are not needed.
    """
    scaled_to_zero = parts[Condition.AVAILABLE].reason is Reason.SCALED_TO_ZERO
    open_parts = [
        parts[part]
        for part in READY_PARTS
        if not parts[part].holds
        and parts[part].reason not in _HARMLESS
        and not (
            scaled_to_zero
            and part in (Condition.CONFIGURATION_RESOLVED, Condition.GENERATING)
            and parts[part].status is ConditionStatus.UNKNOWN
        )
    ]
    for status in (ConditionStatus.FALSE, ConditionStatus.UNKNOWN):
        for finding in open_parts:
            if finding.status is status:
                return false(finding.reason, finding.message)
    if scaled_to_zero:
        return true(Reason.SCALED_TO_ZERO, parts[Condition.AVAILABLE].message)
    return true(Reason.READY, strength)


def stalled(parts: Mapping[Condition, Finding]) -> Finding:
    for part in _TERMINAL:
        finding = parts[part]
        if finding.status is ConditionStatus.FALSE:
            return true(finding.reason, finding.message)
    return false(Reason.SETTLED, "No terminal errors.")


def reconciling(parts: Mapping[Condition, Finding]) -> Finding:
    if stalled(parts).holds:
        return false(Reason.SETTLED, "Reconciliation is blocked until the error is fixed.")
    if parts[Condition.UP_TO_DATE].reason is Reason.PAUSED:
        return false(Reason.PAUSED, "Reconciliation is paused because spec.paused is true.")
    for part in READY_PARTS:
        finding = parts[part]
        if not finding.holds and finding.reason in _WORKING:
            if part is Condition.CONFIGURATION_RESOLVED and (
                parts[Condition.AVAILABLE].reason not in _WORKING | {Reason.AVAILABLE}
            ):
                continue
            return true(finding.reason, finding.message)
    return false(Reason.SETTLED, "No changes are in progress.")
