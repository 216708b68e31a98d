"""Collects the observed state of one endpoint from the cache and the pods' reports. Writes nothing."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from vllmendpoint_api import names
from vllmendpoint_operator.cache.caches import Cache, Key
from vllmendpoint_operator.kube.client import Kube, Object
from vllmendpoint_operator.kube.kinds import (
    CLAIM,
    DEPLOYMENT,
    MANAGED,
    POD,
    REPLICA_SET,
    Kind,
    by_name,
)
from vllmendpoint_operator.reports.state import ReportTarget
from vllmendpoint_operator.reports.streams import ReportStreams

from .config_maps import ReferencedConfigMaps
from .references import claim_references
from .snapshot import (
    FRONTEND,
    PREFILL,
    REVISION_ANNOTATION,
    WORKER,
    Endpoint,
    ObjectKey,
    Observed,
    Pod,
    controller_of,
    object_key,
    replica_failure,
)

__all__ = ["Observer", "Workload", "find_others"]


_WORKERS: Final = (WORKER, PREFILL)
"""Components whose pods run an engine."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The endpoint's Deployments, their ReplicaSets and the pods of these."""

    deployments: list[Object]
    replica_sets: list[Object]
    pods: list[Object]
    awaiting_first_report: bool
    """The operator has just connected to a pod and expects its first report."""


class Observer:
    def __init__(self, kube: Kube, cache: Cache, reports: ReportStreams) -> None:
        self._cache = cache
        self._reports = reports
        self.config_maps = ReferencedConfigMaps(kube, cache)

    def workload(self, key: Key, uid: str) -> Workload:
        """The current workload. Opens and closes report streams to match the pods."""
        deployments = self._owned(DEPLOYMENT, key, {uid})
        replica_sets = self._owned(REPLICA_SET, key, _uids(deployments))
        pods = self._owned(POD, key, _uids(replica_sets))
        awaiting = self._sync_streams(key, pods)
        return Workload(deployments, replica_sets, pods, awaiting)

    async def observe(self, endpoint: Endpoint, workload: Workload) -> Observed:
        """Raises KubeError if a ConfigMap that the spec refers to cannot be read."""
        namespace, pods, replica_sets = endpoint.namespace, workload.pods, workload.replica_sets
        workers, prefill, frontends = (
            [obj for obj in pods if _component(obj) == component] for component in (WORKER, PREFILL, FRONTEND)
        )
        return Observed(
            now=datetime.now(UTC),
            children=self._children(endpoint, workload),
            workers=self._pods(endpoint, workers),
            prefill=self._pods(endpoint, prefill),
            frontends=self._pods(endpoint, frontends),
            template_hashes={
                (deployment, _revision(obj)): str(obj["metadata"]["labels"].get("pod-template-hash", ""))
                for deployment, obj in _by_deployment(workload.deployments, replica_sets)
            },
            replica_failures={
                (deployment, _revision(obj)): message
                for deployment, obj in _by_deployment(workload.deployments, replica_sets)
                if (message := replica_failure(obj))
            },
            config_maps=await self.config_maps.read(endpoint),
            claims=frozenset(
                name
                for name in claim_references(endpoint.spec)
                if self._cache.reference(CLAIM, (namespace, name)) is not None
            ),
            settings_in_use=frozenset(_mounted(pods, replica_sets, "configMap", "name")),
            claims_in_use=frozenset(_mounted(pods, replica_sets, "persistentVolumeClaim", "claimName")),
            accounts_in_use=frozenset(_accounts([*workers, *prefill], replica_sets)),
        )

    def forget(self, key: Key) -> None:
        """Close the streams of a deleted endpoint, and drop its ConfigMaps."""
        self._reports.sync_targets(key, ())
        self.config_maps.forget(key)

    def _children(self, endpoint: Endpoint, workload: Workload) -> dict[ObjectKey, Object]:
        owned = {
            kind: self._owned(kind, endpoint.key, {endpoint.uid}) for kind in MANAGED if kind != DEPLOYMENT
        }
        owned[DEPLOYMENT] = workload.deployments
        return {
            (kind.kind, obj["metadata"]["name"]): {"kind": kind.kind, **obj}
            for kind, objects in owned.items()
            for obj in objects
        }

    def _owned(self, kind: Kind, key: Key, owner_uids: Collection[str]) -> list[Object]:
        """Objects with the endpoint's label and one of these controllers. Any client may set the label."""
        namespace, _ = key
        labelled = self._cache.informer(kind, namespace).by_owner(key)
        return [obj for obj in labelled if _controller_uid(obj) in owner_uids]

    def _pods(self, endpoint: Endpoint, objects: Iterable[Object]) -> tuple[Pod, ...]:
        pods = []
        for obj in sorted(objects, key=lambda obj: str(obj["metadata"]["name"])):
            name, uid = obj["metadata"]["name"], obj["metadata"]["uid"]
            pods.append(Pod(name, uid, obj, self._reports.state(endpoint.key, uid)))
        return tuple(pods)

    def _sync_streams(self, key: Key, objects: Iterable[Object]) -> bool:
        """Whether the first report of a new stream is expected."""
        targets = []
        for obj in objects:
            pod, component = Pod(obj["metadata"]["name"], obj["metadata"]["uid"], obj), _component(obj)
            reports = component in _WORKERS or (component == FRONTEND and pod.has_report_port)
            if reports and pod.running and pod.address and not pod.terminating:
                targets.append(ReportTarget(pod.uid, pod.address, key, component == FRONTEND))
        return self._reports.sync_targets(key, targets)


def find_others(
    cache: Cache, endpoint: Endpoint, observed: Observed, children: Iterable[Object]
) -> dict[ObjectKey, Object]:
    """Cached objects, of any owner, under the names of ``children`` that ``observed`` does not have."""
    found = {}
    for kind, name in {object_key(child) for child in children} - observed.children.keys():
        obj = cache.informer(by_name(kind), endpoint.namespace).get((endpoint.namespace, name))
        if obj is not None:
            found[kind, name] = {"kind": kind, **obj}
    return found


def _uids(objects: Iterable[Object]) -> set[str]:
    return {obj["metadata"]["uid"] for obj in objects}


def _by_deployment(
    deployments: Iterable[Object], replica_sets: Iterable[Object]
) -> Iterator[tuple[str, Object]]:
    """(name of the Deployment, ReplicaSet)"""
    owners = {obj["metadata"]["uid"]: str(obj["metadata"]["name"]) for obj in deployments}
    for obj in replica_sets:
        yield owners[str(_controller_uid(obj))], obj


def _revision(obj: Object) -> str:
    return str((obj["metadata"].get("annotations") or {}).get(REVISION_ANNOTATION, ""))


def _component(obj: Object) -> str:
    return str((obj["metadata"].get("labels") or {}).get(names.LABEL_COMPONENT, ""))


def _controller_uid(obj: Object) -> str | None:
    owner = controller_of(obj)
    return None if owner is None else str(owner["uid"])


def _accounts(workers: Iterable[Object], replica_sets: Iterable[Object]) -> set[str]:
    """ServiceAccounts of worker pods, and of ReplicaSets that may create worker pods."""
    specs = [pod.get("spec") or {} for pod in workers]
    specs += [
        item["spec"]["template"]["spec"]
        for item in replica_sets
        if item["spec"]["replicas"] and _component(item) in _WORKERS
    ]
    return {str(spec["serviceAccountName"]) for spec in specs if spec.get("serviceAccountName")}


def _mounted(pods: Iterable[Object], replica_sets: Iterable[Object], source: str, field: str) -> set[str]:
    """Values of ``volumes[].<source>.<field>`` of pods, and of ReplicaSets that may create pods."""
    specs = [pod.get("spec") or {} for pod in pods]
    specs += [item["spec"]["template"]["spec"] for item in replica_sets if item["spec"]["replicas"]]
    return {
        volume[source][field]
        for spec in specs
        for volume in spec.get("volumes") or []
        if field in (volume.get(source) or {})
    }
