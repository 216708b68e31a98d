"""What a cause is, and which of several to tell."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from vllmendpoint_api import Reason
from vllmendpoint_operator.observe.snapshot import Pod

__all__ = ["Cause", "wanted", "worst"]


@dataclass(frozen=True, slots=True)
class Cause:
    reason: Reason
    message: str
    """Complete sentences."""


_RANK: Final = {
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
            Reason.STARTING,
        )
    )
}


def worst(causes: Iterable[Cause]) -> Cause | None:
    """The one to tell the user: what only they can mend goes before what time may mend."""
    return min(causes, key=lambda cause: _RANK.get(cause.reason, len(_RANK)), default=None)


def wanted(pod: Pod, resource: str, *kinds: str, container: str | None = None) -> str | None:
    """How much of a resource that container, or the first with such an entry, has under ``kinds``."""
    spec = pod.obj.get("spec") or {}
    containers: list[dict[str, Any]] = [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]
    for each in containers:
        if container not in (None, each.get("name")):
            continue
        for kind in kinds:
            amounts = (each.get("resources") or {}).get(kind) or {}
            if resource in amounts:
                return str(amounts[resource])
    return None
