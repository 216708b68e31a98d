"""``ConfigurationResolved``: every started worker runs the current settings."""

from typing import Final

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
from vllmendpoint_operator.status.component import worker_components
from vllmendpoint_operator.status.diagnosis.sentences import counted, pods_named, quantity, sentence

from .finding import Finding, false, previous_finding, true, unknown

__all__ = ["configuration_resolved"]

_WORKER_REASONS: Final = {
    reason.value: reason
    for reason in CONDITION_REASONS[Condition.CONFIGURATION_RESOLVED]
    if reason not in (Reason.RESOLVED, Reason.PENDING, Reason.WORKER_UNREACHABLE)
}
"""Reasons that a worker's report may give."""


def configuration_resolved(
    endpoint: Endpoint,
    observed: Observed,
    settings_hash: str | None,
    withheld: WithheldHealthCheck | None = None,
) -> Finding:
    """``settings_hash``: of the planned settings; None without a plan."""
    if withheld is not None:
        return false(
            Reason.INVALID_PAYLOAD,
            f"Pod {withheld.pod} rejected the health check from {sentence(withheld.problem)} "
            "All workers keep the last valid health check.",
        )
    # A new leader does not have all reports yet, so the previous finding of this generation holds.
    previous = previous_finding(endpoint, Condition.CONFIGURATION_RESOLVED)
    if previous is not None and any(pod.awaiting_first_report for pod in observed.all_workers):
        return previous
    running = [pod for pod in observed.all_workers if pod.running and not pod.terminating]
    reporting = [pod for pod in running if pod.stream.report is not None]
    return (
        _rejected(endpoint, observed, settings_hash, reporting)
        or _unreachable(observed, running)
        or _applied(settings_hash, [pod for pod in reporting if _report(pod).started])
    )


def _rejected(
    endpoint: Endpoint, observed: Observed, settings_hash: str | None, reporting: list[Pod]
) -> Finding | None:
    # Ignore rejections of earlier settings.
    rejecting = [
        pod
        for pod in reporting
        if _report(pod).configuration.state == ConfigurationState.REJECTED
        and (settings_hash is None or _settings_hash(pod) in (settings_hash, ""))
    ]
    # Ignore workers of an earlier template that never served.
    current = [each.current_pods for each in worker_components(endpoint, observed)]
    relevant = [
        pod
        for pod in rejecting
        if _report(pod).stage.name != Stage.REJECTED or any(pod in (pods or ()) for pods in current)
    ]
    if relevant:
        return _rejection(relevant, len(reporting))
    if rejecting and None in current:
        return unknown(Reason.PENDING, "No worker of the current revision is running yet.")
    return None


def _rejection(rejecting: list[Pod], total: int) -> Finding:
    pod = rejecting[0]
    problems = _report(pod).configuration.problems
    message = (
        f"{len(rejecting)} of {counted(total, 'worker')} ({_named(rejecting)}) rejected the configuration"
    )
    if not problems:
        return false(Reason.INVALID_SETTINGS, f"{message}. See `kubectl logs {pod.name}`.")
    problem, *others = problems
    effect = (
        "keeps its last valid settings"
        if _report(pod).health_check
        else "serves no requests until its configuration is valid"
    )
    more = f" It reports {counted(len(others), 'more problem')}." if others else ""
    return false(
        _WORKER_REASONS.get(problem.reason, Reason.INVALID_SETTINGS),
        f"{message} from {problem.source}: {sentence(problem.message)} Pod {pod.name} {effect}.{more}",
    )


def _unreachable(observed: Observed, running: list[Pod]) -> Finding | None:
    affected = [pod for pod in running if pod.stream.disconnected]
    if not affected:
        return None
    total = sum(not (pod.finished or pod.terminating) for pod in observed.all_workers)
    return unknown(
        Reason.WORKER_UNREACHABLE,
        f"{quantity(len(affected), total, 'worker')} unreachable ({_named(affected)}), so "
        "the settings in use are unknown. Check the node, and that NetworkPolicies allow the operator to "
        "connect to port 9091.",
    )


def _applied(settings_hash: str | None, started: list[Pod]) -> Finding:
    if not started:
        return unknown(Reason.PENDING, "No worker has started yet.")
    if settings_hash is None:
        return unknown(
            Reason.PENDING,
            "Not checked because the operator cannot build the settings. "
            "See the conditions Accepted and ResolvedRefs.",
        )
    outdated = [pod for pod in started if _settings_hash(pod) != settings_hash]
    if outdated:
        count = quantity(len(outdated), len(started), "worker", "has", "have")
        return unknown(
            Reason.PENDING,
            f"{count} not applied the current settings yet ({_named(outdated)}).{_warnings(outdated)}",
        )
    count = quantity(len(started), len(started), "started worker", "runs", "run")
    return true(Reason.RESOLVED, f"{count} the current settings.{_warnings(started)}")


def _warnings(started: list[Pod]) -> str:
    """A worker of an older version ignores settings that it does not know, with a warning."""
    for pod in started:
        for warning in _report(pod).configuration.warnings:
            return f" Pod {pod.name} warns: {sentence(warning)}"
    return ""


def _named(pods: list[Pod]) -> str:
    return pods_named([pod.name for pod in pods])


def _settings_hash(pod: Pod) -> str:
    """Of the settings that the report is about; empty if the worker could not read any."""
    return _report(pod).configuration.settings_hash


def _report(pod: Pod) -> WorkerReport:
    assert pod.stream.report is not None, "the pod has a report"
    return pod.stream.report
