"""``status.workers``: one entry per replica, the most severe problem first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from vllmendpoint_api import (
    MAX_WORKERS_IN_STATUS,
    LastProbe,
    Outcome,
    PingState,
    ProbeReport,
    Reason,
    Stage,
    Verdict,
    VLLMEndpointStatus,
    WorkerReport,
    WorkerRole,
    WorkerStatus,
)
from vllmendpoint_operator.components import PREFILL
from vllmendpoint_operator.observe.snapshot import Pod

from .component import Component
from .conditions.finding import timestamp
from .diagnosis.pod_diagnosis import PodDiagnosis
from .diagnosis.pods import diagnose_pods
from .diagnosis.sentences import sentence

__all__ = ["generates", "truncate", "worker_statuses"]

_GENERATING: Final = frozenset({Verdict.GENERATING, Verdict.BUSY})

_LAST_PROBE_INTERVAL: Final = timedelta(minutes=5)
"""Minimum time between two updates of ``lastProbe`` while the rest of an entry does not change."""
_MAX_MESSAGE: Final = 1024
"""Characters, as the CRD allows."""

_SEVERITY: Final = {
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


@dataclass(frozen=True, slots=True)
class _ReplicaState:
    """The part of an entry that depends on the worker's report or on the pod's diagnosis."""

    verdict: Verdict | None = None
    reason: str = ""
    message: str = ""


def worker_statuses(
    components: Sequence[Component],
    previous: VLLMEndpointStatus | None,
    now: datetime,
    failed_transfers: Mapping[str, str],
) -> tuple[WorkerStatus, ...]:
    """All replicas except terminating and finished pods. The list may be longer than the status allows.

    ``components``: the workers and the prefill workers. ``failed_transfers``: name of a pod -> message.
    """
    entries = {worker.name: worker for worker in previous.workers} if previous else {}
    found = []
    for component in components:
        diagnoses = diagnose_pods(component.pods, component.startup_timeout_seconds)
        role = None
        if len(components) > 1:
            role = WorkerRole.PREFILL if component.kind == PREFILL else WorkerRole.DECODE
        for pod in component.pods:
            if pod.terminating or pod.finished:
                continue
            state = _replica_state(pod, diagnoses.get(pod.name))
            if (message := failed_transfers.get(pod.name)) is not None and state.verdict in _GENERATING:
                state = _ReplicaState(state.verdict, Reason.TRANSFER_FAILED.value, message)
            found.append(_worker_status(pod, role, state, entries.get(pod.name), now))
    return tuple(sorted(found, key=_sort_key))


def generates(worker: WorkerStatus) -> bool:
    """Whether the worker contributes to answers."""
    return worker.verdict in _GENERATING and worker.reason != Reason.TRANSFER_FAILED


def truncate(workers: tuple[WorkerStatus, ...]) -> tuple[tuple[WorkerStatus, ...], int]:
    """The entries that fit into the status, and the number of omitted ones."""
    return workers[:MAX_WORKERS_IN_STATUS], max(0, len(workers) - MAX_WORKERS_IN_STATUS)


def _sort_key(worker: WorkerStatus) -> tuple[bool, int, bool, str]:
    verdict = Verdict(worker.verdict) if worker.verdict else Verdict.STARTING
    return worker.ready, _SEVERITY[verdict], worker.reason != Reason.TRANSFER_FAILED, worker.name


def _worker_status(
    pod: Pod, role: WorkerRole | None, state: _ReplicaState, previous: WorkerStatus | None, now: datetime
) -> WorkerStatus:
    if not pod.stream.grace_expired and previous is not None and pod.running:
        # A new leader has no report of this worker yet, so the previous entry still holds.
        return previous.model_copy(update={"ready": pod.ready, "restart_count": pod.restarts})
    report = pod.stream.report
    probe = _last_probe(report.last_probe) if report is not None and state.verdict else None
    since = timestamp(now)
    if previous is not None and (previous.ready, previous.verdict, previous.reason) == (
        pod.ready,
        state.verdict,
        state.reason,
    ):
        since = previous.last_transition_time
        if probe and previous.last_probe and not _is_outdated(previous.last_probe, probe):
            probe = previous.last_probe
    return WorkerStatus(
        name=pod.name,
        role=role,
        node_name=pod.node,
        ready=pod.ready,
        verdict=state.verdict,
        reason=state.reason,
        message=state.message[:_MAX_MESSAGE],
        restart_count=pod.restarts,
        last_transition_time=since,
        last_probe=probe,
    )


def _replica_state(pod: Pod, diagnosis: PodDiagnosis | None) -> _ReplicaState:
    stream = pod.stream
    state = _ReplicaState()
    if pod.running and stream.report is not None and not stream.disconnected:
        state = _reported_state(stream.report)
    elif pod.running and stream.grace_expired:
        state = _ReplicaState(
            None,
            Reason.WORKER_UNREACHABLE.value,
            f"The operator receives no report from port 9091 of pod {pod.name} "
            f"({stream.error or 'the stream ended'}).",
        )
    if not pod.ready and not state.message and diagnosis is not None:
        return _ReplicaState(state.verdict, diagnosis.reason.value, diagnosis.message)
    return state


def _reported_state(report: WorkerReport) -> _ReplicaState:
    verdict = Verdict(report.verdict.state)
    if report.stage.name == Stage.REJECTED and report.configuration.problems:
        problem = report.configuration.problems[0]
        return _ReplicaState(verdict, problem.reason, problem.message)
    if verdict not in _GENERATING:
        return _ReplicaState(verdict, report.verdict.reason, report.verdict.message)
    ping = report.custom_ping
    if ping is not None and ping.state == PingState.FAILING:
        message = f"The custom ping handler fails: {sentence(ping.message)}"
        return _ReplicaState(verdict, Reason.PING_FAILED.value, message)
    return _ReplicaState(verdict, "", report.verdict.message if verdict is Verdict.BUSY else "")


def _last_probe(probe: ProbeReport | None) -> LastProbe | None:
    if probe is None:
        return None
    return LastProbe(
        time=timestamp(probe.time),
        latency_milliseconds=round(probe.latency_milliseconds),
        tokens=probe.tokens,
        outcome=Outcome(probe.outcome),
    )


def _is_outdated(previous: LastProbe, probe: LastProbe) -> bool:
    """Compares times of the worker's clock only."""
    interval = datetime.fromisoformat(probe.time) - datetime.fromisoformat(previous.time)
    return previous.outcome != probe.outcome or abs(interval) >= _LAST_PROBE_INTERVAL
