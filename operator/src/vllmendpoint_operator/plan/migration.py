"""How pods of an operator without revisions are replaced, so that no caller is without an answer.

Its workers stay until the frontends accept their successors.

Their frontends accept one Dynamo namespace, and new workers publish in another. If the last of these workers
ended before the last of these frontends, its callers would get 404. So the frontends go first.

Its frontends end at once on SIGTERM, before every node has taken them out of the Service. So the Service
leaves them out as soon as a new one is ready, and they end a while later.
"""

from typing import Any, Final

from vllmendpoint_api import names
from vllmendpoint_operator.components import frontend_name, is_rolled_out, workers_name
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed

from .pods.dynamo import is_legacy_template, is_legacy_worker
from .pods.frontend import selects_by_prefix

__all__ = ["frontends_drain", "kept_workers", "min_ready_seconds"]

_HANDOVER_SECONDS: Final = 10
"""Time for the change of the Service to reach every node."""


def kept_workers(
    endpoint: Endpoint, observed: Observed, data: dict[str, Any], before: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """The template that the workers keep for now; None where that of ``data`` is applied.

    ``data``: of the revision in force; ``before``: the ControllerRevisions that exist, newest first. Only
    while one of these workers serves: else nothing is gained by waiting.
    """
    workers = observed.child("Deployment", workers_name(endpoint))
    front = observed.child("Deployment", frontend_name(endpoint))
    if workers is None or front is None or "frontend" not in data:
        return None
    if not is_legacy_template(workers["spec"]["template"]) or is_legacy_template(data["worker"]):
        return None
    if not any(pod.ready and is_legacy_worker(pod) for pod in observed.workers):
        return None
    if selects_by_prefix(front["spec"]["template"]) and is_rolled_out(front):
        return None
    # As it was applied; where that is history no longer, as it is.
    known = (revision["data"]["worker"] for revision in before)
    kept: dict[str, Any] = next(
        (template for template in known if is_legacy_template(template)), workers["spec"]["template"]
    )
    return kept


def frontends_drain(data: dict[str, Any], observed: Observed) -> bool:
    """Whether the Service selects frontends that drain alone. ``data``: of the revision in force."""
    if not _drains(data.get("frontend", {})):
        return False
    return not _undrained(observed) or any(pod.ready and _drains(pod.obj) for pod in observed.frontends)


def min_ready_seconds(data: dict[str, Any], observed: Observed) -> int:
    """Of the frontends' Deployment."""
    return _HANDOVER_SECONDS if _drains(data["frontend"]) and _undrained(observed) else 0


def _undrained(observed: Observed) -> bool:
    """Frontends are left that cannot drain."""
    return any(not (pod.terminating or pod.finished or _drains(pod.obj)) for pod in observed.frontends)


def _drains(obj: dict[str, Any]) -> bool:
    return names.LABEL_DRAINS in (obj.get("metadata", {}).get("labels") or {})
