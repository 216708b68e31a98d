"""The observed state of one endpoint, frozen: the input of ``plan``, ``apply.diff`` and ``status``. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from vllmendpoint_api import VLLMEndpointSpec, VLLMEndpointStatus, names
from vllmendpoint_operator.reports.state import StreamState

__all__ = [
    "FRONTEND",
    "PREFILL",
    "REPORT_PORT_NAME",
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
PREFILL: Final = "prefill"
FRONTEND: Final = "frontend"
"""Values of the component label, and names of the component's section in the spec."""
REPORT_PORT_NAME: Final = "report"
"""Name of the container port on which a pod serves reports."""
REVISION_ANNOTATION: Final = "deployment.kubernetes.io/revision"
"""The Deployment controller sets it to the same number on a Deployment and on its newest ReplicaSet."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A VLLMEndpoint with a valid spec."""

    namespace: str
    name: str
    uid: str
    generation: int
    spec: VLLMEndpointSpec
    status: VLLMEndpointStatus | None
    """None before the first reconcile."""
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
        """The labels for selectors, which are immutable."""
        labels = self.labels(component)
        return {key: labels[key] for key in (names.LABEL_NAME, names.LABEL_INSTANCE, names.LABEL_COMPONENT)}


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod whose chain of owners leads to the endpoint, and the state of its report stream."""

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
        """Whether all containers ended for good, for instance after an eviction. Another pod replaces it.

        The phase is Succeeded if the containers exited with 0 after SIGTERM.
        """
        return self.phase in ("Failed", "Succeeded")

    @property
    def template_hash(self) -> str:
        """Identifies the ReplicaSet that created the pod."""
        return str((self.obj["metadata"].get("labels") or {}).get("pod-template-hash", ""))

    @property
    def component(self) -> str:
        """``worker``, ``prefill`` or ``frontend``"""
        return str((self.obj["metadata"].get("labels") or {}).get(names.LABEL_COMPONENT, "worker"))

    @property
    def ready(self) -> bool:
        return self.condition("Ready").get("status") == "True" and not self.terminating

    @property
    def main(self) -> Object:
        """Status of the main container; empty until the kubelet reports it."""
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
        """Whether the pod runs, has not reported yet and still has time to connect."""
        return (
            self.running
            and not self.terminating
            and self.stream.report is None
            and self.stream.frontend is None
            and not self.stream.grace_expired
        )

    @property
    def has_report_port(self) -> bool:
        """Whether the main container serves reports. Frontends of earlier releases do not."""
        return any(
            port.get("name") == REPORT_PORT_NAME
            for container in (self.obj.get("spec") or {}).get("containers") or []
            if container.get("name") == names.MAIN_CONTAINER
            for port in container.get("ports") or []
        )

    @property
    def ready_since(self) -> datetime | None:
        """Time at which the pod became ready, by the kubelet's clock; None if it is not ready."""
        changed = self.condition("Ready").get("lastTransitionTime")
        return datetime.fromisoformat(changed) if self.ready and changed else None

    @property
    def started(self) -> bool:
        """Whether the startup probe has succeeded."""
        return bool(self.main.get("started")) and self.running

    def condition(self, kind: str) -> Object:
        for condition in self.status.get("conditions") or []:
            if condition.get("type") == kind:
                found: Object = condition
                return found
        return {}


@dataclass(frozen=True, slots=True, weakref_slot=True)
class ConfigMapContent:
    """Content of a ConfigMap that the spec refers to."""

    data: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything except the spec that a decision may depend on."""

    now: datetime
    children: Mapping[ObjectKey, Object] = field(default_factory=dict)
    """Objects whose controller is the endpoint."""
    workers: tuple[Pod, ...] = ()
    """Pods of ``spec.replicas``. With ``spec.prefill``, they decode."""
    prefill: tuple[Pod, ...] = ()
    """Prefill workers."""
    frontends: tuple[Pod, ...] = ()
    template_hashes: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(Deployment, value of REVISION_ANNOTATION) -> label ``pod-template-hash`` of that revision's pods."""
    replica_failures: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(Deployment, value of REVISION_ANNOTATION) -> message about pods that cannot be created."""
    config_maps: Mapping[str, ConfigMapContent] = field(default_factory=dict)
    """The existing ConfigMaps that the spec refers to, by name."""
    claims: frozenset[str] = frozenset()
    """Names of the existing PersistentVolumeClaims that the spec refers to."""
    settings_in_use: frozenset[str] = frozenset()
    """Names of ConfigMaps in use by a pod, or by a ReplicaSet that may still create pods."""
    claims_in_use: frozenset[str] = frozenset()
    """Names of PersistentVolumeClaims in use by a pod or such a ReplicaSet."""
    accounts_in_use: frozenset[str] = frozenset()
    """ServiceAccounts of worker pods, and of ReplicaSets that may still create worker pods."""

    @property
    def all_workers(self) -> tuple[Pod, ...]:
        """The workers and the prefill workers."""
        return (*self.workers, *self.prefill)

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
    """The API server's message why a Deployment or ReplicaSet cannot create pods; empty if it can."""
    for condition in (obj.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return str(condition.get("message") or "its ReplicaSet reports no reason")
    return ""
