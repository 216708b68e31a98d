"""``Accepted`` and ``ResolvedRefs``: what the planner, the API server and the references said."""

from typing import Final

from vllmendpoint_api import CONDITION_REASONS, Condition, Reason
from vllmendpoint_operator.errors import ConditionError
from vllmendpoint_operator.observe.references import claim_references
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed

from .conditions import Finding, false, true, unknown
from .diagnosis.pods import why
from .parts import parts, workers

__all__ = ["accepted", "resolved_refs"]

_OF_A_POD: Final = frozenset({Reason.SECRET_NOT_FOUND, Reason.CONFIG_MAP_NOT_FOUND})


def accepted(problem: ConditionError | None, unverified: bool) -> Finding:
    """``unverified``: the API server was not asked about the pods yet, since spec.paused is true."""
    if problem is not None and problem.reason in CONDITION_REASONS[Condition.ACCEPTED]:
        return false(problem.reason, problem.message)
    if problem is not None and problem.reason in CONDITION_REASONS[Condition.RESOLVED_REFS]:
        return true(
            Reason.ACCEPTED,
            "The spec is accepted. The API server validates the pods once every referenced object exists.",
        )
    if unverified:
        return true(
            Reason.ACCEPTED,
            "The spec is accepted. The API server validates the pods once spec.paused is false.",
        )
    return true(Reason.ACCEPTED, "The spec is valid.")


def resolved_refs(endpoint: Endpoint, observed: Observed, problem: ConditionError | None) -> Finding:
    if problem is not None and problem.reason in CONDITION_REASONS[Condition.RESOLVED_REFS]:
        return false(problem.reason, problem.message)
    if problem is not None and problem.reason is not Reason.PENDING:
        return unknown(Reason.PENDING, "Not checked because the spec is not accepted.")
    missing = sorted(claim_references(endpoint.spec) - observed.claims)
    if missing:
        return false(
            Reason.CLAIM_NOT_FOUND,
            f"The PersistentVolumeClaim {missing[0]!r} does not exist in the namespace {endpoint.namespace}. "
            "Create it, or reference another one in model.uri or cache.",
        )
    if (account := _missing_account(endpoint, observed)) is not None:
        return false(
            Reason.SERVICE_ACCOUNT_NOT_FOUND,
            f"The ServiceAccount {account!r} does not exist in the namespace {endpoint.namespace}, so "
            "Kubernetes cannot create worker pods. Create it, or change worker.serviceAccountName.",
        )
    for part in parts(endpoint, observed):
        for pod in part.pods if part.current is None else part.current:
            # The kubelet says it: the operator reads no Secret, and of a ConfigMap only what the plan needs.
            cause = why(pod, part.budget)
            if cause is not None and cause.reason in _OF_A_POD:
                if part.current is None:
                    return unknown(
                        Reason.PENDING,
                        f"{cause.message} This pod is of an earlier revision. No pod of the current revision "
                        "exists yet.",
                    )
                return false(cause.reason, cause.message)
    return true(Reason.RESOLVED, "Every referenced object exists.")


def _missing_account(endpoint: Endpoint, observed: Observed) -> str | None:
    """The operator watches its own ServiceAccounts only: the ReplicaSet says that one is not there."""
    named = endpoint.spec.worker.service_account_name
    refusal = workers(endpoint, observed).refusal
    return named if f'serviceaccount "{named}" not found' in refusal else None
