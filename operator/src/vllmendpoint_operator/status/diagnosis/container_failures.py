"""Why a container does not start or keeps terminating."""

import re
from typing import Final

from vllmendpoint_api import Reason
from vllmendpoint_operator.components import PREFILL, WORKER
from vllmendpoint_operator.observe.snapshot import Pod

from .containers import Container
from .image_pull import PULL_REASONS, image_pull_cause
from .pod_diagnosis import PodDiagnosis
from .sentences import one_line
from .startup_stage import startup_stage
from .terminated import terminated_cause

__all__ = ["container_cause", "ephemeral_container_cause"]

_STARTABLE: Final = frozenset({"", "ContainerCreating", "PodInitializing", "CrashLoopBackOff"})
"""Reasons of waiting containers that the kubelet can create. With any other reason it cannot."""
_NEVER_STARTED: Final = frozenset({"StartError", "ContainerCannotRun"})
"""Reasons of containers that terminated before their process started."""
_MISSING_REFERENCES: Final = (
    (
        Reason.SECRET_NOT_FOUND,
        re.compile(r'secret ".*" not found|in Secret \S+$'),
        "model.tokenSecretRef, worker.env, worker.envFrom or a podTemplate",
    ),
    (
        Reason.CONFIG_MAP_NOT_FOUND,
        re.compile(r'configmap ".*" not found|in ConfigMap \S+$'),
        "worker.env, worker.envFrom or a podTemplate",
    ),
)
"""The kubelet's messages about a container's environment, and the fields that may have the reference."""

_MAIN_FIELDS: Final = {
    WORKER: "worker.env and worker.podTemplate",
    PREFILL: "worker.env, worker.podTemplate and prefill.podTemplate",
}
"""Component -> fields that configure its main container."""


def container_cause(pod: Pod, container: Container, startup_timeout_seconds: int) -> PodDiagnosis | None:
    """None if the container is running, has completed or is about to start."""
    if (cause := _creation_cause(pod, container)) is not None:
        return cause
    if container.completed:
        return None
    restarts = int(container.status.get("restartCount", 0))
    last = container.terminated or (container.status.get("lastState") or {}).get("terminated")
    if not last:
        return None
    running = "running" in container.state
    # Without a startup probe, which only the main container always has, ``started`` is true immediately.
    is_up = container.status.get("started" if container.is_main else "ready")
    if running and (not restarts or is_up):
        return None
    cause = terminated_cause(pod, container, last, restarts, startup_timeout_seconds)
    if not running:
        return cause
    stage = startup_stage(pod) if container.is_main else ""
    return PodDiagnosis(cause.reason, f"{cause.message} It is restarting{stage}.")


def ephemeral_container_cause(
    pod: Pod, container: Container, startup_timeout_seconds: int
) -> PodDiagnosis | None:
    """None also if the container started and terminated."""
    cause = _creation_cause(pod, container)
    if cause is None and container.terminated.get("reason") in _NEVER_STARTED:
        return terminated_cause(pod, container, container.terminated, 0, startup_timeout_seconds)
    return cause


def _creation_cause(pod: Pod, container: Container) -> PodDiagnosis | None:
    """Why the kubelet cannot pull the image, or cannot create or start the container."""
    reason = str(container.waiting.get("reason", ""))
    message = str(container.waiting.get("message", ""))
    if reason in PULL_REASONS:
        return image_pull_cause(pod, container, reason, message)
    if reason in _STARTABLE:
        return None
    what = "its container" if container.is_main else f"its {container.title}"
    failure = f"Pod {pod.name} cannot start {what}: {one_line(message) or reason}"
    for missing, pattern, fields in _MISSING_REFERENCES:
        if pattern.search(message):
            where = fields if container.is_main else container.field(pod)
            return PodDiagnosis(missing, f"{failure}. Create it, or correct the reference in {where}.")
    where = container.field(pod)
    if container.is_main:
        where = _MAIN_FIELDS.get(pod.component, "frontend.podTemplate")
    return PodDiagnosis(Reason.CONTAINER_CONFIG_ERROR, f"{failure}. Check {where}.")
