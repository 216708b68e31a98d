"""``UpToDate``: the newest revision is rolled out completely.

A rollout is complete when ``kubectl rollout status`` says so: all replicas are updated and available, and the
older pods are gone. A replica that is unavailable later does not undo that: ``Available`` and ``Generating``
report it.
"""

from vllmendpoint_api import Condition, ConditionStatus, Reason
from vllmendpoint_operator.components import is_rolled_out
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed

from .available import not_created
from .conditions import Finding, false, true
from .diagnosis.pods import Cause, causes, worst
from .diagnosis.sentences import counted, quantity
from .parts import Part, parts, workers

__all__ = ["up_to_date", "updated_replicas"]


def updated_replicas(endpoint: Endpoint, observed: Observed) -> int:
    part = workers(endpoint, observed)
    if part.deployment is None or not part.seen:
        return 0
    return int((part.deployment.get("status") or {}).get("updatedReplicas", 0))


def up_to_date(endpoint: Endpoint, observed: Observed, revision: str | None) -> Finding:
    """``revision``: name of the one to roll out; None where there is no plan."""
    was_complete = _was_complete(endpoint, revision)
    found = [
        finding
        for part in parts(endpoint, observed)
        if (finding := _incomplete(part, was_complete)) is not None
    ]
    if not found:
        return true(Reason.UP_TO_DATE, "All replicas run the current revision.")
    # One that stopped is told although another goes on: it waits for somebody.
    found.sort(key=lambda finding: finding.reason is not Reason.ROLLOUT_STOPPED)
    return false(found[0].reason, " ".join(finding.message for finding in found))


def _incomplete(part: Part, was_complete: bool) -> Finding | None:
    """None where its rollout is complete."""
    if part.deployment is None:
        return false(Reason.ROLLING_OUT, f"The Deployment {part.name} does not exist yet.")
    if part.asked_for == part.replicas and is_rolled_out(part.deployment, available=not was_complete):
        return None
    counts = _counts(part)
    if not part.seen or (stop := _stop(part)) is None:
        return false(Reason.ROLLING_OUT, f"{counts}.")
    if not part.ready:  # Available says it too, but where no replicas are asked for
        return false(Reason.ROLLING_OUT, f"{counts}. {stop.message}")
    return false(
        Reason.ROLLOUT_STOPPED,
        f"{counts}. The rollout is stopped, and {_serving(part)} {stop.message}",
    )


def _was_complete(endpoint: Endpoint, revision: str | None) -> bool:
    """Whether the rollout of this revision has been complete before, as the status records it."""
    before = endpoint.status
    if before is None or before.revision is None or before.revision.name != revision:
        return False
    return any(
        entry.type == Condition.UP_TO_DATE and entry.status == ConditionStatus.TRUE
        for entry in before.conditions
    )


def _counts(part: Part) -> str:
    status = (part.deployment or {}).get("status") or {}
    updated = int(status.get("updatedReplicas", 0))
    old = max(0, int(status.get("replicas", 0)) - updated)
    text = f"{quantity(updated, part.replicas, part.what, 'runs', 'run')} the current revision"
    if old:
        text += f", and {counted(old, part.what)} of an older revision {'remains' if old == 1 else 'remain'}"
    elif part.seen and updated >= part.replicas:
        available = int(status.get("availableReplicas", 0))
        text += f", and {available} of them {'is' if available == 1 else 'are'} available"
    return text


def _serving(part: Part) -> str:
    return f"{quantity(part.ready, part.replicas, part.what, 'continues', 'continue')} to serve."


def _stop(part: Part) -> Cause | None:
    """What keeps the newest pods from being ready; None while they are on their way.

    A replica that does not become ready takes up what ``maxUnavailable`` allows: no other is replaced.
    """
    leaving = [pod for pod in part.pods if pod.terminating]
    cause = worst([*causes([*(part.current or []), *leaving], part.budget).values(), not_created(part, None)])
    return cause if cause is not None and cause.reason is not Reason.STARTING else None
