"""``Generating``: every started replica, routed or not, generates or is busy."""

from collections.abc import Collection, Sequence
from typing import Final

from vllmendpoint_api import ConditionStatus, Mode, Reason, Verdict, WorkerStatus
from vllmendpoint_operator.observe.snapshot import Endpoint

from .conditions import Finding, true, unknown
from .diagnosis.pods import VERDICT_REASONS

__all__ = ["generating"]

_FIX: Final = {
    Reason.ENGINE_DEAD: "The worker ends and is started again; see its log for the cause.",
    Reason.PROBE_FAILED: "Check healthCheck.payload against the model, and the worker's log.",
    Reason.UNEXPECTED_ANSWER: "Check healthCheck.expect, and the model's weights and settings.",
}


def generating(endpoint: Endpoint, workers: Sequence[WorkerStatus], current: Collection[str]) -> Finding:
    """``workers``: every replica that is not on its way out, worst first; ``current``: names of those of the
    newest template, as far as that is known.
    """
    if not workers:
        return unknown(Reason.NO_WORKERS, "There are no workers.")
    started: list[WorkerStatus] = []
    waiting: list[WorkerStatus] = []
    for worker in workers:
        running = worker.verdict not in (None, Verdict.STARTING)
        (started if running or worker.reason == Reason.WORKER_UNREACHABLE else waiting).append(worker)
    if not started:
        return unknown(Reason.NO_WORKERS, "No worker has started yet.")
    total = len(started)
    bad = [worker for worker in started if worker.verdict in VERDICT_REASONS]
    if bad:
        worker = bad[0]
        reason = _reason(worker)
        return Finding(
            ConditionStatus.FALSE,
            reason,
            f"{len(bad)} of {total} replicas do not generate: pod {worker.name}: "
            f"{worker.message.rstrip('.') or worker.verdict}. {_fix(reason, endpoint)}",
        )
    lost = [worker for worker in started if worker.reason == Reason.WORKER_UNREACHABLE]
    if lost:
        return unknown(
            Reason.WORKER_UNREACHABLE,
            f"{len(lost)} of {total} replicas cannot be asked: pod {lost[0].name}: {lost[0].message}. "
            "Check the node, and that the NetworkPolicy lets the operator reach it.",
        )
    off = sum(worker.verdict == Verdict.DISABLED for worker in started)
    if off:
        return unknown(
            Reason.PROBING_DISABLED,
            f"Probing is off in {off} of {total} replicas (healthCheck.mode, DYN_HEALTH_CHECK_ENABLED or "
            "DYN_HEALTH_CHECK_PAYLOAD_DISABLED): whether the model generates is not known.",
        )
    busy = sum(worker.verdict == Verdict.BUSY for worker in started)
    detail = f", {busy} of them busy" if busy else ""
    # One that does not come up is not forgotten where the others suffice for Ready.
    broken = [
        worker
        for worker in waiting
        if not worker.ready and worker.reason not in ("", Reason.STARTING) and worker.name in current
    ]
    more = f" {len(broken)} more did not start: {broken[0].message}" if broken else ""
    return true(Reason.GENERATING, f"{total} of {total} started replicas generate{detail}.{more}")


def _fix(reason: Reason, endpoint: Endpoint) -> str:
    if reason is not Reason.ENGINE_STALLED:
        return _FIX[reason]
    check = endpoint.spec.health_check
    traffic = "It takes no traffic"
    if check is not None and check.mode == Mode.OBSERVE:
        traffic = "It takes traffic all the same, since healthCheck.mode is Observe"
    if check is not None and check.restart_after_seconds == 0:
        return (
            f"{traffic}; it does not end itself, since healthCheck.restartAfterSeconds is 0: delete the pod."
        )
    return f"{traffic}; it ends itself after healthCheck.restartAfterSeconds, or delete the pod now."


def _reason(worker: WorkerStatus) -> Reason:
    if worker.reason == Reason.UNEXPECTED_ANSWER:
        return Reason.UNEXPECTED_ANSWER
    assert worker.verdict is not None
    return VERDICT_REASONS[Verdict(worker.verdict)]
