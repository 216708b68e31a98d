"""Derives the desired state of an endpoint from its spec and the observed state. Pure: no I/O, no clock."""

from collections.abc import Iterable
from typing import Any, Final

from vllmendpoint_api import WorkerSettings, names
from vllmendpoint_operator.components import (
    frontend_name,
    has_frontend,
    prefill_name,
    worker_pools,
    workers_name,
)
from vllmendpoint_operator.desired_state import Plan, Scaling
from vllmendpoint_operator.observe.references import claim_references
from vllmendpoint_operator.observe.snapshot import (
    FRONTEND,
    PREFILL,
    WORKER,
    Endpoint,
    Object,
    Observed,
    object_key,
)

from . import access, configuration, disruption, migration, network
from .checks import check_spec
from .health_check import select_health_check
from .options import Options
from .pods import cache_volume, frontend, workers
from .revision import HISTORY_LIMIT, Revision, current_revision, revisions

__all__ = ["plan", "scaling"]

_PRUNED_KINDS: Final = (
    "ConfigMap",
    "PersistentVolumeClaim",
    "ServiceAccount",
    "RoleBinding",
    "NetworkPolicy",
    "Service",
    "PodDisruptionBudget",
    "Deployment",
)


def plan(endpoint: Endpoint, observed: Observed, options: Options) -> Plan:
    """All desired children. Raises PlanError if the spec, or an object it refers to, is not valid."""
    check_spec(endpoint)
    config_text = configuration.config_file(endpoint.spec, observed)
    config_name = None if config_text is None else configuration.config_name(endpoint, config_text)
    script = configuration.handler_script(endpoint.spec, observed)
    revision = current_revision(endpoint, observed, options, config_name)
    pools = worker_pools(endpoint)
    deployments = [workers.deployment(endpoint, pool, revision.data[pool.component]) for pool in pools]
    requested = configuration.health_check(endpoint.spec)
    selected = select_health_check(
        requested,
        configuration.digest([requested.wire(), revision.name]),
        observed.child("ConfigMap", configuration.settings_name(endpoint)),
        deployments,
        observed,
    )
    settings = configuration.worker_settings(endpoint.spec, script, selected.check)

    children = [
        revision.object(endpoint),
        *access.accounts(endpoint, observed, options),
        configuration.settings_map(endpoint, settings, script, selected.annotations),
        *([] if config_text is None else [configuration.config_map(endpoint, config_text)]),
        *cache_volume.cache_claims(endpoint),
        *network.network_policies(endpoint, options),
        *network.services(endpoint, draining=migration.selects_draining_only(revision.data, observed)),
        *disruption.budgets(endpoint),
        *deployments,
    ]
    if has_frontend(endpoint):
        min_ready_seconds = migration.min_ready_seconds(revision.data, observed)
        children.append(frontend.deployment(endpoint, revision.data[FRONTEND], min_ready_seconds))
    owned = tuple(_with_owner(endpoint, child) for child in children)
    return Plan(
        children=_with_retained_workers(endpoint, observed, revision, owned),
        verify=tuple(child for child in owned if _needs_dry_run(endpoint, observed, revision, child)),
        prune=_prune(endpoint, owned, observed),
        refresh=_refresh(observed, settings),
        settings=settings,
        withheld=selected.withheld,
        revision=revision.status(),
    )


def scaling(endpoint: Endpoint, observed: Observed) -> Scaling:
    """Replicas of the existing Deployments, and the budgets. Valid even if the rest of the spec is not."""
    pools = worker_pools(endpoint)
    counts = {pool.name: pool.replicas for pool in pools}
    if has_frontend(endpoint):
        counts[frontend_name(endpoint)] = endpoint.spec.frontend.replicas
    existing = {name: count for name, count in counts.items() if observed.child("Deployment", name)}
    desired = {child["metadata"]["name"]: child for child in disruption.budgets(endpoint)}
    budgets, unwanted = [], []
    for pool in pools:
        live = observed.child("PodDisruptionBudget", pool.name)
        if pool.name in existing and pool.name in desired:
            budgets.append(_with_owner(endpoint, desired[pool.name]))
        elif pool.name in existing and live is not None:
            unwanted.append(live)
    return Scaling(existing, tuple(budgets), tuple(unwanted))


def _with_owner(endpoint: Endpoint, child: dict[str, Any]) -> dict[str, Any]:
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": endpoint.name,
        "uid": endpoint.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    metadata = {**child["metadata"], "namespace": endpoint.namespace, "ownerReferences": [owner]}
    return {**child, "metadata": metadata}


def _with_retained_workers(
    endpoint: Endpoint, observed: Observed, revision: Revision, children: tuple[dict[str, Any], ...]
) -> tuple[dict[str, Any], ...]:
    """``children`` in which the workers keep their legacy template while the frontends are migrated."""
    template = migration.retained_template(endpoint, observed, revision.data, revisions(observed))
    if template is None:
        return children
    retained = _with_owner(endpoint, workers.deployment(endpoint, worker_pools(endpoint)[0], template))
    return tuple(retained if object_key(child) == object_key(retained) else child for child in children)


def _needs_dry_run(endpoint: Endpoint, observed: Observed, revision: Revision, child: dict[str, Any]) -> bool:
    """Whether the child is a Deployment with a changed template, or a first one from a podTemplate.

    If the API server rejected the template after the revision was written, the revision would pin a template
    that can never run. The template of an existing revision was verified before.
    """
    if child["kind"] != "Deployment":
        return False
    spec = endpoint.spec
    worker_template = spec.worker.pod_template
    component, has_user_template = {
        workers_name(endpoint): (WORKER, bool(worker_template)),
        prefill_name(endpoint): (
            PREFILL,
            bool(worker_template or (spec.prefill is not None and spec.prefill.pod_template)),
        ),
        frontend_name(endpoint): (FRONTEND, bool(spec.frontend.pod_template)),
    }[child["metadata"]["name"]]
    existing = revisions(observed)
    before = existing[0]["data"].get(component) if existing else None
    return has_user_template if before is None else bool(before != revision.data[component])


def _prune(endpoint: Endpoint, children: Iterable[Object], observed: Observed) -> tuple[Object, ...]:
    desired = {object_key(child) for child in children}
    # The spec may refer by name to the claim that the operator created for it.
    claims = observed.claims_in_use | claim_references(endpoint.spec)
    unwanted = [
        obj
        for (kind, name), obj in observed.children.items()
        if kind in _PRUNED_KINDS
        and (kind, name) not in desired
        # Keep what older pods mount, so that an evicted one can start again.
        and not (kind == "ConfigMap" and name in observed.settings_in_use)
        and not (kind == "PersistentVolumeClaim" and name in claims)
    ]
    older = [
        obj for obj in revisions(observed) if ("ControllerRevision", obj["metadata"]["name"]) not in desired
    ]
    return (*unwanted, *older[HISTORY_LIMIT - 1 :])


def _refresh(observed: Observed, settings: WorkerSettings) -> dict[str, str]:
    """Pods that may use other settings and do not have the annotation yet.

    A frontend does not report its settings. It gets the annotation together with the workers; without it, the
    kubelet updates the volume within some 90 s.
    """
    workers = [
        pod
        for pod in observed.all_workers
        if not pod.terminating
        and pod.stream.report is not None
        # Empty: the worker has not read any settings yet, and will read the newest.
        and pod.stream.report.configuration.settings_hash not in ("", settings.hash)
    ]
    frontends = [pod for pod in observed.frontends if workers and pod.running and pod.has_report_port]
    return {
        pod.name: settings.hash
        for pod in (*workers, *frontends)
        if not pod.terminating
        and (pod.obj["metadata"].get("annotations") or {}).get(names.ANNOTATION_SETTINGS_HASH)
        != settings.hash
    }
