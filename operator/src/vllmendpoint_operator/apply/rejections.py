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
    subject = f"The API server rejected the {desired['kind']} {desired['metadata']['name']}"
    cause = error.message.rstrip(".")
    if error.status == 403 and _NOT_CAUSED_BY_SPEC.search(cause):
        return ConditionError(
            Reason.PENDING, f"{subject}: {cause}. {_quota_advice(kind, cause)}The operator retries."
        )
    if kind is CLAIM:
        # The lines after the first compare the two objects in Go's notation.
        first_line = cause.partition("\n")[0].rstrip(".")
        return TerminalError(
            Reason.INVALID_SPEC, f"cache.volumeClaimTemplate: {subject}: {first_line}.{_claim_advice(live)}"
        )
    is_template = kind in (DEPLOYMENT, CONTROLLER_REVISION)
    reason = Reason.INVALID_POD_TEMPLATE if is_template else Reason.INVALID_SPEC
    return TerminalError(reason, f"{subject}: {cause}.")


def _quota_advice(kind: Kind, cause: str) -> str:
    if "exceeded quota" not in cause:
        return ""
    alternative = ", or lower cache.volumeClaimTemplate.size" if kind is CLAIM else ""
    return f"Raise the ResourceQuota{alternative}. "


def _claim_advice(claim: Object | None) -> str:
    if claim is None:
        return ""
    name, size = claim["metadata"]["name"], claim["spec"]["resources"]["requests"]["storage"]
    return (
        f" The existing claim has {size}. Set size to {size}, or, if its data is not needed, delete it with "
        f"`kubectl delete pvc {name}`, so that the operator creates it again."
    )
