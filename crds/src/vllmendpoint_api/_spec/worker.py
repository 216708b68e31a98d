"""``spec.worker`` and ``spec.cache``."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field

from vllmendpoint_api._base import Contract, JsonObject, Quantity

from .common import DNS_SUBDOMAIN, LocalObjectReference, Name, rules
from .env import EnvFrom, EnvVar

__all__ = [
    "AccessMode",
    "CacheSpec",
    "EmptyDir",
    "PersistentVolumeClaim",
    "Resources",
    "VolumeClaimTemplate",
    "WorkerSpec",
]


_DEVICE: Final = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)$"
_RESOURCE_RULES: Final = (
    {
        "rule": f"self.all(name, name in ['cpu', 'memory', 'ephemeral-storage'] || "
        f"name.startsWith('hugepages-') || name.matches('{_DEVICE}'))",
        "message": "resources: each name must be cpu, memory, ephemeral-storage, hugepages-<size>, or a "
        "device as vendor.example/name, for example nvidia.com/gpu",
    },
    {
        "rule": "self.all(name, !name.contains('/') || quantity(string(self[name])).isInteger())",
        "message": "resources: the quantity of a device must be a whole number",
    },
)
ResourceList = Annotated[
    dict[str, Quantity],
    Field(default_factory=dict, max_length=16, json_schema_extra=rules(*_RESOURCE_RULES)),
]


class Resources(Contract):
    """Compute resources of a container."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!has(self.limits) || !has(self.requests) || self.requests.all(name, "
                "!(name in self.limits) || quantity(string(self.requests[name]))"
                ".compareTo(quantity(string(self.limits[name]))) <= 0)",
                "message": "resources: a request exceeds its limit; lower the request or raise the limit",
            },
            {
                "rule": "!has(self.requests) || self.requests.all(name, !name.contains('/') || "
                "(has(self.limits) && name in self.limits && quantity(string(self.requests[name]))"
                ".compareTo(quantity(string(self.limits[name]))) == 0))",
                "message": "resources: a device must be set in limits; remove it from requests",
            },
        )
    )
    limits: Annotated[
        ResourceList,
        Field(
            description="Maximum resources the container may use, including devices such as nvidia.com/gpu. "
            "Defaults to no limit."
        ),
    ]
    requests: Annotated[
        ResourceList,
        Field(description="Resources that the scheduler reserves for the container. Defaults to limits."),
    ]


class WorkerSpec(Contract):
    """Pods that run Dynamo and vLLM."""

    image: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=512,
            pattern=r"^\S+$",
            description="Container image of the workers. Defaults to the operator's image "
            "at the time of the last change of the spec or restart.",
        ),
    ] = None
    resources: Annotated[
        Resources,
        Field(
            description="Compute resources of each worker. Defaults to none: no requests, no limits, no GPU."
        ),
    ] = Resources()
    env: Annotated[
        tuple[EnvVar, ...],
        Field(
            max_length=128,
            description="Environment variables of the workers. Names that the operator sets or that the "
            "worker does not support are rejected. Defaults to none.",
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    env_from: Annotated[
        tuple[EnvFrom, ...],
        Field(
            max_length=32,
            description="ConfigMaps and Secrets whose keys become environment variables of the workers. "
            "Variables in env take precedence. Defaults to none.",
        ),
    ] = ()
    image_pull_secrets: Annotated[
        tuple[LocalObjectReference, ...],
        Field(
            max_length=16,
            description="Secrets for pulling the images of workers and frontends. Defaults to those of "
            "the pods' ServiceAccounts.",
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    service_account_name: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=253,
            pattern=DNS_SUBDOMAIN,
            description="Existing ServiceAccount of the worker pods, which the operator binds to the role "
            "of the workers. If unset, the operator creates a ServiceAccount.",
        ),
    ] = None
    shared_memory_size: Annotated[
        Quantity,
        Field(
            description="Size of /dev/shm. It counts towards the memory limit of the container. Defaults to "
            "8Gi."
        ),
    ] = "8Gi"
    startup_timeout_seconds: Annotated[
        int,
        Field(
            ge=10,
            le=86_400,
            description="Seconds that a worker may take to start, including the download of the model, "
            "before the kubelet restarts it. Defaults to 7200.",
        ),
    ] = 7200
    pod_template: Annotated[
        JsonObject | None,
        Field(
            description="Strategic merge patch of the operator's PodTemplateSpec of the workers. The "
            "container is named main. As in any pod, $(NAME) in its env is expanded. Defaults to no change."
        ),
    ] = None


class PersistentVolumeClaim(Contract):
    """Existing PersistentVolumeClaim in the endpoint's namespace."""

    claim_name: Annotated[Name, Field(description="Name of the PersistentVolumeClaim.")]


class AccessMode(StrEnum):
    READ_WRITE_ONCE = "ReadWriteOnce"
    READ_WRITE_ONCE_POD = "ReadWriteOncePod"
    READ_WRITE_MANY = "ReadWriteMany"


def _fixed(field: str) -> dict[str, str]:
    """Return a rule for the field itself. On the parent, the cost estimate exceeds the limit."""
    return {
        "rule": "self == oldSelf",
        "message": f"cache.volumeClaimTemplate.{field}: the field is immutable; create another "
        "PersistentVolumeClaim and set cache.persistentVolumeClaim",
    }


class VolumeClaimTemplate(Contract):
    """PersistentVolumeClaim that the operator creates for the endpoint and deletes with it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "quantity(string(self.size)).isGreaterThan(quantity('0'))",
                "message": "cache.volumeClaimTemplate.size: must be greater than 0",
            },
            {
                "rule": "!('ReadWriteOncePod' in self.accessModes) || size(self.accessModes) == 1",
                "message": "cache.volumeClaimTemplate.accessModes: ReadWriteOncePod cannot be combined with "
                "other access modes; remove it or the others",
            },
        )
    )
    size: Annotated[
        Quantity,
        # No rule against a smaller size: the user must be able to revert growth that the API server rejects.
        Field(description="Storage request. It can grow if the StorageClass allows volume expansion."),
    ]
    storage_class_name: Annotated[
        str | None,
        Field(
            max_length=253,
            pattern=f"^$|{DNS_SUBDOMAIN}",
            description="Name of the StorageClass; the empty string means no class. Defaults to the default "
            "StorageClass of the cluster.",
            json_schema_extra=rules(_fixed("storageClassName")),
        ),
    ] = None
    access_modes: Annotated[
        tuple[AccessMode, ...],
        Field(
            min_length=1,
            max_length=3,
            description="Access modes. More than one replica needs ReadWriteMany. Defaults to ReadWriteOnce.",
            json_schema_extra={"x-kubernetes-list-type": "set", **rules(_fixed("accessModes"))},
        ),
    ] = (AccessMode.READ_WRITE_ONCE,)


class EmptyDir(Contract):
    """Directory that is deleted with the pod."""

    size_limit: Annotated[
        Quantity | None,
        Field(description="Maximum size. The kubelet evicts a pod that exceeds it. Defaults to no limit."),
    ] = None


class CacheSpec(Contract):
    """Volume for downloaded models. At most one field can be set; without one, an emptyDir is used."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!(has(self.persistentVolumeClaim) && has(self.emptyDir))",
                "message": "cache: persistentVolumeClaim and emptyDir are both set; remove one of them",
            },
            {
                "rule": "!has(self.volumeClaimTemplate) || "
                "!(has(self.persistentVolumeClaim) || has(self.emptyDir))",
                "message": "cache: volumeClaimTemplate and persistentVolumeClaim or emptyDir are both set; "
                "remove one of them",
            },
        )
    )
    persistent_volume_claim: Annotated[
        PersistentVolumeClaim | None,
        Field(description="Existing PersistentVolumeClaim that all replicas share."),
    ] = None
    volume_claim_template: Annotated[
        VolumeClaimTemplate | None,
        Field(
            description="PersistentVolumeClaim that the operator creates, that all replicas share, and that "
            "is deleted with the endpoint."
        ),
    ] = None
    empty_dir: Annotated[
        EmptyDir | None, Field(description="Directory of each pod, which is deleted with the pod.")
    ] = None
