"""Translates the API server's rejection of a child into a condition's reason and message. Pure."""

import re
from typing import Final

from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import ConditionError, Rejected, TerminalError
from vllmendpoint_operator.kube.kinds import CLAIM, CONTROLLER_REVISION, DEPLOYMENT, Kind
from vllmendpoint_operator.observe.snapshot import Object

__all__ = ["rejection"]

_NOT_CAUSED_BY_SPEC: Final = re.compile(
    r"exceeded quota|cannot \w+ resource|attempting to grant RBAC permissions"
)
"""A ResourceQuota, or a permission that the operator does not have."""


def rejection(kind: Kind, desired: Object, live: Object | None, error: Rejected) -> ConditionError:
    """``live``: the object that ``desired`` was applied over, if any."""
    subject = f"the API server refuses the {desired['kind']} {desired['metadata']['name']}"
    if error.status == 403 and _NOT_CAUSED_BY_SPEC.search(error.message):
        return ConditionError(
            Reason.PENDING, f"{subject}: {error.message}{_quota_advice(kind, error)}; it is tried again"
        )
    if kind is CLAIM:
        # The lines after the first compare the two objects in Go's notation.
        first_line = error.message.partition("\n")[0]
        return TerminalError(
            Reason.INVALID_SPEC, f"cache.volumeClaimTemplate: {subject}: {first_line}{_claim_advice(live)}"
        )
    is_template = kind in (DEPLOYMENT, CONTROLLER_REVISION)
    reason = Reason.INVALID_POD_TEMPLATE if is_template else Reason.INVALID_SPEC
    return TerminalError(reason, f"{subject}: {error.message}")


def _quota_advice(kind: Kind, error: Rejected) -> str:
    if "exceeded quota" not in error.message:
        return ""
    alternative = ", or lower cache.volumeClaimTemplate.size" if kind is CLAIM else ""
    return f". Raise the ResourceQuota{alternative}"


def _claim_advice(claim: Object | None) -> str:
    if claim is None:
        return ""
    name, size = claim["metadata"]["name"], claim["spec"]["resources"]["requests"]["storage"]
    return (
        f"; it has {size}: set size to that again, or, if nothing of worth is in it, "
        f"`kubectl delete pvc {name}` has it made anew"
    )
