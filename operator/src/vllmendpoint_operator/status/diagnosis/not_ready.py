"""Why a pod without a failed container is not ready: from its report and its containers' states."""

from vllmendpoint_api import PingState, Reason, Stage, Verdict, WorkerReport
from vllmendpoint_operator.observe.snapshot import Pod

from .containers import Container, Role, containers
from .frontend_not_ready import frontend_cause
from .pod_diagnosis import PodDiagnosis
from .sentences import one_line, sentence
from .startup_stage import startup_stage
from .verdicts import ENGINE_PROBLEMS, VERDICT_REASONS

__all__ = ["not_ready_cause"]


def not_ready_cause(pod: Pod, startup_timeout_seconds: int) -> PodDiagnosis:
    report = pod.stream.report
    if pod.started and not pod.main.get("ready") and pod.stream.disconnected:
        return PodDiagnosis(
            Reason.NOT_READY,
            f"Pod {pod.name} is not ready, and the operator receives no report from it "
            f"({pod.stream.error or 'the stream ended'}): its process hangs, or the network is interrupted. "
            "Check the node and the NetworkPolicies, or delete the pod to replace it.",
        )
    if pod.stream.frontend is not None:
        return frontend_cause(pod, pod.stream.frontend) or PodDiagnosis(
            Reason.STARTING, f"Pod {pod.name} has a route to a replica, but {_not_ready_reason(pod)}."
        )
    if report is None:
        return PodDiagnosis(Reason.STARTING, _before_first_report(pod))
    if report.stage.name == Stage.REJECTED and report.configuration.problems:
        return PodDiagnosis(
            Reason.NOT_READY,
            f"Pod {pod.name} serves no requests until its configuration is valid. "
            "See the condition ConfigurationResolved.",
        )
    if not report.started:
        return PodDiagnosis(
            Reason.STARTING,
            f"Pod {pod.name} is starting{startup_stage(pod)}. "
            f"It must start within {startup_timeout_seconds} s (worker.startupTimeoutSeconds).",
        )
    return _started_cause(pod, report)


def _started_cause(pod: Pod, report: WorkerReport) -> PodDiagnosis:
    if report.ready:
        return PodDiagnosis(Reason.STARTING, f"Pod {pod.name} generates, but {_not_ready_reason(pod)}.")
    verdict, ping = Verdict(report.verdict.state), report.custom_ping
    if verdict in VERDICT_REASONS:
        reason = VERDICT_REASONS[verdict]
        subject, predicate = ENGINE_PROBLEMS[reason]
        detail = f" {sentence(report.verdict.message)}" if report.verdict.message else ""
        return PodDiagnosis(reason, f"Pod {pod.name} is not ready: {subject} {predicate}.{detail}")
    if ping is not None and ping.state == PingState.FAILING:
        return PodDiagnosis(
            Reason.PING_FAILED,
            f"Pod {pod.name} is not ready: its custom ping handler fails: {sentence(ping.message)} "
            "Fix the handler, or what it checks.",
        )
    if verdict is Verdict.STARTING:
        return PodDiagnosis(
            Reason.STARTING, f"Pod {pod.name} is starting: its first health probe has not completed yet."
        )
    return PodDiagnosis(
        Reason.NOT_READY, f"Pod {pod.name} is not accepting requests: it is warming up or shutting down."
    )


def _not_ready_reason(pod: Pod) -> str:
    """Other containers and readiness gates, of a podTemplate or a webhook, can delay the pod's readiness."""
    ready = pod.condition("Ready")
    if pod.main.get("ready"):
        others = [container.title for container in containers(pod) if container.status.get("ready") is False]
        if others:
            return f"its {' and its '.join(others)} {'is' if len(others) == 1 else 'are'} not ready"
        if ready.get("reason") == "ReadinessGatesNotReady":
            return one_line(str(ready.get("message", "")))
    return "the kubelet has not reported it as ready yet"


def _before_first_report(pod: Pod) -> str:
    if pod.condition("PodReadyToStartContainers").get("status") == "False":
        return (
            f"Pod {pod.name} is starting on node {pod.node}: its volumes and its network are not set up yet. "
            f"If this persists, run `kubectl describe pod {pod.name}` to see the reason."
        )
    for container in containers(pod):
        if container.role in (Role.INIT, Role.SIDECAR) and not container.started:
            return f"Pod {pod.name} is starting: its {container.title} {_awaited_state(container)}."
    if pod.main.get("ready"):
        return f"Pod {pod.name} is starting: {_not_ready_reason(pod)}."
    return f"Pod {pod.name} is starting (phase {pod.phase})."


def _awaited_state(container: Container) -> str:
    """Why the containers after this one cannot start yet."""
    if container.waiting:
        return f"is not running yet ({one_line(str(container.waiting.get('reason', ''))) or 'waiting'})"
    if container.role is Role.INIT:
        return "has not completed yet"
    return "is running, but its startup probe has not succeeded yet"
