"""Why a pod is not ready."""

from collections.abc import Iterable
from typing import Final

from vllmendpoint_api import Reason
from vllmendpoint_operator.observe.snapshot import Pod

from .container_failures import container_cause, ephemeral_container_cause
from .containers import containers, ephemeral_containers
from .not_ready import not_ready_cause
from .pod_diagnosis import PodDiagnosis, most_severe
from .terminated import failed_cause
from .unscheduled import unscheduled_cause

__all__ = ["diagnose_pod", "diagnose_pods"]

_INSUFFICIENT_RESOURCES: Final = frozenset({Reason.INSUFFICIENT_GPU, Reason.UNSCHEDULABLE})


def diagnose_pods(pods: Iterable[Pod], startup_timeout_seconds: int) -> dict[str, PodDiagnosis]:
    """Pod name -> why it is not ready, for the pods of one Deployment.

    A pod that cannot be scheduled while another one terminates waits for that one's resources. This is the
    normal course of a rollout without a spare GPU.
    """
    pods = tuple(pods)
    leaving = sorted((pod for pod in pods if pod.terminating), key=_is_node_lost)
    found = {}
    for pod in pods:
        diagnosis = diagnose_pod(pod, startup_timeout_seconds)
        if diagnosis is not None and diagnosis.reason in _INSUFFICIENT_RESOURCES and leaving:
            diagnosis = _waiting_for_release(pod, leaving[0])
        if diagnosis is not None:
            found[pod.name] = diagnosis
    return found


def diagnose_pod(pod: Pod, startup_timeout_seconds: int) -> PodDiagnosis | None:
    """None if the pod is ready or terminating."""
    if pod.ready or pod.terminating:
        return None
    if pod.finished:
        return failed_cause(pod)
    scheduled = pod.condition("PodScheduled")
    if scheduled.get("status") == "False":
        return unscheduled_cause(pod, scheduled)
    if _is_node_lost(pod):
        return PodDiagnosis(
            Reason.NODE_LOST,
            f"Pod {pod.name} runs on node {pod.node}, which does not respond to the control plane: the "
            "machine, its kubelet or its network is down. Kubernetes replaces the pod when its toleration of "
            "an unreachable node expires (300 s by default). Delete the node if it is permanently lost.",
        )
    failures = [
        cause
        for container in containers(pod)
        if (cause := container_cause(pod, container, startup_timeout_seconds)) is not None
    ]
    diagnosis = most_severe(failures) or not_ready_cause(pod, startup_timeout_seconds)
    messages = [diagnosis.message, *(cause.message for cause in failures if cause is not diagnosis)]
    # Ephemeral containers are reported too, although they do not affect the pod's readiness.
    messages += [
        cause.message
        for container in ephemeral_containers(pod)
        if (cause := ephemeral_container_cause(pod, container, startup_timeout_seconds)) is not None
    ]
    return PodDiagnosis(diagnosis.reason, " ".join(messages))


def _waiting_for_release(pod: Pod, leaving: Pod) -> PodDiagnosis:
    if not _is_node_lost(leaving):
        return PodDiagnosis(
            Reason.STARTING,
            f"Pod {pod.name} is waiting for pod {leaving.name} to terminate and release its resources.",
        )
    return PodDiagnosis(
        Reason.NODE_LOST,
        f"Pod {pod.name} is waiting for the resources of pod {leaving.name}, which cannot terminate: node "
        f"{leaving.node} does not respond to the control plane. Restore the node, or delete it if it is "
        "permanently lost.",
    )


def _is_node_lost(pod: Pod) -> bool:
    """Whether the node controller has set Ready to False: it leaves ContainersReady True.

    A kubelet changes both together, except for readiness gates, which it names as the reason.
    """
    ready = pod.condition("Ready")
    if ready.get("reason") == "ReadinessGatesNotReady" or ready.get("status") == "Unknown":
        return ready.get("status") == "Unknown"
    return ready.get("status") == "False" and pod.condition("ContainersReady").get("status") == "True"
