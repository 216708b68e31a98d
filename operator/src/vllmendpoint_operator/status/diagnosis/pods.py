"""Why a pod is not ready: the one sentence, from the pod's own status and its worker's report."""

import math
import re
from collections.abc import Iterable
from typing import Final

from vllmendpoint_api import PingState, Reason, Stage, Verdict
from vllmendpoint_operator.components import WORKER
from vllmendpoint_operator.observe.snapshot import Pod

from .containers import Container, Role, containers, debuggers
from .diagnosis import Cause, worst
from .image_pull import PULL, cannot_pull
from .sentences import one_line, sentence
from .terminated import ended, failed
from .unscheduled import unscheduled

__all__ = ["ENGINE_PROBLEMS", "VERDICT_REASONS", "Cause", "causes", "why", "worst"]


VERDICT_REASONS: Final = {
    Verdict.DEAD: Reason.ENGINE_DEAD,
    Verdict.STALLED: Reason.ENGINE_STALLED,
    Verdict.FAILING: Reason.PROBE_FAILED,
}
"""What a verdict that keeps a replica from serving is called in a condition."""
ENGINE_PROBLEMS: Final = {
    Reason.ENGINE_DEAD: ("the engine", "is dead"),
    Reason.ENGINE_STALLED: ("the engine", "is stalled"),
    Reason.PROBE_FAILED: ("the health probe", "fails"),
    Reason.UNEXPECTED_ANSWER: ("the health probe", "gets unexpected answers"),
}
"""Subject and predicate of the sentence about a worker that does not generate."""

_ON_THE_WAY: Final = frozenset({"", "ContainerCreating", "PodInitializing", "CrashLoopBackOff"})
"""Why a container waits that can be created: with any other reason the kubelet cannot create or run it."""
_NEVER_RAN: Final = frozenset({"StartError", "ContainerCannotRun"})
"""Of a container that ended before its process ran."""
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
            Reason.STARTING,
            f"Pod {pod.name} is waiting for pod {leaving.name} to terminate and release its resources.",
        )
    return Cause(
        Reason.NODE_LOST,
        f"Pod {pod.name} is waiting for the resources of pod {leaving.name}, which cannot terminate: node "
        f"{leaving.node} does not respond to the control plane. Restore the node, or delete it if it is "
        "permanently lost.",
    )


def why(pod: Pod, startup_timeout_seconds: int) -> Cause | None:
    """Why this worker is not ready; None where it is, or is on its way out."""
    if pod.ready or pod.terminating:
        return None
    if pod.finished:
        return failed(pod)
    scheduled = pod.condition("PodScheduled")
    if scheduled.get("status") == "False":
        return unscheduled(pod, scheduled)
    if _node_lost(pod):
        return Cause(
            Reason.NODE_LOST,
            f"Pod {pod.name} runs on node {pod.node}, which does not respond to the control plane: the "
            "machine, its kubelet or its network is down. Kubernetes replaces the pod when its toleration of "
            "an unreachable node expires (300 s by default). Delete the node if it is permanently lost.",
        )
    found = [cause for one in containers(pod) if (cause := _container(pod, one, startup_timeout_seconds))]
    cause = worst(found) or _starting(pod, startup_timeout_seconds)
    # Each container that does not start is named: those of kubectl debug too, which hold up nothing.
    more = [other.message for other in found if other is not cause]
    more += [text for one in debuggers(pod) if (text := _not_started(pod, one, startup_timeout_seconds))]
    return Cause(cause.reason, " ".join([cause.message, *more])) if more else cause


def _node_lost(pod: Pod) -> bool:
    """A kubelet writes Ready and ContainersReady together: Ready alone is taken back by the node controller.

    A pod's readiness gates would do it too; it says so then.
    """
    ready = pod.condition("Ready")
    if ready.get("reason") == "ReadinessGatesNotReady" or ready.get("status") == "Unknown":
        return ready.get("status") == "Unknown"
    return ready.get("status") == "False" and pod.condition("ContainersReady").get("status") == "True"


def _container(pod: Pod, container: Container, startup_timeout_seconds: int) -> Cause | None:
    if (cause := _cannot_start(pod, container)) is not None:
        return cause
    if container.completed:
        return None
    status, now = container.status, container.terminated
    restarts = int(status.get("restartCount", 0))
    last = now or (status.get("lastState") or {}).get("terminated")
    if last and "running" not in container.state:
        return ended(pod, container, last, restarts, startup_timeout_seconds)
    # Without a startup probe a container counts as started while it fails: then readiness tells.
    if last and restarts and not status.get("started" if container.is_main else "ready"):
        cause = ended(pod, container, last, restarts, startup_timeout_seconds)
        stage = _stage(pod) if container.is_main else ""
        return Cause(cause.reason, f"{cause.message} It is restarting{stage}.")
    return None


def _cannot_start(pod: Pod, container: Container) -> Cause | None:
    """The kubelet cannot pull its image, or cannot create or run it."""
    reason = str(container.waiting.get("reason", ""))
    message = str(container.waiting.get("message", ""))
    if reason in PULL:
        return cannot_pull(pod, container, reason, message)
    if reason in _ON_THE_WAY:
        return None
    what = "its container" if container.is_main else f"its {container.title}"
    said = f"Pod {pod.name} cannot start {what}: {one_line(message) or reason}"
    for missing, told, fields in _NO_REFERENCE:
        if told.search(message):
            where = fields if container.is_main else container.field(pod)
            return Cause(missing, f"{said}. Create it, or correct the reference in {where}.")
    where = container.field(pod)
    if container.is_main:
        where = "worker.env and worker.podTemplate" if pod.component == WORKER else "frontend.podTemplate"
    return Cause(Reason.CONTAINER_CONFIG_ERROR, f"{said}. Check {where}.")


def _not_started(pod: Pod, container: Container, startup_timeout_seconds: int) -> str | None:
    """Of an ephemeral container: one that ran and has ended is no fault."""
    cause = _cannot_start(pod, container)
    if cause is None and container.terminated.get("reason") in _NEVER_RAN:
        cause = ended(pod, container, container.terminated, 0, startup_timeout_seconds)
    return None if cause is None else cause.message


def _stage(pod: Pod) -> str:
    report = pod.stream.report
    if report is None or not pod.stream.connected or report.started:
        return ""
    detail = f" ({_steps(report.stage.detail)})" if report.stage.detail else ""
    # A moment, not a duration: a message that moved on its own would be a write a second.
    return f": stage {report.stage.name}{detail} since {report.stage.since:%H:%M:%S} UTC"


def _starting(pod: Pod, startup_timeout_seconds: int) -> Cause:
    report = pod.stream.report
    if pod.started and not pod.main.get("ready") and pod.stream.disconnected:
        return Cause(
            Reason.NOT_READY,
            f"Pod {pod.name} is not ready, and the operator receives no report from it "
            f"({pod.stream.error or 'the stream ended'}): its process hangs, or the network is interrupted. "
            "Check the node and the NetworkPolicies, or delete the pod to replace it.",
        )
    if report is None:
        return Cause(Reason.STARTING, _before_the_first_report(pod))
    if report.stage.name == Stage.REJECTED and report.configuration.problems:
        return Cause(
            Reason.NOT_READY,
            f"Pod {pod.name} serves no requests until its configuration is valid. "
            "See the condition ConfigurationResolved.",
        )
    if not report.started:
        return Cause(
            Reason.STARTING,
            f"Pod {pod.name} is starting{_stage(pod)}. "
            f"It must start within {startup_timeout_seconds} s (worker.startupTimeoutSeconds).",
        )
    if report.ready:
        return Cause(Reason.STARTING, f"Pod {pod.name} generates, but {_held_up(pod)}.")
    ping = report.custom_ping
    if ping is not None and ping.state == PingState.FAILING and report.verdict.state not in VERDICT_REASONS:
        return Cause(
            Reason.PING_FAILED,
            f"Pod {pod.name} is not ready: its custom ping handler fails: {sentence(ping.message)} "
            "Fix the handler, or what it checks.",
        )
    if report.verdict.state == Verdict.STARTING:
        return Cause(
            Reason.STARTING, f"Pod {pod.name} is starting: its first health probe has not completed yet."
        )
    if report.verdict.state not in VERDICT_REASONS:
        return Cause(
            Reason.NOT_READY,
            f"Pod {pod.name} is not accepting requests: it is warming up or shutting down.",
        )
    reason = VERDICT_REASONS[Verdict(report.verdict.state)]
    subject, predicate = ENGINE_PROBLEMS[reason]
    detail = f" {sentence(report.verdict.message)}" if report.verdict.message else ""
    return Cause(reason, f"Pod {pod.name} is not ready: {subject} {predicate}.{detail}")


def _held_up(pod: Pod) -> str:
    """By what a podTemplate, or a webhook, brought along; else by nothing but a moment."""
    ready = pod.condition("Ready")
    if pod.main.get("ready"):
        others = [one.title for one in containers(pod) if one.status.get("ready") is False]
        if others:
            return f"its {' and its '.join(others)} {'is' if len(others) == 1 else 'are'} not ready"
        if ready.get("reason") == "ReadinessGatesNotReady":
            return one_line(str(ready.get("message", "")))
    return "the kubelet has not reported it as ready yet"


def _before_the_first_report(pod: Pod) -> str:
    if pod.condition("PodReadyToStartContainers").get("status") == "False":
        return (
            f"Pod {pod.name} is starting on node {pod.node}: its volumes and its network are not set up yet. "
            f"If this persists, run `kubectl describe pod {pod.name}` to see the reason."
        )
    for one in containers(pod):
        if one.role in (Role.INIT, Role.SIDECAR) and not one.started:
            return f"Pod {pod.name} is starting: its {one.title} {_awaited(one)}."
    if pod.main.get("ready"):
        return f"Pod {pod.name} is starting: {_held_up(pod)}."
    return f"Pod {pod.name} is starting (phase {pod.phase})."


def _awaited(container: Container) -> str:
    """What the containers after it wait for."""
    if container.waiting:
        return f"is not running yet ({one_line(str(container.waiting.get('reason', ''))) or 'waiting'})"
    if container.role is Role.INIT:
        return "has not completed yet"
    return "is running, but its startup probe has not succeeded yet"


def _steps(detail: str) -> str:
    """Bytes in tenths of the whole: a download must not make a status write a second."""
    found = _BYTES.search(detail)
    if found is None or not int(found[2]):
        return detail
    done, whole = int(found[1]), int(found[2])
    tenths = min(done * 10 // whole, 10)
    size = f"{whole / 1e9:.1f} GB" if whole >= 1e9 else f"{math.ceil(whole / 1e6)} MB"
    return detail.replace(found[0], f"{tenths * 10} % of {size}")
