"""``ConfigurationResolved``: every started worker runs these settings."""

from vllmendpoint_api import (
    CONDITION_REASONS,
    Condition,
    ConfigurationState,
    Reason,
    Stage,
    WorkerReport,
)
from vllmendpoint_operator.desired_state import WithheldHealthCheck
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed, Pod

from .conditions import Finding, false, kept, true, unknown
from .parts import workers

__all__ = ["configuration_resolved"]

_KNOWN = {
    reason.value: reason
    for reason in CONDITION_REASONS[Condition.CONFIGURATION_RESOLVED]
    if reason not in (Reason.RESOLVED, Reason.PENDING, Reason.WORKER_UNREACHABLE)
}


def configuration_resolved(
    endpoint: Endpoint,
    observed: Observed,
    settings_hash: str | None,
    withheld: WithheldHealthCheck | None = None,
) -> Finding:
    """``settings_hash``: that of the settings that the workers are given; None where nobody can tell."""
    if withheld is not None:
        return false(
            Reason.INVALID_PAYLOAD,
            f"{withheld.problem} (Pod {withheld.pod}; all workers keep the last good health check.)",
        )
    # A new leader has not heard each worker yet: what was known of this generation still stands.
    said = kept(endpoint, Condition.CONFIGURATION_RESOLVED)
    if said is not None and any(pod.awaiting_first_report for pod in observed.workers):
        return said
    told = [
        pod for pod in observed.workers if pod.running and not pod.terminating and pod.link.report is not None
    ]
    started = [pod for pod in told if _report(pod).started]
    newest = workers(endpoint, observed).current
    # A refusal of the settings before these says nothing of these, nor does one of an older template by a
    # worker that never served.
    refused = [
        pod
        for pod in told
        if _report(pod).configuration.state == ConfigurationState.REJECTED
        and (settings_hash in (None, _hash(pod)) or not _hash(pod))
    ]
    telling = [pod for pod in refused if _report(pod).stage.name != Stage.REJECTED or pod in (newest or ())]
    if telling:
        return _refused(telling, len(told))
    if refused and newest is None:
        return unknown(Reason.PENDING, "No worker of this generation yet.")
    lost = [pod for pod in observed.workers if pod.running and not pod.terminating and pod.link.lost]
    if lost:
        left = sum(not (pod.finished or pod.terminating) for pod in observed.workers)
        return unknown(
            Reason.WORKER_UNREACHABLE,
            f"{len(lost)} of {left} workers, {lost[0].name} among them, "
            "cannot be asked which settings they run.",
        )
    if not started:
        return unknown(Reason.PENDING, "No worker has started yet.")
    if settings_hash is None:
        return unknown(Reason.PENDING, "Not looked at: the settings that the spec asks for cannot be made.")
    behind = [pod for pod in started if _hash(pod) != settings_hash]
    if behind:
        return unknown(
            Reason.PENDING,
            f"{len(behind)} of {len(started)} workers, {behind[0].name} among them, "
            f"have not taken in the newest settings yet.{_warnings(behind)}",
        )
    return true(
        Reason.RESOLVED,
        f"All {len(started)} started workers run the settings of this generation.{_warnings(started)}",
    )


def _warnings(started: list[Pod]) -> str:
    """A worker of an older image may not know a setting: it says so, and goes on without it."""
    warned = [(pod, text) for pod in started for text in _report(pod).configuration.warnings]
    return f" Pod {warned[0][0].name}: {warned[0][1]}" if warned else ""


def _refused(refused: list[Pod], total: int) -> Finding:
    pod = refused[0]
    problems = _report(pod).configuration.problems
    goes_on = (
        "it keeps its last good settings" if _report(pod).health_check else "it serves nothing until then"
    )
    if not problems:
        return false(Reason.INVALID_SETTINGS, f"pod {pod.name} refused its configuration; see its log.")
    problem = problems[0]
    more = f" ({len(problems) - 1} more problems.)" if len(problems) > 1 else ""
    return false(
        _KNOWN.get(problem.reason, Reason.INVALID_SETTINGS),
        f"{problem.source}: {problem.message} "
        f"({len(refused)} of {total} workers, pod {pod.name}; {goes_on}.){more}",
    )


def _hash(pod: Pod) -> str:
    """Of the settings that the worker speaks of; empty where it could not read any."""
    return _report(pod).configuration.settings_hash


def _report(pod: Pod) -> WorkerReport:
    assert pod.link.report is not None, "only pods that were heard come here"
    return pod.link.report
