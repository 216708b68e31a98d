"""``status.workers``: each replica, worst first."""

from datetime import datetime, timedelta
from typing import Final

from vllmendpoint_api import (
    MAX_WORKERS_IN_STATUS,
    LastProbe,
    Outcome,
    PingState,
    Reason,
    Stage,
    Verdict,
    VLLMEndpointStatus,
    WorkerReport,
    WorkerStatus,
)
from vllmendpoint_operator.observe.snapshot import Pod

from .conditions import timestamp
from .diagnosis.pods import Cause, causes

__all__ = ["GENERATING", "PROBE_FIGURES", "shown", "workers"]

GENERATING: Final = frozenset({Verdict.GENERATING, Verdict.BUSY})
PROBE_FIGURES: Final = timedelta(minutes=5)
"""How old the probe's figures in the status may grow while nothing else changes."""

_WORST: Final = {
    verdict: rank
    for rank, verdict in enumerate(
        (
            Verdict.DEAD,
            Verdict.STALLED,
            Verdict.FAILING,
            Verdict.STARTING,
            Verdict.BUSY,
            Verdict.DISABLED,
            Verdict.GENERATING,
        )
    )
}


def workers(
    pods: tuple[Pod, ...], before: VLLMEndpointStatus | None, now: datetime, startup_timeout_seconds: int
) -> tuple[WorkerStatus, ...]:
    """All replicas that are not on their way out; the caller cuts the list.

    Nor records of pods: another has taken the place of each.
    """
    old = {worker.name: worker for worker in before.workers} if before else {}
    stopped = causes(pods, startup_timeout_seconds)
    found = [
        _worker(pod, old.get(pod.name), now, stopped.get(pod.name))
        for pod in pods
        if not pod.terminating and not pod.finished
    ]
    return tuple(sorted(found, key=_badness))


def _badness(worker: WorkerStatus) -> tuple[bool, int, str]:
    verdict = Verdict(worker.verdict) if worker.verdict else Verdict.STARTING
    return worker.ready, _WORST[verdict], worker.name


def _worker(pod: Pod, old: WorkerStatus | None, now: datetime, cause: Cause | None) -> WorkerStatus:
    stream = pod.stream
    if not stream.grace_expired and old is not None and pod.running:
        # A new leader has not heard this worker yet: what was known still stands.
        return old.model_copy(update={"ready": pod.ready, "restart_count": pod.restarts})
    verdict: Verdict | None = None
    reason, message, probe = "", "", None
    if pod.running and stream.report is not None and not stream.disconnected:
        verdict, reason, message, probe = _said(stream.report)
    elif pod.running and stream.grace_expired:
        reason = Reason.WORKER_UNREACHABLE.value
        message = (
            f"The operator receives no report from port 9091 of pod {pod.name} "
            f"({stream.error or 'the stream ended'})."
        )
    if not pod.ready and not message and cause is not None:
        reason, message = cause.reason.value, cause.message
    since = timestamp(now)
    if old is not None and (old.ready, old.verdict, old.reason) == (pod.ready, verdict, reason):
        since = old.last_transition_time
        if probe and old.last_probe and not _outdated(old.last_probe, probe):
            probe = old.last_probe
    return WorkerStatus(
        name=pod.name,
        node_name=pod.node,
        ready=pod.ready,
        verdict=verdict,
        reason=reason,
        message=message[:1024],
        restart_count=pod.restarts,
        last_transition_time=since,
        last_probe=probe,
    )


def _said(report: WorkerReport) -> tuple[Verdict | None, str, str, LastProbe | None]:
    verdict = Verdict(report.verdict.state)
    reason, message = report.verdict.reason, report.verdict.message
    if report.stage.name == Stage.REJECTED and report.configuration.problems:
        problem = report.configuration.problems[0]
        reason, message = problem.reason, problem.message
    elif (
        report.custom_ping is not None
        and report.custom_ping.state == PingState.FAILING
        and verdict in GENERATING
    ):
        reason, message = Reason.PING_FAILED.value, report.custom_ping.message
    elif verdict in GENERATING:
        reason, message = "", message if verdict is Verdict.BUSY else ""
    probe = report.last_probe
    return (
        verdict,
        reason,
        message,
        None
        if probe is None
        else LastProbe(
            time=timestamp(probe.time),
            latency_milliseconds=round(probe.latency_milliseconds),
            tokens=probe.tokens,
            outcome=Outcome(probe.outcome),
        ),
    )


def _outdated(old: LastProbe, new: LastProbe) -> bool:
    """Both times are of the worker's clock."""
    between = datetime.fromisoformat(new.time) - datetime.fromisoformat(old.time)
    return old.outcome != new.outcome or abs(between) >= PROBE_FIGURES


def shown(all_workers: tuple[WorkerStatus, ...]) -> tuple[tuple[WorkerStatus, ...], int]:
    """What fits into the status, and how many do not."""
    return all_workers[:MAX_WORKERS_IN_STATUS], max(0, len(all_workers) - MAX_WORKERS_IN_STATUS)
