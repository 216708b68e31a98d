"""The whole ``status`` of a VLLMEndpoint."""

from datetime import datetime

from vllmendpoint_api import (
    READY_PARTS,
    Condition,
    HandlersStatus,
    HandlerStatus,
    HealthCheckStatus,
    IgnoredStatus,
    PrefillStatus,
    Reason,
    RevisionStatus,
    VLLMEndpointStatus,
    WorkerReport,
    WorkerRole,
    WorkerStatus,
)
from vllmendpoint_operator.components import WORKER, invocations_url, url
from vllmendpoint_operator.desired_state import Plan
from vllmendpoint_operator.errors import ConditionError
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed

from .component import Component, worker_components
from .conditions.accepted import accepted
from .conditions.available import available
from .conditions.configuration_resolved import configuration_resolved
from .conditions.finding import Finding, condition_entries, false, true, unknown
from .conditions.generating import generating
from .conditions.paused import paused
from .conditions.ready import BLOCKED, ready, ready_message, reconciling, stalled
from .conditions.resolved_refs import resolved_refs
from .conditions.serving import routed_replicas, serving
from .conditions.up_to_date import up_to_date, updated_replicas
from .frontends import frontend_statuses
from .routes import awaits_reports
from .transfers import failed_transfers
from .workers import generates, truncate, worker_statuses

__all__ = ["endpoint_status", "invalid_spec_status", "partial_spec_status"]


def endpoint_status(
    endpoint: Endpoint, observed: Observed, plan: Plan | None, problem: ConditionError | None
) -> VLLMEndpointStatus:
    """``problem``: why there is no plan, or why the plan could not be applied."""
    previous = endpoint.status
    components = worker_components(endpoint, observed)
    all_workers = worker_statuses(components, previous, observed.now, failed_transfers(endpoint, observed))
    listed, omitted = truncate(all_workers)
    workers = [worker for worker in all_workers if worker.role != WorkerRole.PREFILL]
    report = _resolved_report(observed)
    # A new leader has no reports yet, so it keeps the previous values. Without workers there are none.
    fallback = previous if previous is not None and observed.workers else VLLMEndpointStatus()
    return VLLMEndpointStatus(
        observed_generation=endpoint.generation,
        replicas=len(workers),
        updated_replicas=updated_replicas(components[0]),
        ready_replicas=sum(worker.ready for worker in workers),
        generating_replicas=sum(generates(worker) for worker in workers),
        routed_replicas=(
            previous.routed_replicas
            if previous is not None and awaits_reports(observed)
            else routed_replicas(endpoint, observed)
        ),
        prefill=_prefill(components, all_workers),
        selector=",".join(f"{key}={value}" for key, value in sorted(endpoint.selector(WORKER).items())),
        model_name=endpoint.model_name,
        url=url(endpoint),
        invocations_url=invocations_url(endpoint),
        revision=_revision_in_force(endpoint, plan, problem),
        health_check=_health_check(report) or fallback.health_check,
        handlers=_handlers(report) or fallback.handlers,
        workers=listed,
        workers_omitted=omitted,
        frontends=frontend_statuses(endpoint, observed),
        conditions=condition_entries(
            _findings(endpoint, observed, plan, problem, all_workers),
            previous.conditions if previous else (),
            endpoint.generation,
            observed.now,
        ),
    )


def _prefill(components: tuple[Component, ...], workers: tuple[WorkerStatus, ...]) -> PrefillStatus | None:
    if len(components) == 1:
        return None
    found = [worker for worker in workers if worker.role == WorkerRole.PREFILL]
    return PrefillStatus(
        replicas=len(found),
        updated_replicas=updated_replicas(components[1]),
        ready_replicas=sum(worker.ready for worker in found),
        generating_replicas=sum(generates(worker) for worker in found),
    )


def partial_spec_status(
    endpoint: Endpoint, observed: Observed, problem: ConditionError
) -> VLLMEndpointStatus:
    """The status if the operator can read the replica counts of the spec, but not the whole spec.

    The fields that depend on the rest of the spec keep their previous values.
    """
    found = endpoint_status(endpoint, observed, None, problem)
    previous = endpoint.status
    if previous is None or previous.url is None:
        return found
    fields = ("model_name", "url", "invocations_url")
    return found.model_copy(update={name: getattr(previous, name) for name in fields})


def invalid_spec_status(endpoint: Endpoint, message: str, now: datetime) -> VLLMEndpointStatus:
    """The status if the operator cannot read the spec: all but the conditions keeps its previous value."""
    rejected = false(Reason.INVALID_SPEC, message)
    findings: dict[Condition, Finding] = {
        Condition.ACCEPTED: rejected,
        **{
            condition: unknown(Reason.PENDING, "Not checked because the spec is not accepted.")
            for condition in READY_PARTS[1:]
        },
        Condition.READY: rejected,
        Condition.RECONCILING: BLOCKED,
        Condition.STALLED: true(Reason.INVALID_SPEC, message),
    }
    previous = endpoint.status or VLLMEndpointStatus()
    return previous.model_copy(
        update={
            "observed_generation": endpoint.generation,
            "conditions": condition_entries(findings, previous.conditions, endpoint.generation, now),
        }
    )


def _findings(
    endpoint: Endpoint,
    observed: Observed,
    plan: Plan | None,
    problem: ConditionError | None,
    workers: tuple[WorkerStatus, ...],
) -> dict[Condition, Finding]:
    """All conditions, in the order in which the status lists them."""
    spec = endpoint.spec
    components = worker_components(endpoint, observed)
    current_pods = [pod for component in components for pod in component.current_pods or ()]
    findings = {
        Condition.ACCEPTED: accepted(problem, spec.paused and plan is not None and bool(plan.verify)),
        Condition.RESOLVED_REFS: resolved_refs(endpoint, observed, problem),
        Condition.CONFIGURATION_RESOLVED: configuration_resolved(
            endpoint,
            observed,
            plan.settings.hash if plan is not None else None,
            plan.withheld if plan is not None else None,
        ),
        Condition.AVAILABLE: available(endpoint, observed, problem),
        Condition.GENERATING: generating(endpoint, workers, {pod.name for pod in current_pods}),
        Condition.SERVING: serving(endpoint, observed),
        Condition.UP_TO_DATE: up_to_date(
            endpoint, observed, None if plan is None else plan.revision.name, problem
        ),
    }
    if spec.paused:
        findings |= paused(endpoint, observed, findings)
    message = (
        ready_message(endpoint, observed, findings[Condition.GENERATING])
        if spec.replicas
        else findings[Condition.AVAILABLE].message
    )
    if findings[Condition.SERVING].reason is Reason.KV_EVENTS_MISSING:
        message = f"{message} {findings[Condition.SERVING].message}"
    return findings | {
        Condition.READY: ready(findings, message),
        Condition.RECONCILING: reconciling(findings),
        Condition.STALLED: stalled(findings),
    }


def _revision_in_force(
    endpoint: Endpoint, plan: Plan | None, problem: ConditionError | None
) -> RevisionStatus | None:
    """The plan's revision, or the previous one if the plan is not applied."""
    if plan is not None and problem is None and not endpoint.spec.paused:
        return plan.revision
    return endpoint.status.revision if endpoint.status else None


def _resolved_report(observed: Observed) -> WorkerReport | None:
    """Report of the first worker that has resolved its health check."""
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
