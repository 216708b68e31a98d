"""Why a container terminated: its exit code, its last message, and whether the kubelet terminated it."""

import re
from datetime import datetime
from typing import Any, Final

from vllmendpoint_api import Reason
from vllmendpoint_operator.components import FRONTEND, WORKER_GRACE_SECONDS
from vllmendpoint_operator.observe.snapshot import Pod

from .containers import Container, resource_amount
from .pod_diagnosis import PodDiagnosis
from .sentences import counted, one_line

__all__ = ["failed_cause", "terminated_cause"]

_TOLERANCE_SECONDS: Final = 10
_TERMINATED_BY_KUBELET: Final = frozenset({0, 137, 143})
"""Exit codes of a worker that the kubelet terminated. A worker that exits by itself has other codes."""
_DOWNLOAD_PREFIX: Final = f"{Reason.MODEL_DOWNLOAD_FAILED}: "
"""Start of the worker's termination message if the model could not be downloaded."""
_ERROR_LINE: Final = re.compile(r"\b\w*(Error|Exception)\b: |\bFATAL\b|\bCRITICAL\b")


def terminated_cause(
    pod: Pod, container: Container, state: dict[str, Any], restarts: int, startup_timeout_seconds: int
) -> PodDiagnosis:
    """``state``: the ContainerStateTerminated of the container."""
    code = int(state.get("exitCode", 0))
    times = counted(restarts, "restart")
    last = _last_message(str(state.get("message", "")))
    if container.is_main:
        subject, log = f"Pod {pod.name}", f"`kubectl logs {pod.name} --previous`"
    else:
        subject = f"In pod {pod.name}, the {container.title}"
        log = f"`kubectl logs {pod.name} -c {container.name} --previous`"
    if state.get("reason") == "OOMKilled":
        limit = resource_amount(pod, "memory", "limits", container=container.name)
        memory = f"limit {limit}" if limit else "no limit except the node's memory"
        return PodDiagnosis(
            Reason.OOM_KILLED,
            f"{subject} ran out of memory and was killed (OOMKilled, exit code {code}, {memory}, {times}). "
            f"{_more_memory(pod, container)}",
        )
    if last.startswith(_DOWNLOAD_PREFIX):
        message = f"{subject} terminated ({times}): {last.removeprefix(_DOWNLOAD_PREFIX)}."
        return PodDiagnosis(Reason.MODEL_DOWNLOAD_FAILED, message)
    quoted = f" Its last message was: {last}." if last else ""
    if (
        container.is_main
        and code in _TERMINATED_BY_KUBELET
        and _reached_startup_timeout(pod, state, startup_timeout_seconds)
    ):
        remedy = "See" if pod.component == FRONTEND else "Raise worker.startupTimeoutSeconds, or see"
        return PodDiagnosis(
            Reason.STARTUP_TIMEOUT,
            f"{subject} was terminated by the kubelet (exit code {code}, {times}), because it did not start "
            f"within {startup_timeout_seconds} s.{quoted} {remedy} {log}.",
        )
    return PodDiagnosis(
        Reason.CRASH_LOOPING, f"{subject} terminated with exit code {code} ({times}).{quoted} See {log}."
    )


def failed_cause(pod: Pod) -> PodDiagnosis:
    """For a finished pod: it was removed from its node, and its controller replaces it."""
    # If all containers succeeded, the phase is Succeeded and only the condition has the reason.
    target = pod.condition("DisruptionTarget")
    reason = one_line(str(pod.status.get("reason") or target.get("reason") or pod.phase))
    message = one_line(str(pod.status.get("message") or target.get("message") or ""))
    outcome = "terminated" if pod.phase == "Succeeded" else "failed"
    where = f" on node {pod.node}" if pod.node else ""
    detail = f": {message}" if message else ""
    remedy = (
        f" Set {pod.component}.resources.requests to what the pod uses, and raise the limits of its volumes."
        if reason == "Evicted"
        else ""
    )
    return PodDiagnosis(Reason.POD_FAILED, f"Pod {pod.name} {outcome}{where} ({reason}){detail}.{remedy}")


def _last_message(message: str) -> str:
    """The worker's sentence or, if the kubelet fell back to the log, its last error or its last line."""
    lines = [line for raw in message.splitlines() if (line := one_line(raw))]
    errors = [line for line in lines if _ERROR_LINE.search(line)]
    return (errors or lines or [""])[-1]


def _reached_startup_timeout(pod: Pod, state: dict[str, Any], startup_timeout_seconds: int) -> bool:
    """Whether the container ran for as long as the start-up timeout, plus at most the grace period.

    The exit code is no evidence: 137 is any kill, and a worker that handles SIGTERM has a code of its own.
    """
    grace = int((pod.obj.get("spec") or {}).get("terminationGracePeriodSeconds", WORKER_GRACE_SECONDS))
    try:
        lifetime = datetime.fromisoformat(state["finishedAt"]) - datetime.fromisoformat(state["startedAt"])
    except (KeyError, TypeError, ValueError):
        return False
    excess = lifetime.total_seconds() - startup_timeout_seconds
    return -_TOLERANCE_SECONDS <= excess <= grace + _TOLERANCE_SECONDS


def _more_memory(pod: Pod, container: Container) -> str:
    if not container.is_main:
        return f"Raise its limit in {container.field(pod)}."
    more = f"Raise {pod.component}.resources.limits.memory"
    return f"{more}." if pod.component == FRONTEND else f"{more}, or lower --max-model-len or --max-num-seqs."
