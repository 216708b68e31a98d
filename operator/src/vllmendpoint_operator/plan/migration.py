"""Replaces pods of an operator without revisions (legacy pods) without failed requests. Pure.

Legacy frontends accept only the endpoint's base Dynamo namespace; new workers are in another one. If the last
legacy worker ended before the last legacy frontend, callers of that frontend would get 404. Therefore the
workers keep their legacy template until all frontends accept both.

Legacy frontends end on SIGTERM without draining, before all nodes have removed them from the Service.
Therefore the Service stops selecting them once a new frontend is ready, and they end some seconds later.
"""

from typing import Any, Final

from vllmendpoint_api import names
from vllmendpoint_operator.components import FRONTEND, WORKER, frontend_name, is_rolled_out, workers_name
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed

from .pods.dynamo import is_legacy_template, is_legacy_worker
from .pods.frontend import selects_by_prefix

__all__ = ["min_ready_seconds", "retained_template", "selects_draining_only"]

_SERVICE_UPDATE_SECONDS: Final = 10
"""Time until all nodes have applied a change of the Service."""


def retained_template(
    endpoint: Endpoint, observed: Observed, data: dict[str, Any], existing: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """The legacy template that the workers keep for now; None to apply the one in ``data``.

    ``data``: templates of the current revision. ``existing``: ControllerRevisions, newest first.
    """
    workers = observed.child("Deployment", workers_name(endpoint))
    frontends = observed.child("Deployment", frontend_name(endpoint))
    if workers is None or frontends is None or FRONTEND not in data:
        return None
    if not is_legacy_template(workers["spec"]["template"]) or is_legacy_template(data[WORKER]):
        return None
    # If no legacy worker serves requests, there is nothing to wait for.
    if not any(pod.ready and is_legacy_worker(pod) for pod in observed.workers):
        return None
    if selects_by_prefix(frontends["spec"]["template"]) and is_rolled_out(frontends):
        return None
    # The template as it was applied, or, if no revision has it any more, as the API server stores it.
    applied = (revision["data"][WORKER] for revision in existing)
    retained: dict[str, Any] = next(
        (template for template in applied if is_legacy_template(template)), workers["spec"]["template"]
    )
    return retained


def selects_draining_only(data: dict[str, Any], observed: Observed) -> bool:
    """Whether the Service selects only frontends that drain. ``data``: templates of the current revision."""
    if not _drains(data.get(FRONTEND, {})):
        return False
    return not _legacy_frontends_remain(observed) or any(
        pod.ready and _drains(pod.obj) for pod in observed.frontends
    )


def min_ready_seconds(data: dict[str, Any], observed: Observed) -> int:
    """``minReadySeconds`` of the frontend's Deployment."""
    migrates = _drains(data[FRONTEND]) and _legacy_frontends_remain(observed)
    return _SERVICE_UPDATE_SECONDS if migrates else 0


def _legacy_frontends_remain(observed: Observed) -> bool:
    return any(not (pod.terminating or pod.finished or _drains(pod.obj)) for pod in observed.frontends)


def _drains(obj: dict[str, Any]) -> bool:
    """``obj``: a pod or a pod template."""
    return names.LABEL_DRAINS in (obj.get("metadata", {}).get("labels") or {})
