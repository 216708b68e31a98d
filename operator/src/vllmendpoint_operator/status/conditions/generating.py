"""``Generating``: every started replica generates or is busy, whether it receives traffic or not."""

from collections.abc import Collection, Sequence
from typing import Final

from vllmendpoint_api import (
    DEFAULT_RESTART_AFTER_SECONDS,
    Mode,
    Reason,
    Verdict,
    WorkerRole,
    WorkerStatus,
)
from vllmendpoint_operator.components import PREFILL, WORKER
from vllmendpoint_operator.observe.snapshot import Endpoint
from vllmendpoint_operator.status.component import NOUNS
from vllmendpoint_operator.status.diagnosis.sentences import quantities, sentence
from vllmendpoint_operator.status.diagnosis.verdicts import ENGINE_PROBLEMS, VERDICT_REASONS

from .finding import Finding, false, true, unknown

__all__ = ["generating"]

_REMEDIES: Final = {
    Reason.PROBE_FAILED: "Check healthCheck.payload against the model, and the log of the pod.",
    Reason.UNEXPECTED_ANSWER: "Check healthCheck.expect, and the weights and settings of the model.",
}
_TRANSFER_REMEDY: Final = (
    "Check that NetworkPolicies allow the endpoint's pods to connect to each other at port 5600 (the side "
    "channel of NIXL) and at the ports of UCX, which UCX_TCP_PORT_RANGE sets, and that both roles have the "
    "same connector in --kv-transfer-config."
)


def generating(endpoint: Endpoint, workers: Sequence[WorkerStatus], current: Collection[str]) -> Finding:
    """``workers``: all replicas that are not terminating, the most severe problem first.

    ``current``: names of the pods of the newest template, as far as they are known.
    """
    if not workers:
        return unknown(Reason.NO_WORKERS, "The endpoint has no workers.")
    started = [worker for worker in workers if _has_started(worker)]
    if not started:
        return unknown(Reason.NO_WORKERS, "No worker has started yet.")
    not_started = [worker for worker in workers if not _has_started(worker) and worker.name in current]
    return (
        _not_generating(endpoint, started)
        or _transfer_failed(started)
        or _unreachable(started)
        or _missing_role(endpoint, started)
        or _probing_disabled(started)
        or _all_generating(started, not_started)
    )


def _has_started(worker: WorkerStatus) -> bool:
    return worker.verdict not in (None, Verdict.STARTING) or worker.reason == Reason.WORKER_UNREACHABLE


def _not_generating(endpoint: Endpoint, started: list[WorkerStatus]) -> Finding | None:
    affected = [worker for worker in started if worker.verdict in VERDICT_REASONS]
    if not affected:
        return None
    worker = affected[0]
    reason = _reason(worker)
    subject, predicate = ENGINE_PROBLEMS[reason]
    detail = f" {sentence(worker.message)}" if worker.message else ""
    return false(
        reason,
        f"{_quantity(affected, started)} not generating: {subject} in pod {worker.name} "
        f"{predicate}.{detail} {_effect_and_remedy(reason, endpoint)}",
    )


def _transfer_failed(started: list[WorkerStatus]) -> Finding | None:
    affected = [worker for worker in started if worker.reason == Reason.TRANSFER_FAILED]
    if not affected:
        return None
    worker = affected[0]
    transfer = (
        "from a prefill worker to it" if worker.role == WorkerRole.DECODE else "from it to a decode worker"
    )
    detail = f" {sentence(worker.message)}" if worker.message else ""
    return false(
        Reason.TRANSFER_FAILED,
        f"{_quantity(affected, started)} not generating for clients: the engine in pod {worker.name} "
        f"generates, but all probes of frontends that transfer a KV cache {transfer} fail.{detail} "
        f"{_TRANSFER_REMEDY}",
    )


def _missing_role(endpoint: Endpoint, started: list[WorkerStatus]) -> Finding | None:
    """Whether no worker of a role has started. ``started``: not empty."""
    if endpoint.spec.prefill is None:
        return None
    for role, noun in ((WorkerRole.DECODE, "worker"), (WorkerRole.PREFILL, "prefill worker")):
        if not any(worker.role == role for worker in started):
            return unknown(Reason.NO_WORKERS, f"No {noun} has started yet.")
    return None


def _quantity(affected: Sequence[WorkerStatus], total: Sequence[WorkerStatus], kind: str = "") -> str:
    """``1 of 2 replicas is``, or with both roles ``1 of 2 replicas and 1 of 1 prefill replica are``.

    Omits a role without affected replicas. ``kind``: before the noun, such as ``started``.
    """
    counts = []
    for component in (WORKER, PREFILL):
        of_role = sum(_component(worker) == component for worker in total)
        if count := sum(_component(worker) == component for worker in affected):
            counts.append((count, of_role, f"{kind} {NOUNS[component]}".lstrip()))
    return quantities(counts)


def _component(worker: WorkerStatus) -> str:
    return PREFILL if worker.role == WorkerRole.PREFILL else WORKER


def _unreachable(started: list[WorkerStatus]) -> Finding | None:
    affected = [worker for worker in started if worker.reason == Reason.WORKER_UNREACHABLE]
    if not affected:
        return None
    return unknown(
        Reason.WORKER_UNREACHABLE,
        f"{_quantity(affected, started)} unreachable. {sentence(affected[0].message)} "
        "Check the node, and that NetworkPolicies allow the operator to connect to it.",
    )


def _probing_disabled(started: list[WorkerStatus]) -> Finding | None:
    affected = [worker for worker in started if worker.verdict == Verdict.DISABLED]
    if not affected:
        return None
    return unknown(
        Reason.PROBING_DISABLED,
        f"Whether {_quantity(affected, started)} generating is not known, because "
        "healthCheck.mode, DYN_HEALTH_CHECK_ENABLED or DYN_HEALTH_CHECK_PAYLOAD_DISABLED disables probing.",
    )


def _all_generating(started: list[WorkerStatus], not_started: list[WorkerStatus]) -> Finding:
    busy = sum(worker.verdict == Verdict.BUSY for worker in started)
    message = f"{_quantity(started, started, 'started')} generating"
    message += f", {busy} of them busy." if busy else "."
    # A replica that cannot start is reported even if the others suffice for Ready.
    failing = [
        worker for worker in not_started if not worker.ready and worker.reason not in ("", Reason.STARTING)
    ]
    if failing:
        verb = "has" if len(failing) == 1 else "have"
        message += f" {len(failing)} more {verb} not started. {failing[0].message}"
    return true(Reason.GENERATING, message)


def _effect_and_remedy(reason: Reason, endpoint: Endpoint) -> str:
    if reason is Reason.ENGINE_DEAD:
        return "The pod receives no traffic and restarts. See its log for the cause."
    check = endpoint.spec.health_check
    traffic = "The pod receives no traffic"
    if check is not None and check.mode == Mode.OBSERVE:
        traffic = "Because healthCheck.mode is Observe, the pod still receives traffic"
    if reason is not Reason.ENGINE_STALLED:
        return f"{traffic}. {_REMEDIES[reason]}"
    seconds = None if check is None else check.restart_after_seconds
    if seconds == 0:
        return f"{traffic}. It does not restart because healthCheck.restartAfterSeconds is 0. Delete it."
    seconds = DEFAULT_RESTART_AFTER_SECONDS if seconds is None else seconds
    return (
        f"{traffic} and restarts after {seconds} s (healthCheck.restartAfterSeconds). "
        "To replace it now, delete it."
    )


def _reason(worker: WorkerStatus) -> Reason:
    if worker.reason == Reason.UNEXPECTED_ANSWER:
        return Reason.UNEXPECTED_ANSWER
    assert worker.verdict is not None
    return VERDICT_REASONS[Verdict(worker.verdict)]
