"""Workers of an operator without revisions stay until the frontends accept their successors.

Their frontends accept one Dynamo namespace, and new workers publish in another. If the last of these workers
ended before the last of these frontends, its callers would get 404. So the frontends go first.
"""

from typing import Any

from vllmendpoint_api import names
from vllmendpoint_operator.model import Endpoint, Observed

from .frontend import accepts_a_prefix, frontend_name
from .pods import has_plain_namespace
from .rollout import rolled_out
from .workload import deployment_name

__all__ = ["kept_workers"]


def kept_workers(
    endpoint: Endpoint, observed: Observed, data: dict[str, Any], before: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """The template that the workers keep for now; None where that of ``data`` is applied.

    ``data``: of the revision in force; ``before``: the ControllerRevisions that exist, newest first. Only
    while one of these workers serves: else nothing is gained by waiting.
    """
    workers = observed.child("Deployment", deployment_name(endpoint))
    front = observed.child("Deployment", frontend_name(endpoint))
    if workers is None or front is None or "frontend" not in data:
        return None
    if not _is_plain(workers["spec"]["template"]) or _is_plain(data["worker"]):
        return None
    if not any(pod.ready and has_plain_namespace(pod) for pod in observed.workers):
        return None
    if accepts_a_prefix(front["spec"]["template"]) and rolled_out(front):
        return None
    # As it was applied; where that is history no longer, as it is.
    known = (revision["data"]["worker"] for revision in before)
    kept: dict[str, Any] = next(
        (template for template in known if _is_plain(template)), workers["spec"]["template"]
    )
    return kept


def _is_plain(template: dict[str, Any]) -> bool:
    return names.LABEL_REVISION not in template["metadata"]["labels"]
