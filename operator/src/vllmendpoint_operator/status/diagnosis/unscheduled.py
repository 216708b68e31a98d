"""Why the scheduler finds no node, from its message.

The operator may not read nodes. The scheduler's text on preemption (NodeResourcesFit and DefaultPreemption of
kube-scheduler, since 1.31) shows whether a resource is in use or does not exist: "Preemption is not helpful"
counts the nodes whose allocatable is too small, "No preemption victims found" those where it is in use.
"""

import re
from typing import Any, Final

from vllmendpoint_api import Reason
from vllmendpoint_operator.observe.snapshot import Pod

from .containers import resource_amount
from .pod_diagnosis import PodDiagnosis
from .sentences import counted, one_line

__all__ = ["unscheduled_cause"]

_NODES: Final = re.compile(r"0/(\d+) nodes")
_INSUFFICIENT: Final = re.compile(r"(\d+) Insufficient ([^,\s]*[^,.\s])")
_GPU: Final = re.compile(r"(nvidia|amd|gpu\.intel)\.com/")
_IN_USE: Final = re.compile(r"(\d+) No preemption victims found")
_UNHELPFUL: Final = re.compile(r"\d+ Preemption is not helpful")
_PREEMPTION: Final = re.compile(r"\.?\s*(no new claims to deallocate,?\s*)?(preemption: .*)?$")
_UNBOUND: Final = re.compile(r"unbound immediate PersistentVolumeClaims|find available persistent volumes")


def unscheduled_cause(pod: Pod, condition: dict[str, Any]) -> PodDiagnosis:
    """``condition``: the pod's PodScheduled condition, which is False."""
    message = one_line(str(condition.get("message", "")))
    nodes = _NODES.search(message)
    total = int(nodes[1]) if nodes else None
    report = f"The scheduler reports: {_PREEMPTION.sub('', message)}."
    if condition.get("reason") == "SchedulingGated":
        return PodDiagnosis(
            Reason.UNSCHEDULABLE, f"Pod {pod.name} is waiting for its scheduling gates to be removed."
        )
    if _UNBOUND.search(message):
        return _unbound_claim_cause(pod, report)
    lacking = {name: int(count) for count, name in _INSUFFICIENT.findall(message)}
    gpu = next((name for name in lacking if _GPU.match(name)), None)
    name = gpu or next(iter(lacking), None)
    if name is None:
        return PodDiagnosis(
            Reason.UNSCHEDULABLE,
            f"Pod {pod.name} cannot be scheduled: none of {_nodes(total)} fits. {report}",
        )
    amount = resource_amount(pod, name, "requests", "limits")
    what = f"{amount} {name}" if amount else name
    supply, remedy = _supply(message, total, lacking[name], gpu is not None)
    reason = Reason.UNSCHEDULABLE if gpu is None else Reason.INSUFFICIENT_GPU
    return PodDiagnosis(reason, f"Pod {pod.name} is waiting for {what}: {supply}. {remedy} {report}")


def _unbound_claim_cause(pod: Pod, report: str) -> PodDiagnosis:
    claims = _claims(pod)
    listed = f" ({', '.join(claims)})" if claims else ""
    which = "its PersistentVolumeClaim" if len(claims) == 1 else "one of its PersistentVolumeClaims"
    return PodDiagnosis(
        Reason.CLAIM_NOT_BOUND,
        f"Pod {pod.name} is waiting for a volume: {which}{listed} is not bound. Run `kubectl describe pvc`, "
        f"and check the storage class, the provisioner and the capacity. {report}",
    )


def _supply(message: str, total: int | None, short: int, gpu: bool) -> tuple[str, str]:
    """Where the resource is, and the remedy. ``short``: number of nodes with too little of it.

    Distinguishes a resource in use from a missing one only if the message proves it.
    """
    in_use = sum(int(count) for count in _IN_USE.findall(message))
    nodes = _nodes(total)
    plugin = "check its driver and its device plugin: without these, a node offers no GPU"
    if total is not None and in_use + short > total:
        sure = in_use + short - total
        has = f"{sure} of {nodes} {'has' if sure == 1 else 'have'} that much, but it is in use"
        return has, "Free GPUs, or add a GPU node." if gpu else "Free resources, or add a node."
    if not in_use and _UNHELPFUL.search(message):
        if gpu:
            return (
                f"none of {nodes} offers that many, free or in use",
                f"Request fewer, or add a GPU node. If a node has them, {plugin}.",
            )
        return f"none of {nodes} is large enough, even when empty", "Request less, or add a larger node."
    if gpu:
        return (
            f"none of {nodes} has that many free",
            f"Free GPUs, or add a GPU node. If a node has them, {plugin}.",
        )
    return f"none of {nodes} has that much free", "Free resources, or add a node."


def _nodes(total: int | None) -> str:
    return "the nodes" if total is None else counted(total, "node")


def _claims(pod: Pod) -> list[str]:
    volumes = (pod.obj.get("spec") or {}).get("volumes") or []
    found = ((volume.get("persistentVolumeClaim") or {}).get("claimName") for volume in volumes)
    return [str(name) for name in found if name]
