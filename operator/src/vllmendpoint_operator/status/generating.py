"""``Generating``: every started replica, routed or not, generates or is busy."""

from collections.abc import Collection, Sequence
from typing import Final

from vllmendpoint_api import Mode, Reason, Verdict, WorkerStatus
from vllmendpoint_operator.observe.snapshot import Endpoint

from .conditions import Finding, false, true, unknown
from .diagnosis.pods import ENGINE_PROBLEMS, VERDICT_REASONS
from .diagnosis.sentences import quantity, sentence

__all__ = ["generating"]

_FIX: Final = {
    Reason.PROBE_FAILED: "Check healthCheck.payload against the model, and the log of the pod.",
    Reason.UNEXPECTED_ANSWER: "Check healthCheck.expect, and the weights and settings of the model.",
}


def generating(endpoint: Endpoint, workers: Sequence[WorkerStatus], current: Collection[str]) -> Finding:
    """``workers``: every replica that is not on its way out, worst first; ``current``: names of those of the
    newest template, as far as that is known.
    """
    if not workers:
        return unknown(Reason.NO_WORKERS, "The endpoint has no workers.")
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
        subject, predicate = ENGINE_PROBLEMS[reason]
        detail = f" {sentence(worker.message)}" if worker.message else ""
        return false(
            reason,
            f"{quantity(len(bad), total, 'replica')} not generating: {subject} in pod {worker.name} "
            f"{predicate}.{detail} {_effect(reason, endpoint)}",
        )
    lost = [worker for worker in started if worker.reason == Reason.WORKER_UNREACHABLE]
    if lost:
        return unknown(
            Reason.WORKER_UNREACHABLE,
            f"{quantity(len(lost), total, 'replica')} unreachable. {sentence(lost[0].message)} "
            "Check the node, and that NetworkPolicies allow the operator to connect to it.",
        )
    off = sum(worker.verdict == Verdict.DISABLED for worker in started)
    if off:
        return unknown(
            Reason.PROBING_DISABLED,
            f"Whether {quantity(off, total, 'replica')} generating is not known, because healthCheck.mode, "
            "DYN_HEALTH_CHECK_ENABLED or DYN_HEALTH_CHECK_PAYLOAD_DISABLED disables probing.",
        )
    busy = sum(worker.verdict == Verdict.BUSY for worker in started)
    detail = f", {busy} of them busy" if busy else ""
    # One that does not come up is not forgotten where the others suffice for Ready.
    broken = [
        worker
        for worker in waiting
        if not worker.ready and worker.reason not in ("", Reason.STARTING) and worker.name in current
    ]
    more = (
        f" {len(broken)} more {'has' if len(broken) == 1 else 'have'} not started. {broken[0].message}"
        if broken
        else ""
    )
    return true(Reason.GENERATING, f"{quantity(total, total, 'started replica')} generating{detail}.{more}")


def _effect(reason: Reason, endpoint: Endpoint) -> str:
    """What happens to the traffic and to the pod, and what to do."""
    if reason is Reason.ENGINE_DEAD:
        return "The pod receives no traffic and restarts. See its log for the cause."
    check = endpoint.spec.health_check
    traffic = "The pod receives no traffic"
    if check is not None and check.mode == Mode.OBSERVE:
        traffic = "Because healthCheck.mode is Observe, the pod still receives traffic"
    if reason is not Reason.ENGINE_STALLED:
        return f"{traffic}. {_FIX[reason]}"
    if check is not None and check.restart_after_seconds == 0:
        return f"{traffic}. It does not restart because healthCheck.restartAfterSeconds is 0. Delete it."
    return f"{traffic} and restarts after healthCheck.restartAfterSeconds. To replace it now, delete it."


def _reason(worker: WorkerStatus) -> Reason:
    if worker.reason == Reason.UNEXPECTED_ANSWER:
        return Reason.UNEXPECTED_ANSWER
    assert worker.verdict is not None
    return VERDICT_REASONS[Verdict(worker.verdict)]
