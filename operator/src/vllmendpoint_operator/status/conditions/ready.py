"""``Ready`` and kstatus's ``Reconciling`` and ``Stalled``, which summarize the other conditions."""

from collections.abc import Iterator, Mapping
from typing import Final

from vllmendpoint_api import READY_PARTS, Condition, ConditionStatus, Reason
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed
from vllmendpoint_operator.status.component import Component, frontend_component, worker_components
from vllmendpoint_operator.status.component_diagnosis import diagnose_component
from vllmendpoint_operator.status.diagnosis.sentences import counted, quantities, quantity

from .finding import Finding, false, previous_finding, true

__all__ = ["BLOCKED", "ready", "ready_message", "reconciling", "stalled"]

BLOCKED: Final = false(Reason.SETTLED, "Reconciliation is blocked until the error is fixed.")
"""``Reconciling`` after a terminal error."""

_HARMLESS: Final = frozenset({Reason.PROBING_DISABLED, Reason.FRONTEND_OUTDATED})
"""An upgrade of the operator does not make an endpoint unready whose pods do not report yet."""
_UNKNOWN_WITHOUT_REPLICAS: Final = (
    Condition.CONFIGURATION_RESOLVED,
    Condition.GENERATING,
    Condition.SERVING,
)
_TERMINAL: Final = (Condition.ACCEPTED, Condition.RESOLVED_REFS, Condition.CONFIGURATION_RESOLVED)
_IN_PROGRESS: Final = frozenset({Reason.STARTING, Reason.PENDING, Reason.ROLLING_OUT})


def ready(findings: Mapping[Condition, Finding], message: str) -> Finding:
    """True if all of ``READY_PARTS`` are; otherwise the first that is False, or else the first Unknown.

    False goes first: while no worker runs, some conditions are Unknown, and the False one has the cause.
    ``message``: of a True ``Ready``, from ``ready_message``.
    """
    scaled_to_zero = findings[Condition.AVAILABLE].reason is Reason.SCALED_TO_ZERO
    not_true = [
        findings[condition]
        for condition in READY_PARTS
        if not findings[condition].is_true
        and findings[condition].reason not in _HARMLESS
        and not (
            scaled_to_zero
            and condition in _UNKNOWN_WITHOUT_REPLICAS
            and findings[condition].status is ConditionStatus.UNKNOWN
        )
    ]
    for status in (ConditionStatus.FALSE, ConditionStatus.UNKNOWN):
        for finding in not_true:
            if finding.status is status:
                return false(finding.reason, finding.message)
    if scaled_to_zero:
        return true(Reason.SCALED_TO_ZERO, findings[Condition.AVAILABLE].message)
    return true(Reason.READY, message)


def stalled(findings: Mapping[Condition, Finding]) -> Finding:
    for condition in _TERMINAL:
        finding = findings[condition]
        if finding.status is ConditionStatus.FALSE:
            return true(finding.reason, finding.message)
    return false(Reason.SETTLED, "No terminal errors.")


def reconciling(findings: Mapping[Condition, Finding]) -> Finding:
    if stalled(findings).is_true:
        return BLOCKED
    if findings[Condition.UP_TO_DATE].reason is Reason.PAUSED:
        return false(Reason.PAUSED, "Reconciliation is paused because spec.paused is true.")
    for condition in READY_PARTS:
        finding = findings[condition]
        if not finding.is_true and finding.reason in _IN_PROGRESS:
            if condition in (Condition.CONFIGURATION_RESOLVED, Condition.SERVING) and (
                findings[Condition.AVAILABLE].reason not in _IN_PROGRESS | {Reason.AVAILABLE}
            ):
                continue
            return true(finding.reason, finding.message)
    return false(Reason.SETTLED, "No changes are in progress.")


def ready_message(endpoint: Endpoint, observed: Observed, generating: Finding) -> str:
    """Message of a True ``Ready``: the count of replicas that serve, and why others are missing.

    Like a Deployment's ``Available``, ``Ready`` tolerates missing replicas.
    """
    sentences = [*_sentences(endpoint, observed, generating)]
    previous = previous_finding(endpoint, Condition.READY)
    if (
        previous is not None
        and previous.message.startswith(f"{sentences[0]} ")
        and any(pod.awaiting_first_report and not pod.ready for pod in observed.all_workers)
    ):
        # The count is the same, and a new leader has no report yet that explains the missing replica.
        return previous.message
    return " ".join(sentences)


def _sentences(endpoint: Endpoint, observed: Observed, generating: Finding) -> Iterator[str]:
    workers = worker_components(endpoint, observed)
    counts = [(min(each.ready_replicas, each.replicas), each.replicas, each.noun) for each in workers]
    yield f"{quantities(counts)} {'generating' if generating.is_true else 'ready'}."
    for each in workers:
        if each.ready_replicas < each.replicas:
            yield _missing(each, observed)
    frontend = frontend_component(endpoint, observed)
    if frontend is not None and frontend.ready_replicas < frontend.replicas:
        yield f"{quantity(frontend.ready_replicas, frontend.replicas, frontend.noun)} ready."
        yield _missing(frontend, observed)


def _missing(component: Component, observed: Observed) -> str:
    count = component.replicas - component.ready_replicas
    diagnosis = diagnose_component(component, None, observed.now)
    return f"{counted(count, component.noun)} {'is' if count == 1 else 'are'} not ready. {diagnosis.message}"
