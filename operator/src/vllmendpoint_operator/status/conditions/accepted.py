"""``Accepted``: the operator and the API server accept the spec."""

from vllmendpoint_api import CONDITION_REASONS, Condition, Reason
from vllmendpoint_operator.errors import ConditionError

from .finding import Finding, false, true

__all__ = ["accepted"]


def accepted(problem: ConditionError | None, unverified: bool) -> Finding:
    """``unverified``: the API server has not validated the pods yet, because spec.paused is true."""
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
