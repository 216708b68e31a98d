"""Why a container ended: its exit code, who ended it, and what it said last."""

import re
from datetime import datetime
from typing import Any, Final

from vllmendpoint_api import Reason
from vllmendpoint_operator.components import WORKER, WORKER_GRACE_SECONDS
from vllmendpoint_operator.observe.snapshot import Pod

from .containers import Container
from .diagnosis import Cause, wanted
from .sentences import counted, one_line

__all__ = ["ended", "failed"]

_SLACK_SECONDS: Final = 10
_BY_SIGNAL: Final = frozenset({0, 137, 143})
"""How a worker ends that the kubelet ends; one that ends itself has other codes, and may have served long."""
_DOWNLOAD: Final = f"{Reason.MODEL_DOWNLOAD_FAILED}: "
"""How the worker's termination message begins where the model could not be fetched."""
_ERROR_LINE: Final = re.compile(r"\b\w*(Error|Exception)\b: |\bFATAL\b|\bCRITICAL\b")


def ended(pod: Pod, container: Container, state: dict[str, Any], restarts: int, budget: int) -> Cause:
    """``state``: the container's ``terminated``; ``budget``: worker.startupTimeoutSeconds."""
    code = int(state.get("exitCode", 0))
    times = counted(restarts, "restart")
    last = _last_words(str(state.get("message", "")))
    what, log = f"Pod {pod.name}", f"`kubectl logs {pod.name} --previous`"
    if not container.is_main:
        what, log = (
            f"In pod {pod.name}, the {container.title}",
            log.replace(" --", f" -c {container.name} --"),
        )
    if state.get("reason") == "OOMKilled":
        limit = wanted(pod, "memory", "limits", container=container.name)
        memory = f"limit {limit}" if limit else "no limit except the node's memory"
        return Cause(
            Reason.OOM_KILLED,
            f"{what} ran out of memory and was killed (OOMKilled, exit code {code}, {memory}, {times}). "
            f"{_more_memory(pod, container)}",
        )
    if last.startswith(_DOWNLOAD):
        return Cause(
            Reason.MODEL_DOWNLOAD_FAILED,
            f"{what} terminated ({times}): {last.removeprefix(_DOWNLOAD)}.",
        )
    said = f" Its last message was: {last}." if last else ""
    if container.is_main and code in _BY_SIGNAL and _used_up(state, budget, _grace(pod)):
        return Cause(
            Reason.STARTUP_TIMEOUT,
            f"{what} was terminated by the kubelet (exit code {code}, {times}), because it did not start "
            f"within {budget} s.{said} "
            + (
                f"Raise worker.startupTimeoutSeconds, or see {log}."
                if pod.component == WORKER
                else f"See {log}."
            ),
        )
    return Cause(Reason.CRASH_LOOPING, f"{what} terminated with exit code {code} ({times}).{said} See {log}.")


def failed(pod: Pod) -> Cause:
    """Of a pod that is over: it was taken off its node, and another takes its place."""
    # Where its containers ended well, the phase is Succeeded and the condition alone says why.
    target = pod.condition("DisruptionTarget")
    reason = one_line(str(pod.status.get("reason") or target.get("reason") or pod.phase))
    message = one_line(str(pod.status.get("message") or target.get("message") or ""))
    where = f" on node {pod.node}" if pod.node else ""
    advice = (
        f" Set {pod.component}.resources.requests to what the pod uses, and raise the limits of its volumes."
        if reason == "Evicted"
        else ""
    )
    detail = f": {message}" if message else ""
    how = "terminated" if pod.phase == "Succeeded" else "failed"
    return Cause(Reason.POD_FAILED, f"Pod {pod.name} {how}{where} ({reason}){detail}.{advice}")


def _grace(pod: Pod) -> int:
    return int((pod.obj.get("spec") or {}).get("terminationGracePeriodSeconds", WORKER_GRACE_SECONDS))


def _last_words(message: str) -> str:
    """The worker writes one sentence; where the kubelet fell back to the log, its last error or last line."""
    lines = [line for raw in message.splitlines() if (line := one_line(raw))]
    errors = [line for line in lines if _ERROR_LINE.search(line)]
    return (errors or lines or [""])[-1]


def _used_up(state: dict[str, Any], budget: int, grace: int) -> bool:
    """It lived just as long as the start-up budget allows, and the time to end in: the kubelet ended it.

    The exit code does not tell: 137 is any kill, and a worker that heeds SIGTERM has its own.
    """
    try:
        lived = datetime.fromisoformat(state["finishedAt"]) - datetime.fromisoformat(state["startedAt"])
    except (KeyError, TypeError, ValueError):
        return False
    over = lived.total_seconds() - budget
    return -_SLACK_SECONDS <= over <= grace + _SLACK_SECONDS


def _more_memory(pod: Pod, container: Container) -> str:
    if not container.is_main:
        return f"Raise its limit in {container.field(pod)}."
    more = f"Raise {pod.component}.resources.limits.memory"
    return f"{more}, or lower --max-model-len or --max-num-seqs." if pod.component == WORKER else f"{more}."
