"""``UpToDate``: all replicas run the current revision."""

from vllmendpoint_api import Reason
from vllmendpoint_operator.model import Endpoint, Observed

from .available import not_created
from .conditions import Finding, false, true
from .parts import Part, parts, workers
from .why import Cause, causes, worst

__all__ = ["up_to_date", "updated_replicas"]


def updated_replicas(endpoint: Endpoint, observed: Observed) -> int:
    part = workers(endpoint, observed)
    if part.deployment is None or not part.seen:
        return 0
    return int((part.deployment.get("status") or {}).get("updatedReplicas", 0))


def up_to_date(endpoint: Endpoint, observed: Observed) -> Finding:
    for part in parts(endpoint, observed):
        if part.deployment is None:
            return false(Reason.ROLLING_OUT, f"the Deployment {part.name} is not there yet.")
        status = part.deployment.get("status") or {}
        updated = int(status.get("updatedReplicas", 0))
        total = int(status.get("replicas", 0))
        if not part.seen or updated < part.replicas or total > updated:
            old = max(0, total - updated)
            detail = f", {old} of an older one left" if old else ""
            counts = f"{updated} of {part.replicas} {part.what} run the current revision{detail}"
            # Where nothing serves, Available says why.
            if part.ready and part.seen and (stop := _stop(part)):
                return false(
                    Reason.ROLLOUT_STOPPED,
                    f"{counts}; the rollout waits, {part.ready} of {part.replicas} serve on: {stop.message}",
                )
            return false(Reason.ROLLING_OUT, f"{counts}.")
    return true(Reason.UP_TO_DATE, "All replicas run the current revision.")


def _stop(part: Part) -> Cause | None:
    """What keeps the newest pods from being ready; None while they are on their way.

    A replica that does not become ready takes up what ``maxUnavailable`` allows: no other is replaced.
    """
    leaving = [pod for pod in part.pods if pod.terminating]
    cause = worst([*causes([*(part.current or []), *leaving], part.budget).values(), not_created(part, None)])
    return cause if cause is not None and cause.reason is not Reason.STARTING else None
