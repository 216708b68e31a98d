"""From a spec and what was observed to the children that should exist. Pure: no I/O, no clock."""

from typing import Any, Final

from vllmendpoint_api import WorkerSettings, names
from vllmendpoint_operator.components import frontend_name, has_frontend, workers_name
from vllmendpoint_operator.desired_state import Plan, Scaling
from vllmendpoint_operator.observe.references import claim_references
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed

from . import access, checks, configuration, disruption, migration, network, withheld
from .options import Options
from .pods import cache_volume, frontend, workers
from .revision import HISTORY, Revision, pinned, revisions

__all__ = [
    "Options",
    "plan",
    "scaling",
    "worker_settings",
]

worker_settings = configuration.worker_settings

_PRUNED: Final = (
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
    """What should exist. Raises PlanError where the spec, or what it refers to, does not allow one."""
    checks.check_spec(endpoint)
    text = configuration.config_file(endpoint.spec, observed)
    config = None if text is None else configuration.config_name(endpoint, text)
    script = configuration.handler_script(endpoint.spec, observed)
    revision = pinned(endpoint, observed, options, config)
    deployment = workers.deployment(endpoint, revision.data["worker"])
    wanted = configuration.health_check(endpoint.spec)
    given = withheld.publish_health_check(
        wanted,
        configuration.digest([wanted.wire(), revision.name]),
        observed.child("ConfigMap", configuration.settings_name(endpoint)),
        deployment,
        observed,
    )
    settings = worker_settings(endpoint.spec, script, given.check)

    children = [
        revision.object(endpoint),
        *access.accounts(endpoint, observed, options),
        configuration.settings_map(endpoint, settings, script, given.annotations),
        *([] if text is None else [configuration.config_map(endpoint, text)]),
        *cache_volume.cache_claims(endpoint),
        *network.network_policies(endpoint, options),
        *network.services(endpoint, draining=migration.frontends_drain(revision.data, observed)),
        *disruption.budgets(endpoint),
        deployment,
    ]
    if has_frontend(endpoint):
        wait = migration.min_ready_seconds(revision.data, observed)
        children.append(frontend.deployment(endpoint, revision.data["frontend"], wait))
    owned = tuple(_owned(endpoint, child) for child in children)
    applied = owned
    if (kept := migration.kept_workers(endpoint, observed, revision.data, revisions(observed))) is not None:
        # The template to come is verified, and not applied yet.
        waiting = _owned(endpoint, workers.deployment(endpoint, kept))
        applied = tuple(waiting if _same(child, waiting) else child for child in owned)
    return Plan(
        children=applied,
        verify=tuple(child for child in owned if _unverified(endpoint, observed, revision, child)),
        prune=_prune(endpoint, owned, observed),
        refresh=_refresh(observed, settings),
        settings=settings,
        withheld=given.withheld,
        revision=revision.status(),
    )


def scaling(endpoint: Endpoint, observed: Observed) -> Scaling:
    """What scaling needs, whatever is wrong with the rest of the spec. The pod templates stay as they are."""
    counts = {workers_name(endpoint): endpoint.spec.replicas}
    if has_frontend(endpoint):
        counts[frontend_name(endpoint)] = endpoint.spec.frontend.replicas
    existing = {name: count for name, count in counts.items() if observed.child("Deployment", name)}
    if workers_name(endpoint) not in existing:
        return Scaling(existing, (), ())
    budgets = tuple(_owned(endpoint, child) for child in disruption.budgets(endpoint))
    unwanted = [] if budgets else [disruption.budget_name(endpoint)]
    found = (observed.child("PodDisruptionBudget", name) for name in unwanted)
    return Scaling(existing, budgets, tuple(obj for obj in found if obj is not None))


def _owned(endpoint: Endpoint, child: dict[str, Any]) -> dict[str, Any]:
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


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return (one["kind"], one["metadata"]["name"]) == (other["kind"], other["metadata"]["name"])


def _unverified(endpoint: Endpoint, observed: Observed, revision: Revision, child: dict[str, Any]) -> bool:
    """A Deployment whose pods change, or are made from a podTemplate: refused half-way, a new rendering would
    be pinned that can never run. A rendering that is kept has been asked about."""
    if child["kind"] != "Deployment":
        return False
    part, patch = "worker", endpoint.spec.worker.pod_template
    if child["metadata"]["name"] == frontend_name(endpoint):
        part, patch = "frontend", endpoint.spec.frontend.pod_template
    kept = revisions(observed)
    before = kept[0]["data"].get(part) if kept else None
    return bool(patch) if before is None else bool(before != revision.data[part])


def _prune(
    endpoint: Endpoint, children: tuple[dict[str, Any], ...], observed: Observed
) -> tuple[dict[str, Any], ...]:
    wanted = {(child["kind"], child["metadata"]["name"]) for child in children}
    claims = observed.claims_in_use | claim_references(endpoint.spec)  # one made for it may be named since
    gone = [
        obj
        for (kind, name), obj in observed.children.items()
        if kind in _PRUNED
        and (kind, name) not in wanted
        # Old pods keep what they mount whatever happens, so that an evicted one can come back.
        and not (kind == "ConfigMap" and name in observed.settings_in_use)
        and not (kind == "PersistentVolumeClaim" and name in claims)
    ]
    history = [
        obj for obj in revisions(observed) if ("ControllerRevision", obj["metadata"]["name"]) not in wanted
    ]
    return (*gone, *history[HISTORY - 1 :])


def _refresh(observed: Observed, settings: WorkerSettings) -> dict[str, str]:
    """Pods whose worker says that it runs other settings, and that were not told yet."""
    return {
        pod.name: settings.hash
        for pod in observed.workers
        if not pod.terminating
        and pod.stream.report is not None
        # Empty: it has not read them yet, and will find the newest.
        and pod.stream.report.configuration.settings_hash not in ("", settings.hash)
        and (pod.obj["metadata"].get("annotations") or {}).get(names.ANNOTATION_SETTINGS_HASH)
        != settings.hash
    }
