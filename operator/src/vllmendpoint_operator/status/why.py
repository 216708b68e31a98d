"""Why a pod is not ready: the one sentence, from the pod's own status and its worker's report."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from vllmendpoint_api import PingState, Reason, Stage, Verdict, names
from vllmendpoint_operator.model import Pod

from .cause import Cause, one_line, worst
from .ended import ended, failed
from .image_pull import PULL, cannot_pull
from .unscheduled import unscheduled

__all__ = ["VERDICT_REASONS", "Cause", "causes", "why", "worst"]


VERDICT_REASONS: Final = {
    Verdict.DEAD: Reason.ENGINE_DEAD,
    Verdict.STALLED: Reason.ENGINE_STALLED,
    Verdict.FAILING: Reason.PROBE_FAILED,
}
"""What a verdict that keeps a replica from serving is called in a condition."""

_CONFIG: Final = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "PostStartHookError",
}
_NO_REFERENCE: Final = (
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
"""As the kubelet says it of a container's environment, and the fields that may name it."""
_NO_ROOM: Final = frozenset({Reason.INSUFFICIENT_GPU, Reason.UNSCHEDULABLE})
_BYTES: Final = re.compile(r"(\d+) of (\d+) bytes")


def causes(pods: Iterable[Pod], startup_timeout_seconds: int) -> dict[str, Cause]:
    """Of each of a Deployment's pods that is not ready, by its name.

    One without room while another ends waits for that one's: so goes every rollout without a GPU to spare.
    """
    pods = tuple(pods)
    leaving = sorted((pod for pod in pods if pod.terminating), key=_node_lost)
    found = {}
    for pod in pods:
        cause = why(pod, startup_timeout_seconds)
        if cause is not None and cause.reason in _NO_ROOM and leaving:
            cause = _waits(pod, leaving[0])
        if cause is not None:
            found[pod.name] = cause
    return found


def _waits(pod: Pod, leaving: Pod) -> Cause:
    if not _node_lost(leaving):
        return Cause(
            Reason.STARTING, f"pod {pod.name} waits for what pod {leaving.name} still holds while it ends."
        )
    return Cause(
        Reason.NODE_LOST,
        f"pod {pod.name} waits for what pod {leaving.name} still holds, which cannot end: node "
        f"{leaving.node} no longer answers the control plane. Bring the machine back, or delete the node if "
        "it is gone for good.",
    )


def why(pod: Pod, startup_timeout_seconds: int) -> Cause | None:
    """Why this worker is not ready; None where it is, or is on its way out."""
    if pod.ready or pod.terminating:
        return None
    if pod.over:
        return failed(pod)
    scheduled = pod.condition("PodScheduled")
    if scheduled.get("status") == "False":
        return unscheduled(pod, scheduled)
    if _node_lost(pod):
        return Cause(
            Reason.NODE_LOST,
            f"pod {pod.name} is on node {pod.node}, which no longer answers the control plane: the machine, "
            "its kubelet or its network is down. Kubernetes makes another pod when the pod's toleration of "
            "an unreachable node ends (300 s unless set), or delete the node if it is gone for good.",
        )
    for container, status in _containers(pod):
        if (cause := _container(pod, container, status, startup_timeout_seconds)) is not None:
            return cause
    return _starting(pod, startup_timeout_seconds)


def _node_lost(pod: Pod) -> bool:
    """A kubelet writes Ready and ContainersReady together: Ready alone is taken back by the node controller.

    A pod's readiness gates would do it too; it says so then.
    """
    ready = pod.condition("Ready")
    if ready.get("reason") == "ReadinessGatesNotReady" or ready.get("status") == "Unknown":
        return ready.get("status") == "Unknown"
    return ready.get("status") == "False" and pod.condition("ContainersReady").get("status") == "True"


def _containers(pod: Pod) -> Iterator[tuple[str, dict[str, Any]]]:
    """In the order in which they start; ``podTemplate`` may bring more than the main one."""
    statuses = [
        *(pod.status.get("initContainerStatuses") or []),
        *(pod.status.get("containerStatuses") or []),
    ]
    for status in statuses:
        yield str(status.get("name", "")), status


def _container(pod: Pod, name: str, status: dict[str, Any], startup_timeout_seconds: int) -> Cause | None:
    state = status.get("state") or {}
    waiting: dict[str, Any] = state.get("waiting") or {}
    reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    if reason in PULL:
        return cannot_pull(pod, name, str(status.get("image") or f"of container {name}"), reason, message)
    if reason in _CONFIG:
        said = f"pod {pod.name} cannot start its container: {one_line(message) or reason}"
        for missing, told, fields in _NO_REFERENCE:
            if told.search(message):
                return Cause(missing, f"{said}; create it, or correct what names it: {fields}.")
        return Cause(Reason.CONTAINER_CONFIG_ERROR, f"{said}.")
    restarts = int(status.get("restartCount", 0))
    now = state.get("terminated")
    if now and name != names.MAIN_CONTAINER and int(now.get("exitCode", 0)) == 0:
        return None  # an init container that has done its work
    last = now or (status.get("lastState") or {}).get("terminated")
    if last and "running" not in state:
        return ended(pod, name, last, restarts, startup_timeout_seconds)
    # Without a startup probe a container counts as started while it fails: then readiness tells.
    if last and restarts and not status.get("started" if name == names.MAIN_CONTAINER else "ready"):
        cause = ended(pod, name, last, restarts, startup_timeout_seconds)
        return Cause(cause.reason, f"{cause.message} It is starting again{_stage(pod)}.")
    return None


def _stage(pod: Pod) -> str:
    report = pod.link.report
    if report is None or not pod.link.connected or report.started:
        return ""
    detail = f" ({_steps(report.stage.detail)})" if report.stage.detail else ""
    # A moment, not a duration: a message that moved on its own would be a write a second.
    return f": {report.stage.name}{detail} since {report.stage.since:%H:%M:%S} UTC"


def _starting(pod: Pod, startup_timeout_seconds: int) -> Cause:
    report = pod.link.report
    if pod.started and not pod.main.get("ready") and pod.link.lost:
        return Cause(
            Reason.NOT_READY,
            f"pod {pod.name} is not ready, and the operator gets no report from it "
            f"({pod.link.error or 'the stream ended'}): its process hangs, or the network is cut. Check the "
            "node and NetworkPolicies; a pod that is deleted is made anew.",
        )
    if report is None:
        return Cause(Reason.STARTING, _before_the_first_report(pod))
    if report.stage.name == Stage.REFUSED and report.configuration.problems:
        return Cause(Reason.NOT_READY, f"pod {pod.name} waits for a valid configuration, and serves nothing.")
    if not report.started:
        return Cause(
            Reason.STARTING,
            f"pod {pod.name} is starting{_stage(pod)}, budget {startup_timeout_seconds} s.",
        )
    if report.ready:
        return Cause(Reason.STARTING, f"pod {pod.name} generates; {_held_up(pod)}.")
    ping = report.custom_ping
    if ping is not None and ping.state == PingState.FAILING and report.verdict.state not in VERDICT_REASONS:
        return Cause(
            Reason.PING_FAILED,
            f"pod {pod.name} runs, but its custom ping handler fails: {ping.message}. "
            "Mend the handler, or what it looks at.",
        )
    if report.verdict.state == Verdict.STARTING:
        return Cause(Reason.STARTING, f"pod {pod.name} serves; its first probe is not back yet.")
    if report.verdict.state not in VERDICT_REASONS:
        return Cause(
            Reason.NOT_READY, f"pod {pod.name} takes no requests yet, or no more: it warms up, or is ending."
        )
    return Cause(
        VERDICT_REASONS[Verdict(report.verdict.state)],
        f"pod {pod.name} is not ready: {report.verdict.message or report.verdict.state}",
    )


def _held_up(pod: Pod) -> str:
    """By what a podTemplate, or a webhook, brought along; else by nothing but a moment."""
    ready = pod.condition("Ready")
    if pod.main.get("ready"):
        others = [name for name, status in _containers(pod) if status.get("ready") is False]
        if others:
            return f"its container {others[0]} is not ready"
        if ready.get("reason") == "ReadinessGatesNotReady":
            return one_line(str(ready.get("message", "")))
    return "the kubelet has yet to see it ready"


def _before_the_first_report(pod: Pod) -> str:
    if pod.condition("PodReadyToStartContainers").get("status") == "False":
        return (
            f"pod {pod.name} is starting on node {pod.node}: its volumes and its network are not set up yet; "
            f"if that lasts, `kubectl describe pod {pod.name}` tells why."
        )
    spec = pod.obj.get("spec") or {}
    sidecars = {c["name"] for c in spec.get("initContainers") or [] if c.get("restartPolicy") == "Always"}
    for status in pod.status.get("initContainerStatuses") or []:
        if "running" in (status.get("state") or {}) and status["name"] not in sidecars:
            return f"pod {pod.name} is starting: its init container {status['name']} has yet to end."
    return f"pod {pod.name} is starting ({pod.phase})."


def _steps(detail: str) -> str:
    """Bytes in tenths of the whole: a download must not make a status write a second."""
    found = _BYTES.search(detail)
    if found is None or not int(found[2]):
        return detail
    done, whole = int(found[1]), int(found[2])
    tenths = min(done * 10 // whole, 10)
    size = f"{whole / 1e9:.1f} GB" if whole >= 1e9 else f"{math.ceil(whole / 1e6)} MB"
    return detail.replace(found[0], f"{tenths * 10} % of {size}")
