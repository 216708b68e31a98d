"""Gather one endpoint's world from the cache and the workers' reports. Writes nothing."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from weakref import WeakValueDictionary

from vllmendpoint_api import names
from vllmendpoint_operator.cache.caches import Cache, Key
from vllmendpoint_operator.errors import NotFound
from vllmendpoint_operator.kube.client import Kube, Object
from vllmendpoint_operator.kube.kinds import CLAIM, CONFIG_MAP, DEPLOYMENT, MANAGED, POD, REPLICA_SET, Kind
from vllmendpoint_operator.reports.state import ReportTarget
from vllmendpoint_operator.reports.streams import ReportStreams

from .references import claim_references, config_map_references
from .snapshot import REVISION_ANNOTATION, ConfigMapContent, Endpoint, Observed, Pod, replica_failure

__all__ = ["Observer", "Workload"]


@dataclass(frozen=True, slots=True)
class Workload:
    """The endpoint's Deployments, their ReplicaSets and the pods of these."""

    deployments: list[Object]
    replica_sets: list[Object]
    pods: list[Object]
    awaiting_first_report: bool
    """A worker was only just asked for its reports: its first is on its way."""


class Observer:
    def __init__(self, kube: Kube, cache: Cache, reports: ReportStreams) -> None:
        self._kube = kube
        self._cache = cache
        self._reports = reports
        self._contents: WeakValueDictionary[tuple[str, str, str], ConfigMapContent] = WeakValueDictionary()
        """(namespace, name, uid/resourceVersion) -> content: each version is read once."""
        self._held: dict[Key, Mapping[str, ConfigMapContent]] = {}
        """What keeps them: those that an endpoint's spec referred to when it was last looked at."""

    def workload(self, key: Key, uid: str) -> Workload:
        """As it is now; also makes the report streams follow its worker pods."""
        deployments = self._owned(DEPLOYMENT, key, {uid})
        replica_sets = self._owned(REPLICA_SET, key, _uids(deployments))
        pods = self._owned(POD, key, _uids(replica_sets))
        listening = self._follow(key, (obj for obj in pods if _component(obj) == "worker"))
        return Workload(deployments, replica_sets, pods, listening)

    async def observe(self, endpoint: Endpoint, workload: Workload) -> Observed:
        """The endpoint's world now."""
        namespace, pods, replica_sets = endpoint.namespace, workload.pods, workload.replica_sets
        children = {
            (kind.kind, obj["metadata"]["name"]): {"kind": kind.kind, **obj}
            for kind in MANAGED
            for obj in (
                self._owned(kind, endpoint.key, {endpoint.uid})
                if kind is not DEPLOYMENT
                else workload.deployments
            )
        }
        workers = [obj for obj in pods if _component(obj) == "worker"]
        return Observed(
            now=datetime.now(UTC),
            children=children,
            workers=tuple(self._pod(endpoint, obj) for obj in _by_name(workers)),
            frontends=tuple(
                self._pod(endpoint, obj) for obj in _by_name(pods) if _component(obj) == "frontend"
            ),
            template_hashes={
                (owner, _revision(obj)): str(obj["metadata"]["labels"].get("pod-template-hash", ""))
                for owner, obj in _by_owner(workload.deployments, replica_sets)
            },
            replica_failures={
                (owner, _revision(obj)): said
                for owner, obj in _by_owner(workload.deployments, replica_sets)
                if (said := replica_failure(obj))
            },
            config_maps=await self._config_maps(endpoint),
            claims=frozenset(
                name
                for name in claim_references(endpoint.spec)
                if self._cache.reference(CLAIM, (namespace, name)) is not None
            ),
            settings_in_use=frozenset(_mounted(pods, replica_sets, "configMap", "name")),
            claims_in_use=frozenset(_mounted(pods, replica_sets, "persistentVolumeClaim", "claimName")),
            accounts_in_use=frozenset(_accounts(workers, replica_sets)),
        )

    def forget(self, key: Key) -> None:
        """The endpoint is gone: end its streams."""
        self._reports.sync_targets(key, ())
        self._held.pop(key, None)

    def _owned(self, kind: Kind, key: Key, owners: Collection[str]) -> list[Object]:
        """Of what is labelled as the endpoint's: a label can be set by anybody, a controller cannot."""
        namespace, _ = key
        return [
            obj for obj in self._cache.informer(kind, namespace).by_owner(key) if _controller(obj) in owners
        ]

    def _pod(self, endpoint: Endpoint, obj: Object) -> Pod:
        metadata = obj["metadata"]
        stream = self._reports.state(endpoint.key, metadata["uid"])
        return Pod(metadata["name"], metadata["uid"], obj, stream)

    def _follow(self, key: Key, workers: Iterable[Object]) -> bool:
        pods = [Pod(obj["metadata"]["name"], obj["metadata"]["uid"], obj) for obj in workers]
        up = [pod for pod in pods if pod.running and pod.address and not pod.terminating]
        return self._reports.sync_targets(key, [ReportTarget(pod.uid, pod.address, key) for pod in up])

    async def _config_maps(self, endpoint: Endpoint) -> dict[str, ConfigMapContent]:
        namespace = endpoint.namespace
        found = {}
        for name in config_map_references(endpoint.spec):
            newest = self._cache.reference(CONFIG_MAP, (namespace, name))
            if newest is None:
                continue
            version = (namespace, name, newest)
            content = self._contents.get(version)
            if content is None:
                try:
                    obj = await self._kube.get(CONFIG_MAP, namespace, name)
                except NotFound:
                    continue
                content = self._contents[version] = ConfigMapContent(obj.get("data") or {})
            found[name] = content
        if found:
            self._held[endpoint.key] = found
        else:
            self._held.pop(endpoint.key, None)
        return found


def _uids(objects: Iterable[Object]) -> set[str]:
    return {obj["metadata"]["uid"] for obj in objects}


def _by_owner(deployments: Iterable[Object], replica_sets: Iterable[Object]) -> Iterator[tuple[str, Object]]:
    """Each ReplicaSet with the name of its Deployment."""
    owners = {obj["metadata"]["uid"]: str(obj["metadata"]["name"]) for obj in deployments}
    for obj in replica_sets:
        yield owners[str(_controller(obj))], obj


def _revision(obj: Object) -> str:
    return str((obj["metadata"].get("annotations") or {}).get(REVISION_ANNOTATION, ""))


def _by_name(objects: Iterable[Object]) -> list[Object]:
    return sorted(objects, key=lambda obj: str(obj["metadata"]["name"]))


def _component(obj: Object) -> str:
    return str((obj["metadata"].get("labels") or {}).get(names.LABEL_COMPONENT, ""))


def _controller(obj: Object) -> str | None:
    for owner in obj["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            return str(owner["uid"])
    return None


def _accounts(workers: Iterable[Object], replica_sets: Iterable[Object]) -> set[str]:
    specs = [pod.get("spec") or {} for pod in workers]
    specs += [
        item["spec"]["template"]["spec"]
        for item in replica_sets
        if item["spec"]["replicas"] and _component(item) == "worker"
    ]
    return {str(spec["serviceAccountName"]) for spec in specs if spec.get("serviceAccountName")}


def _mounted(pods: Iterable[Object], replica_sets: Iterable[Object], source: str, name: str) -> set[str]:
    """Names under ``volumes[].<source>.<name>``."""
    specs = [pod.get("spec") or {} for pod in pods]
    specs += [item["spec"]["template"]["spec"] for item in replica_sets if item["spec"]["replicas"]]
    return {
        volume[source][name]
        for spec in specs
        for volume in spec.get("volumes") or []
        if name in (volume.get(source) or {})
    }
