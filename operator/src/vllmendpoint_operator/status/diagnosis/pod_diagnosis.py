"""The explanation of one problem, and which of several to report."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from vllmendpoint_api import Reason

__all__ = ["PodDiagnosis", "most_severe"]


@dataclass(frozen=True, slots=True)
class PodDiagnosis:
    """Why pods are missing or not ready."""

    reason: Reason
    message: str
    """Complete sentences."""


_SEVERITY: Final = {
    reason: rank
    for rank, reason in enumerate(
        (
            Reason.IMAGE_PULL_FAILED,
            Reason.CONTAINER_CONFIG_ERROR,
            Reason.SECRET_NOT_FOUND,
            Reason.CONFIG_MAP_NOT_FOUND,
            Reason.MODEL_DOWNLOAD_FAILED,
            Reason.OOM_KILLED,
            Reason.CRASH_LOOPING,
            Reason.STARTUP_TIMEOUT,
            Reason.POD_CREATION_FAILED,
            Reason.POD_FAILED,
            Reason.CLAIM_NOT_BOUND,
            Reason.INSUFFICIENT_GPU,
            Reason.UNSCHEDULABLE,
            Reason.NODE_LOST,
            Reason.ENGINE_DEAD,
            Reason.ENGINE_STALLED,
            Reason.PROBE_FAILED,
            Reason.PING_FAILED,
            Reason.NOT_READY,
            Reason.NO_ROUTE,
            Reason.STARTING,
        )
    )
}
"""What only the user can fix goes before what may pass without an action."""


def most_severe(diagnoses: Iterable[PodDiagnosis]) -> PodDiagnosis | None:
    return min(diagnoses, key=lambda diagnosis: _SEVERITY.get(diagnosis.reason, len(_SEVERITY)), default=None)
