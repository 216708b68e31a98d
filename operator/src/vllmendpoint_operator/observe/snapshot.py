"""The frozen views that decisions are made from: one endpoint's world at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from vllmendpoint_api import VLLMEndpointSpec, VLLMEndpointStatus, names
from vllmendpoint_operator.reports.state import StreamState

__all__ = [
    "FRONTEND",
    "REVISION_ANNOTATION",
    "WORKER",
    "ConfigMapContent",
    "Endpoint",
    "Object",
    "ObjectKey",
    "Observed",
    "Pod",
    "controller_of",
    "object_key",
    "replica_failure",
]

Object = dict[str, Any]

ObjectKey = tuple[str, str]
"""(kind, name) of an object in the endpoint's namespace."""

WORKER: Final = "worker"
FRONTEND: Final = "frontend"
"""Values of the component label, and names of the component's section in the spec."""
REVISION_ANNOTATION: Final = "deployment.kubernetes.io/revision"
"""Set by the Deployment controller, alike on a Deployment and on the ReplicaSet of its newest template."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A VLLMEndpoint as the API server gave it."""

    namespace: str
    name: str
    uid: str
    generation: int
    spec: VLLMEndpointSpec
    status: VLLMEndpointStatus | None
    """None before the first visit."""
    rollout: str = ""
    """Value of the rollout annotation."""

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    @property
    def model_name(self) -> str:
        return self.spec.model.name or self.name

    def labels(self, component: str) -> dict[str, str]:
        return {
            names.LABEL_NAME: "vllmendpoint",
            names.LABEL_INSTANCE: self.name,
            names.LABEL_COMPONENT: component,
            names.LABEL_MANAGED_BY: names.MANAGED_BY,
            names.LABEL_PART_OF: names.PART_OF,
        }

    def selector(self, component: str) -> dict[str, str]:
        """The labels that never change, for selectors."""
        labels = self.labels(component)
        return {key: labels[key] for key in (names.LABEL_NAME, names.LABEL_INSTANCE, names.LABEL_COMPONENT)}


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of ours (its owner chain leads to the endpoint) and what its worker says."""

    name: str
    uid: str
    obj: Object
    stream: StreamState = field(default_factory=StreamState)

    @property
    def status(self) -> Object:
        status: Object = self.obj.get("status") or {}
        return status

    @property
    def node(self) -> str:
        return str((self.obj.get("spec") or {}).get("nodeName", ""))

    @property
    def address(self) -> str:
        return str(self.status.get("podIP", ""))

    @property
    def phase(self) -> str:
        return str(self.status.get("phase", "Pending"))

    @property
    def terminating(self) -> bool:
        return "deletionTimestamp" in self.obj["metadata"]

    @property
    def finished(self) -> bool:
        """A record that Kubernetes keeps of one that was taken off its node: another takes its place.

        Succeeded too: so ends one whose containers end well when they are told to.
        """
        return self.phase in ("Failed", "Succeeded")

    @property
    def template_hash(self) -> str:
        """Which ReplicaSet of its Deployment made it."""
        return str((self.obj["metadata"].get("labels") or {}).get("pod-template-hash", ""))

    @property
    def component(self) -> str:
        """``worker`` or ``frontend``, as the fields of the spec are called."""
        return str((self.obj["metadata"].get("labels") or {}).get(names.LABEL_COMPONENT, "worker"))

    @property
    def ready(self) -> bool:
        return self.condition("Ready").get("status") == "True" and not self.terminating

    @property
    def main(self) -> Object:
        """Status of the main container; empty before the kubelet has seen the pod."""
        for status in self.status.get("containerStatuses") or []:
            if status.get("name") == names.MAIN_CONTAINER:
                found: Object = status
                return found
        return {}

    @property
    def restarts(self) -> int:
        return int(self.main.get("restartCount", 0))

    @property
    def running(self) -> bool:
        return "running" in (self.main.get("state") or {})

    @property
    def awaiting_first_report(self) -> bool:
        """It runs, and has not reported yet, nor is it silent for so long that it means something."""
        return (
            self.running
            and not self.terminating
            and self.stream.report is None
            and not self.stream.grace_expired
        )

    @property
    def started(self) -> bool:
        """The startup probe has passed."""
        return bool(self.main.get("started")) and self.running

    def condition(self, kind: str) -> Object:
        for condition in self.status.get("conditions") or []:
            if condition.get("type") == kind:
                found: Object = condition
                return found
        return {}


@dataclass(frozen=True, slots=True, weakref_slot=True)
class ConfigMapContent:
    """A ConfigMap that the spec refers to."""

    data: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Observed:
    """All that a decision may look at, but for the spec."""

    now: datetime
    children: Mapping[ObjectKey, Object] = field(default_factory=dict)
    """(kind, name) -> object, only those whose controller is this endpoint."""
    workers: tuple[Pod, ...] = ()
    frontends: tuple[Pod, ...] = ()
    template_hashes: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(Deployment, its controller's number of a revision) -> what that revision's pods are labelled with."""
    replica_failures: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(Deployment, its controller's number of a revision) -> why that revision's pods cannot be created."""
    config_maps: Mapping[str, ConfigMapContent] = field(default_factory=dict)
    """Those that the spec refers to and that exist."""
    claims: frozenset[str] = frozenset()
    """Those that the spec refers to and that exist."""
    settings_in_use: frozenset[str] = frozenset()
    """Names of ConfigMaps that a pod, or a ReplicaSet that may still make pods, mounts."""
    claims_in_use: frozenset[str] = frozenset()
    """Names of PersistentVolumeClaims that such a one mounts."""
    accounts_in_use: frozenset[str] = frozenset()
    """ServiceAccounts of worker pods, and of ReplicaSets that may still make such pods."""

    def child(self, kind: str, name: str) -> Object | None:
        return self.children.get((kind, name))


def object_key(obj: Object) -> ObjectKey:
    return obj["kind"], obj["metadata"]["name"]


def controller_of(obj: Object) -> Object | None:
    """The owner reference of the object's controller."""
    for owner in obj["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            found: Object = owner
            return found
    return None


def replica_failure(obj: Object) -> str:
    """Why a Deployment or a ReplicaSet cannot create pods, as the API server said; empty where it can."""
    for condition in (obj.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return str(condition.get("message") or "its ReplicaSet does not say why")
    return ""
