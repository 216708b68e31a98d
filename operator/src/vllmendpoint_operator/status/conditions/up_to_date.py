"""``UpToDate``: the rollout of the newest revision is complete.

It is complete when ``kubectl rollout status`` reports so: all replicas are updated and available, and the
older pods are gone. A replica that becomes unavailable later does not change that; ``Available`` and
``Generating`` report it.
"""

from vllmendpoint_api import Condition, ConditionStatus, Reason
from vllmendpoint_operator.components import is_rolled_out
from vllmendpoint_operator.errors import ConditionError
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed
from vllmendpoint_operator.status.component import Component, components
from vllmendpoint_operator.status.component_diagnosis import diagnose_missing_pods
from vllmendpoint_operator.status.diagnosis.pod_diagnosis import PodDiagnosis, most_severe
from vllmendpoint_operator.status.diagnosis.pods import diagnose_pods
from vllmendpoint_operator.status.diagnosis.sentences import counted, quantity, sentence

from .finding import Finding, false, true, unknown

__all__ = ["up_to_date", "updated_replicas"]


def updated_replicas(workers: Component) -> int:
    """Number of pods of the newest template."""
    if workers.deployment is None or not workers.generation_observed:
        return 0
    return int((workers.deployment.get("status") or {}).get("updatedReplicas", 0))


def up_to_date(
    endpoint: Endpoint, observed: Observed, revision: str | None, problem: ConditionError | None
) -> Finding:
    """``revision``: name of the planned revision; None without a plan. ``problem``: why it is not applied."""
    if problem is not None:
        return unknown(
            Reason.PENDING, f"The operator could not apply the current revision: {sentence(problem.message)}"
        )
    was_complete = _was_complete(endpoint, revision)
    found = [
        finding
        for component in components(endpoint, observed)
        if (finding := _incomplete_rollout(component, was_complete)) is not None
    ]
    if not found:
        return true(Reason.UP_TO_DATE, "All replicas run the current revision.")
    # A stopped rollout needs the user, so it goes before one in progress.
    found.sort(key=lambda finding: finding.reason is not Reason.ROLLOUT_STOPPED)
    return false(found[0].reason, " ".join(finding.message for finding in found))


def _incomplete_rollout(component: Component, was_complete: bool) -> Finding | None:
    """None if the rollout of the component is complete."""
    if component.deployment is None:
        return false(Reason.ROLLING_OUT, f"The Deployment {component.name} does not exist yet.")
    ignores_availability = was_complete or _lacks_only_routes(component)
    if component.desired_replicas == component.replicas and is_rolled_out(
        component.deployment, available=not ignores_availability
    ):
        return None
    counts = _counts(component)
    if not component.generation_observed or (obstacle := _obstacle(component)) is None:
        return false(Reason.ROLLING_OUT, f"{counts}.")
    ready = component.ready_replicas
    if not ready:  # Available has the same cause, except for a frontend of an endpoint with 0 replicas.
        return false(Reason.ROLLING_OUT, f"{counts}. {obstacle.message}")
    serving = quantity(ready, component.replicas, component.noun, "continues", "continue")
    return false(
        Reason.ROLLOUT_STOPPED,
        f"{counts}. The rollout is stopped, and {serving} to serve. {obstacle.message}",
    )


def _lacks_only_routes(component: Component) -> bool:
    """Whether some of the newest pods are not ready, all of them only for lack of a route to a ready replica.

    Such frontends become ready with the replicas, whose problems other conditions report. The frontends of an
    endpoint with 0 replicas are never ready.
    """
    newest = component.current_pods or []
    causes = diagnose_pods(newest, component.startup_timeout_seconds).values()
    return bool(causes) and all(cause.reason is Reason.NO_ROUTE for cause in causes)


def _was_complete(endpoint: Endpoint, revision: str | None) -> bool:
    """Whether the previous status records the rollout of this revision as complete."""
    previous = endpoint.status
    if previous is None or previous.revision is None or previous.revision.name != revision:
        return False
    return any(
        entry.type == Condition.UP_TO_DATE and entry.status == ConditionStatus.TRUE
        for entry in previous.conditions
    )


def _counts(component: Component) -> str:
    status = (component.deployment or {}).get("status") or {}
    updated = int(status.get("updatedReplicas", 0))
    old = max(0, int(status.get("replicas", 0)) - updated)
    text = f"{quantity(updated, component.replicas, component.noun, 'runs', 'run')} the current revision"
    if old:
        verb = "remains" if old == 1 else "remain"
        return f"{text}, and {counted(old, component.noun)} of an older revision {verb}"
    if component.generation_observed and updated >= component.replicas:
        available = int(status.get("availableReplicas", 0))
        return f"{text}, and {available} of them {'is' if available == 1 else 'are'} available"
    return text


def _obstacle(component: Component) -> PodDiagnosis | None:
    """What keeps the newest pods from becoming ready; None if they are starting.

    A replica that does not become ready uses up ``maxUnavailable``, so no other replica is replaced.
    """
    leaving = [pod for pod in component.pods if pod.terminating]
    pods = diagnose_pods([*(component.current_pods or []), *leaving], component.startup_timeout_seconds)
    diagnosis = most_severe([*pods.values(), diagnose_missing_pods(component, None)])
    return diagnosis if diagnosis is not None and diagnosis.reason is not Reason.STARTING else None
