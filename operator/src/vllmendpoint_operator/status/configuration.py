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
from .diagnosis.sentences import counted, pods_named, quantity, sentence
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
            f"Pod {withheld.pod} rejected the health check from {sentence(withheld.problem)} "
            "All workers keep the last valid health check.",
        )
    # A new leader has not heard each worker yet: what was known of this generation still stands.
    said = kept(endpoint, Condition.CONFIGURATION_RESOLVED)
    if said is not None and any(pod.awaiting_first_report for pod in observed.workers):
        return said
    told = [
        pod
        for pod in observed.workers
        if pod.running and not pod.terminating and pod.stream.report is not None
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
        return unknown(Reason.PENDING, "No worker of the current revision is running yet.")
    lost = [
        pod for pod in observed.workers if pod.running and not pod.terminating and pod.stream.disconnected
    ]
    if lost:
        total = sum(not (pod.finished or pod.terminating) for pod in observed.workers)
        return unknown(
            Reason.WORKER_UNREACHABLE,
            f"{quantity(len(lost), total, 'worker')} unreachable ({_named(lost)}), so the settings in use "
            "are unknown. Check the node, and that NetworkPolicies allow the operator to connect to port "
            "9091.",
        )
    if not started:
        return unknown(Reason.PENDING, "No worker has started yet.")
    if settings_hash is None:
        return unknown(
            Reason.PENDING,
            "Not checked because the operator cannot build the settings. "
            "See the conditions Accepted and ResolvedRefs.",
        )
    behind = [pod for pod in started if _hash(pod) != settings_hash]
    if behind:
        return unknown(
            Reason.PENDING,
            f"{quantity(len(behind), len(started), 'worker', 'has', 'have')} not applied the current "
            f"settings yet ({_named(behind)}).{_warnings(behind)}",
        )
    count = quantity(len(started), len(started), "started worker", "runs", "run")
    return true(Reason.RESOLVED, f"{count} the current settings.{_warnings(started)}")


def _warnings(started: list[Pod]) -> str:
    """A worker of an older image may not know a setting: it says so, and goes on without it."""
    warned = [(pod, text) for pod in started for text in _report(pod).configuration.warnings]
    return f" Pod {warned[0][0].name} warns: {sentence(warned[0][1])}" if warned else ""


def _refused(refused: list[Pod], total: int) -> Finding:
    pod = refused[0]
    problems = _report(pod).configuration.problems
    rejected = f"{len(refused)} of {counted(total, 'worker')} ({_named(refused)}) rejected the configuration"
    if not problems:
        return false(Reason.INVALID_SETTINGS, f"{rejected}. See `kubectl logs {pod.name}`.")
    problem, *others = problems
    effect = (
        "keeps its last valid settings"
        if _report(pod).health_check
        else "serves no requests until its configuration is valid"
    )
    more = f" It reports {counted(len(others), 'more problem')}." if others else ""
    return false(
        _KNOWN.get(problem.reason, Reason.INVALID_SETTINGS),
        f"{rejected} from {problem.source}: {sentence(problem.message)} Pod {pod.name} {effect}.{more}",
    )


def _named(pods: list[Pod]) -> str:
    return pods_named([pod.name for pod in pods])


def _hash(pod: Pod) -> str:
    """Of the settings that the worker speaks of; empty where it could not read any."""
    return _report(pod).configuration.settings_hash


def _report(pod: Pod) -> WorkerReport:
    assert pod.stream.report is not None, "only pods that were heard come here"
    return pod.stream.report
