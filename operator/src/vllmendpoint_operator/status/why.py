"""Why a pod is not ready: the one sentence, from the pod's own status and its worker's report."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from vllmendpoint_api import PingState, Reason, Stage, Verdict
from vllmendpoint_operator.model import Pod
from vllmendpoint_operator.plan.workload import GRACE_SECONDS

__all__ = ["VERDICT_REASONS", "Cause", "why", "worst"]


@dataclass(frozen=True, slots=True)
class Cause:
    reason: Reason
    message: str


VERDICT_REASONS: Final = {
    Verdict.DEAD: Reason.ENGINE_DEAD,
    Verdict.STALLED: Reason.ENGINE_STALLED,
    Verdict.FAILING: Reason.PROBE_FAILED,
}
"""What a verdict that keeps a replica from serving is called in a condition."""

_PULL: Final = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
}
_CONFIG: Final = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_GPU = re.compile(r"Insufficient ((?:nvidia|amd|gpu\.intel)\.com/\S*[^,.\s])")
_NO_SECRET = re.compile(r'secret ".*" not found|in Secret \S+$')
_INSUFFICIENT = re.compile(r"Insufficient ([^,.\s]+(?:\.[^,.\s]+)*(?:/[^,.\s]+)?)")
_SLACK_SECONDS: Final = 10
_NODES = re.compile(r"0/(\d+) nodes")

_RANK: Final = {
    reason: rank
    for rank, reason in enumerate(
        (
            Reason.IMAGE_PULL_FAILED,
            Reason.CONTAINER_CONFIG_ERROR,
            Reason.SECRET_NOT_FOUND,
            Reason.OOM_KILLED,
            Reason.CRASH_LOOPING,
            Reason.STARTUP_TIMEOUT,
            Reason.POD_FAILED,
            Reason.INSUFFICIENT_GPU,
            Reason.UNSCHEDULABLE,
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


def why(pod: Pod, startup_timeout_seconds: int) -> Cause | None:
    """Why this worker is not ready; None where it is, or is on its way out."""
    if pod.ready or pod.terminating:
        return None
    if pod.phase == "Failed":
        reason = str(pod.status.get("reason", "")) or "Failed"
        message = str(pod.status.get("message", ""))
        return Cause(Reason.POD_FAILED, f"pod {pod.name} {reason}: {message}".rstrip(": .") + ".")
    scheduled = pod.condition("PodScheduled")
    if scheduled.get("status") == "False":
        return _unschedulable(pod, str(scheduled.get("message", "")))
    return _container(pod, startup_timeout_seconds) or _starting(pod, startup_timeout_seconds)


def _unschedulable(pod: Pod, message: str) -> Cause:
    nodes = _NODES.search(message)
    count = f"{nodes[1]} nodes" if nodes else "the nodes"
    gpu = _GPU.search(message)
    if gpu:
        wanted = _wanted(pod, gpu[1])
        return Cause(
            Reason.INSUFFICIENT_GPU,
            f"pod {pod.name} waits for {wanted} {gpu[1]}: none of {count} has that many free. "
            f"Free or add a GPU node, or check that its device plugin runs. Scheduler: {message}",
        )
    lacking = _INSUFFICIENT.search(message)
    what = f"waits for {lacking[1]}" if lacking else "cannot be scheduled"
    return Cause(Reason.UNSCHEDULABLE, f"pod {pod.name} {what}: none of {count} fits. Scheduler: {message}")


def _wanted(pod: Pod, resource: str) -> str:
    for container in (pod.obj.get("spec") or {}).get("containers") or []:
        limits = (container.get("resources") or {}).get("limits") or {}
        if resource in limits:
            return str(limits[resource])
    return "some"


def _container(pod: Pod, startup_timeout_seconds: int) -> Cause | None:
    state = pod.main.get("state") or {}
    waiting: dict[str, Any] = state.get("waiting") or {}
    reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    if reason in _PULL:
        image = _image(pod)
        return Cause(
            Reason.IMAGE_PULL_FAILED,
            f"pod {pod.name} cannot pull the image {image}: {message or reason}. "
            "Check worker.image and worker.imagePullSecrets.",
        )
    if reason in _CONFIG:
        kind = Reason.SECRET_NOT_FOUND if _NO_SECRET.search(message) else (Reason.CONTAINER_CONFIG_ERROR)
        return Cause(kind, f"pod {pod.name} cannot start its container: {message or reason}.")
    ended = state.get("terminated") or (pod.main.get("lastState") or {}).get("terminated")
    if ended and not pod.running:
        return _ended(pod, ended, startup_timeout_seconds)
    if ended and pod.restarts and not pod.started:
        cause = _ended(pod, ended, startup_timeout_seconds)
        return Cause(cause.reason, f"{cause.message} It is starting again.")
    return None


def _ended(pod: Pod, ended: dict[str, Any], startup_timeout_seconds: int) -> Cause:
    code = int(ended.get("exitCode", 0))
    times = f"{pod.restarts} restart" + ("" if pod.restarts == 1 else "s")
    said = str(ended.get("message", "")).strip().splitlines()
    last = f" It said: {said[-1][:500]}" if said else ""
    if ended.get("reason") == "OOMKilled":
        limit = _limit(pod, "memory")
        return Cause(
            Reason.OOM_KILLED,
            f"pod {pod.name} was killed for memory (OOMKilled, exit code {code}, limit {limit}, {times}). "
            "Raise worker.resources.limits.memory, or lower --max-model-len or --max-num-seqs.",
        )
    if _used_up(ended, startup_timeout_seconds):
        return Cause(
            Reason.STARTUP_TIMEOUT,
            f"pod {pod.name} was ended by the kubelet (exit code {code}, {times}) before it served: "
            f"the budget worker.startupTimeoutSeconds is {startup_timeout_seconds} s.",
        )
    return Cause(
        Reason.CRASH_LOOPING,
        f"pod {pod.name} ended with exit code {code} ({times}).{last} "
        f"See `kubectl logs {pod.name} --previous`.",
    )


def _used_up(ended: dict[str, Any], startup_timeout_seconds: int) -> bool:
    """It lived just as long as the start-up budget allows, and the time to end in: the kubelet ended it.

    The exit code does not tell: 137 is any kill, and a worker that heeds SIGTERM has its own.
    """
    try:
        lived = datetime.fromisoformat(ended["finishedAt"]) - datetime.fromisoformat(ended["startedAt"])
    except (KeyError, TypeError, ValueError):
        return False
    over = lived.total_seconds() - startup_timeout_seconds
    return -_SLACK_SECONDS <= over <= GRACE_SECONDS + _SLACK_SECONDS


def _starting(pod: Pod, startup_timeout_seconds: int) -> Cause:
    report = pod.link.report
    if report is None:
        return Cause(Reason.STARTING, f"pod {pod.name} is starting ({pod.phase}).")
    if report.stage.name == Stage.REFUSED and report.configuration.problems:
        return Cause(Reason.NOT_READY, f"pod {pod.name} waits for a valid configuration, and serves nothing.")
    if not report.started:
        detail = f" ({report.stage.detail})" if report.stage.detail else ""
        # A moment, not a duration: a message that moved on its own would be a write a second.
        return Cause(
            Reason.STARTING,
            f"pod {pod.name} is starting: {report.stage.name}{detail} since "
            f"{report.stage.since:%H:%M:%S} UTC, budget {startup_timeout_seconds} s.",
        )
    if report.ready:
        return Cause(Reason.STARTING, f"pod {pod.name} generates; the kubelet has yet to see it ready.")
    ping = report.custom_ping
    if ping is not None and ping.state == PingState.FAILING and report.verdict.state not in VERDICT_REASONS:
        return Cause(
            Reason.PING_FAILED,
            f"pod {pod.name} generates, but its custom ping handler fails: {ping.message}. "
            "Mend the handler, or what it looks at.",
        )
    if report.verdict.state == Verdict.STARTING:
        return Cause(Reason.STARTING, f"pod {pod.name} serves; its first probe is not back yet.")
    return Cause(
        VERDICT_REASONS.get(Verdict(report.verdict.state), Reason.NOT_READY),
        f"pod {pod.name} is not ready: {report.verdict.message or report.verdict.state}",
    )


def _image(pod: Pod) -> str:
    return str(pod.main.get("image") or "of container main")


def _limit(pod: Pod, resource: str) -> str:
    for container in (pod.obj.get("spec") or {}).get("containers") or []:
        limits = (container.get("resources") or {}).get("limits") or {}
        if resource in limits:
            return str(limits[resource])
    return "none set: the node's"
