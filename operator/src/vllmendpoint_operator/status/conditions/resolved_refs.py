"""``ResolvedRefs``: every object that the spec refers to exists."""

from typing import Final

from vllmendpoint_api import CONDITION_REASONS, Condition, Reason
from vllmendpoint_operator.errors import ConditionError
from vllmendpoint_operator.observe.references import claim_references
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed
from vllmendpoint_operator.status.component import components, worker_components
from vllmendpoint_operator.status.diagnosis.pods import diagnose_pod

from .finding import Finding, false, true, unknown

__all__ = ["resolved_refs"]

_REPORTED_BY_KUBELET: Final = frozenset({Reason.SECRET_NOT_FOUND, Reason.CONFIG_MAP_NOT_FOUND})
"""The operator reads no Secrets, and of the ConfigMaps only those that the plan needs."""


def resolved_refs(endpoint: Endpoint, observed: Observed, problem: ConditionError | None) -> Finding:
    if problem is not None and problem.reason in CONDITION_REASONS[Condition.RESOLVED_REFS]:
        return false(problem.reason, problem.message)
    if problem is not None and problem.reason is not Reason.PENDING:
        return unknown(Reason.PENDING, "Not checked because the spec is not accepted.")
    return (
        _missing_claim(endpoint, observed)
        or _missing_account(endpoint, observed)
        or _missing_for_a_pod(endpoint, observed)
        or true(Reason.RESOLVED, "Every referenced object exists.")
    )


def _missing_claim(endpoint: Endpoint, observed: Observed) -> Finding | None:
    missing = sorted(claim_references(endpoint.spec) - observed.claims)
    if not missing:
        return None
    return false(
        Reason.CLAIM_NOT_FOUND,
        f"The PersistentVolumeClaim {missing[0]!r} does not exist in the namespace {endpoint.namespace}. "
        "Create it, or reference another one in model.uri or cache.",
    )


def _missing_account(endpoint: Endpoint, observed: Observed) -> Finding | None:
    """Read from the ReplicaSet's error: the operator watches no ServiceAccounts but its own."""
    account = endpoint.spec.worker.service_account_name
    missing = f'serviceaccount "{account}" not found'
    failures = (each.replica_failure for each in worker_components(endpoint, observed))
    if account is None or not any(missing in message for message in failures):
        return None
    return false(
        Reason.SERVICE_ACCOUNT_NOT_FOUND,
        f"The ServiceAccount {account!r} does not exist in the namespace {endpoint.namespace}, so "
        "Kubernetes cannot create worker pods. Create it, or change worker.serviceAccountName.",
    )


def _missing_for_a_pod(endpoint: Endpoint, observed: Observed) -> Finding | None:
    for component in components(endpoint, observed):
        current = component.current_pods
        for pod in component.pods if current is None else current:
            diagnosis = diagnose_pod(pod, component.startup_timeout_seconds)
            if diagnosis is None or diagnosis.reason not in _REPORTED_BY_KUBELET:
                continue
            if current is not None:
                return false(diagnosis.reason, diagnosis.message)
            return unknown(
                Reason.PENDING,
                f"{diagnosis.message} This pod is of an earlier revision. No pod of the current revision "
                "exists yet.",
            )
    return None
