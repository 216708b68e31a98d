"""The order in which workers and prefill workers are replaced, so that always a pair serves. Pure.

A decode worker receives KV caches only from prefill workers of its own revision. Therefore:

1. The first prefill workers are replaced. The workers keep their template until a new one of these is ready.
2. The workers are replaced. Once a new one is ready, so are further prefill workers.
3. The last prefill workers of the older revision are replaced when no worker of that revision remains.

The Deployment of the prefill workers waits by its ``minReadySeconds``: its new pods are ready, but do not
count as available, so that the rollout does not remove older ones. The field restarts no pod.
"""

from typing import Any

from vllmendpoint_api import names
from vllmendpoint_operator.components import (
    PREFILL,
    WORKER,
    is_rolled_out,
    max_replaced_replicas,
    prefill_name,
    workers_name,
)
from vllmendpoint_operator.observe.snapshot import Endpoint, Object, Observed, Pod

__all__ = ["prefill_waits", "retained_template"]


def retained_template(
    endpoint: Endpoint, observed: Observed, data: dict[str, Any], existing: list[Object]
) -> dict[str, Any] | None:
    """The template of an older revision that the workers keep for now; None to apply the one in ``data``.

    ``data``: templates of the current revision. ``existing``: ControllerRevisions, newest first.
    """
    workers = observed.child("Deployment", workers_name(endpoint))
    if workers is None or PREFILL not in data or not endpoint.spec.replicas:
        return None
    live: dict[str, Any] = workers["spec"]["template"]
    if _revision(live) == _revision(data[WORKER]):
        return None
    # If no worker serves requests, there is nothing to wait for.
    if not any(pod.ready for pod in observed.workers) or _ready(observed.prefill, data[PREFILL]):
        return None
    # The template as it was applied, or, if no revision has it any more, as the API server stores it.
    applied = (revision["data"][WORKER] for revision in existing)
    return next((template for template in applied if _revision(template) == _revision(live)), live)


def prefill_waits(endpoint: Endpoint, observed: Observed, data: dict[str, Any]) -> bool:
    """Whether the rollout of the prefill workers waits for that of the workers.

    ``data``: templates of the current revision.
    """
    workers = observed.child("Deployment", workers_name(endpoint))
    prefill = endpoint.spec.prefill
    if workers is None or prefill is None or not endpoint.spec.replicas:
        return False
    if observed.child("Deployment", prefill_name(endpoint)) is None:
        return False
    revision = _revision(data[PREFILL])
    older = [
        pod
        for pod in observed.prefill
        if not (pod.terminating or pod.finished) and _revision(pod.obj) != revision
    ]
    is_complete = _revision(workers["spec"]["template"]) == revision and is_rolled_out(
        workers, available=False
    )
    if not older or is_complete:
        return False
    batch = max_replaced_replicas(prefill.replicas, endpoint.spec.strategy.rolling_update)
    return len(older) <= batch or not _ready(observed.workers, data[WORKER])


def _ready(pods: tuple[Pod, ...], template: dict[str, Any]) -> bool:
    """Whether a pod of the template's revision is ready."""
    return any(pod.ready and _revision(pod.obj) == _revision(template) for pod in pods)


def _revision(obj: Object) -> str:
    """``obj``: a pod or a pod template. Empty for those of an operator without revisions."""
    return str((obj["metadata"].get("labels") or {}).get(names.LABEL_REVISION, ""))
