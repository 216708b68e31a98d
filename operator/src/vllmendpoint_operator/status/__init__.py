"""From a spec and what was observed to the status. Pure: no I/O, no clock."""

from datetime import datetime

from vllmendpoint_api import (
    READY_PARTS,
    Condition,
    HandlersStatus,
    HandlerStatus,
    HealthCheckStatus,
    IgnoredStatus,
    Reason,
    VLLMEndpointStatus,
    WorkerReport,
)
from vllmendpoint_operator.components import WORKER, invocations_url, url
from vllmendpoint_operator.desired_state import Plan
from vllmendpoint_operator.errors import ConditionError
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed

from . import parts
from .available import available
from .conditions import Finding, entries, false, true, unknown
from .configuration import configuration_resolved
from .diagnosis.sentences import sentence
from .generating import generating
from .paused import paused
from .ready import ready, reconciling, stalled
from .refusals import accepted, resolved_refs
from .strength import strength
from .up_to_date import up_to_date, updated_replicas
from .workers import GENERATING, shown, workers

__all__ = ["invalid_status", "status", "unread_status"]


def status(
    endpoint: Endpoint, observed: Observed, plan: Plan | None, problem: ConditionError | None
) -> VLLMEndpointStatus:
    """The whole status. ``problem`` is why there is no plan, or why it could not be applied."""
    before = endpoint.status
    spec = endpoint.spec
    listed = workers(observed.workers, before, observed.now, spec.worker.startup_timeout_seconds)
    findings: dict[Condition, Finding] = {
        Condition.ACCEPTED: accepted(problem, spec.paused and plan is not None and bool(plan.verify)),
        Condition.RESOLVED_REFS: resolved_refs(endpoint, observed, problem),
        Condition.CONFIGURATION_RESOLVED: configuration_resolved(
            endpoint,
            observed,
            plan.settings.hash if plan is not None else None,
            plan.withheld if plan is not None else None,
        ),
        Condition.AVAILABLE: available(endpoint, observed, problem),
        Condition.GENERATING: generating(
            endpoint, listed, {pod.name for pod in parts.workers(endpoint, observed).current or ()}
        ),
        Condition.UP_TO_DATE: unknown(
            Reason.PENDING, f"The operator could not apply the current revision: {sentence(problem.message)}"
        )
        if problem is not None
        else up_to_date(endpoint, observed, None if plan is None else plan.revision.name),
    }
    if spec.paused:
        findings |= paused(endpoint, observed, findings)
    serving = (
        strength(endpoint, observed, findings[Condition.GENERATING])
        if spec.replicas
        else findings[Condition.AVAILABLE].message
    )
    findings |= {
        Condition.READY: ready(findings, serving),
        Condition.RECONCILING: reconciling(findings),
        Condition.STALLED: stalled(findings),
    }
    told, omitted = shown(listed)
    report = _reporter(observed)
    # A new leader has to hear a worker yet; where there is none, nothing is in force.
    kept = before if before is not None and observed.workers else VLLMEndpointStatus()
    return VLLMEndpointStatus(
        observed_generation=endpoint.generation,
        replicas=len(listed),
        updated_replicas=updated_replicas(endpoint, observed),
        ready_replicas=sum(worker.ready for worker in listed),
        generating_replicas=sum(worker.verdict in GENERATING for worker in listed),
        selector=",".join(f"{key}={value}" for key, value in sorted(endpoint.selector(WORKER).items())),
        model_name=endpoint.model_name,
        url=url(endpoint),
        invocations_url=invocations_url(endpoint),
        # What is in force: not what the plan would make, were it not paused, or refused.
        revision=plan.revision
        if plan is not None and problem is None and not spec.paused
        else before.revision
        if before
        else None,
        health_check=_health_check(report) or kept.health_check,
        handlers=_handlers(report) or kept.handlers,
        workers=told,
        workers_omitted=omitted,
        conditions=entries(findings, before.conditions if before else (), endpoint.generation, observed.now),
    )


def unread_status(endpoint: Endpoint, observed: Observed, problem: ConditionError) -> VLLMEndpointStatus:
    """The status of a spec of which this operator can read the counts, but not all: what runs is as it is."""
    found = status(endpoint, observed, None, problem)
    before = endpoint.status
    if before is None or before.url is None:
        return found
    kept = {name: getattr(before, name) for name in ("model_name", "url", "invocations_url")}
    return found.model_copy(update=kept)


def invalid_status(endpoint: Endpoint, message: str, now: datetime) -> VLLMEndpointStatus:
    """The status of a spec that this operator cannot read: all else stays as it was."""
    refused = false(Reason.INVALID_SPEC, message)
    findings: dict[Condition, Finding] = {
        Condition.ACCEPTED: refused,
        **{
            part: unknown(Reason.PENDING, "Not checked because the spec is not accepted.")
            for part in READY_PARTS[1:]
        },
        Condition.READY: refused,
        Condition.RECONCILING: false(Reason.SETTLED, "Reconciliation is blocked until the error is fixed."),
        Condition.STALLED: true(Reason.INVALID_SPEC, message),
    }
    before = endpoint.status or VLLMEndpointStatus()
    return before.model_copy(
        update={
            "observed_generation": endpoint.generation,
            "conditions": entries(findings, before.conditions, endpoint.generation, now),
        }
    )


def _reporter(observed: Observed) -> WorkerReport | None:
    """The worker that speaks for the configuration in force: the first that has resolved one."""
    for pod in observed.workers:
        if (
            not pod.terminating
            and pod.stream.report is not None
            and pod.stream.report.health_check is not None
        ):
            return pod.stream.report
    return None


def _health_check(report: WorkerReport | None) -> HealthCheckStatus | None:
    check = report.health_check if report else None
    if check is None:
        return None
    return HealthCheckStatus(
        source=check.source,
        level=check.level,
        payload=check.payload,
        payload_digest=check.payload_digest,
        ignored=tuple(IgnoredStatus(source=item.source, reason=item.reason) for item in check.ignored),
    )


def _handlers(report: WorkerReport | None) -> HandlersStatus | None:
    if report is None:
        return None
    handlers = report.handlers
    return HandlersStatus(
        script_digest=handlers.script_digest,
        ping=HandlerStatus(source=handlers.ping.source, handler=handlers.ping.handler),
        invocations=HandlerStatus(source=handlers.invocations.source, handler=handlers.invocations.handler),
    )
