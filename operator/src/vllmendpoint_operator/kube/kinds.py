"""Defines the Kubernetes kinds that the operator reads or writes, and their URL paths."""

from dataclasses import dataclass
from typing import Final

from vllmendpoint_api import names

__all__ = [
    "CLAIM",
    "CONFIG_MAP",
    "CONTROLLER_REVISION",
    "DEPLOYMENT",
    "ENDPOINT",
    "EVENT",
    "LEASE",
    "MANAGED",
    "NETWORK_POLICY",
    "POD",
    "POD_DISRUPTION_BUDGET",
    "REPLICA_SET",
    "ROLE_BINDING",
    "SERVICE",
    "SERVICE_ACCOUNT",
    "Kind",
    "by_name",
]


@dataclass(frozen=True, slots=True)
class Kind:
    group: str
    version: str
    kind: str
    plural: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the URL path of a collection, object or subresource; ``namespace=None``: all namespaces."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if namespace is not None:
            parts.append(f"namespaces/{namespace}")
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


ENDPOINT: Final = Kind(names.GROUP, names.VERSION, names.KIND, names.PLURAL)
POD: Final = Kind("", "v1", "Pod", "pods")
SERVICE: Final = Kind("", "v1", "Service", "services")
CONFIG_MAP: Final = Kind("", "v1", "ConfigMap", "configmaps")
SERVICE_ACCOUNT: Final = Kind("", "v1", "ServiceAccount", "serviceaccounts")
CLAIM: Final = Kind("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")
EVENT: Final = Kind("", "v1", "Event", "events")
DEPLOYMENT: Final = Kind("apps", "v1", "Deployment", "deployments")
REPLICA_SET: Final = Kind("apps", "v1", "ReplicaSet", "replicasets")
CONTROLLER_REVISION: Final = Kind("apps", "v1", "ControllerRevision", "controllerrevisions")
NETWORK_POLICY: Final = Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
POD_DISRUPTION_BUDGET: Final = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
ROLE_BINDING: Final = Kind("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings")
LEASE: Final = Kind("coordination.k8s.io", "v1", "Lease", "leases")

MANAGED: Final = (
    CONTROLLER_REVISION,
    SERVICE_ACCOUNT,
    ROLE_BINDING,
    CONFIG_MAP,
    CLAIM,
    NETWORK_POLICY,
    SERVICE,
    POD_DISRUPTION_BUDGET,
    DEPLOYMENT,
)
"""The kinds of children in the order in which they are applied: the ControllerRevision first, because it is
the write-ahead log of the pod templates, and the Deployments last, after everything that their pods
reference."""

_BY_NAME: Final = {kind.kind: kind for kind in (*MANAGED, POD, REPLICA_SET, CLAIM, ENDPOINT)}


def by_name(kind: str) -> Kind:
    return _BY_NAME[kind]
