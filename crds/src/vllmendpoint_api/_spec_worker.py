"""``spec.worker`` and ``spec.cache``: the pods, and where they keep downloaded models."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field

from ._base import Contract, JsonObject, Quantity
from ._rules import DNS_SUBDOMAIN, LocalObjectReference, Name, rules
from ._spec_env import EnvFrom, EnvVar

__all__ = [
    "AccessMode",
    "Cache",
    "EmptyDir",
    "PersistentVolumeClaim",
    "Resources",
    "VolumeClaimTemplate",
    "Worker",
]


_DEVICE: Final = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)$"
_RESOURCE_RULES: Final = (
    {
        "rule": f"self.all(name, name in ['cpu', 'memory', 'ephemeral-storage'] || "
        f"name.startsWith('hugepages-') || name.matches('{_DEVICE}'))",
        "message": "resources: give cpu, memory, ephemeral-storage, hugepages-<size>, or a device as "
        "vendor.example/name, for instance nvidia.com/gpu",
    },
    {
        "rule": "self.all(name, !name.contains('/') || quantity(string(self[name])).isInteger())",
        "message": "resources: devices are counted in whole numbers",
    },
)
ResourceList = Annotated[
    dict[str, Quantity],
    Field(default_factory=dict, max_length=16, json_schema_extra=rules(*_RESOURCE_RULES)),
]


class Resources(Contract):
    """Compute resources, as in a container."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!has(self.limits) || !has(self.requests) || self.requests.all(name, "
                "!(name in self.limits) || quantity(string(self.requests[name]))"
                ".compareTo(quantity(string(self.limits[name]))) <= 0)",
                "message": "resources: a request is above its limit; lower it, or raise the limit",
            },
            {
                "rule": "!has(self.requests) || self.requests.all(name, !name.contains('/') || "
                "(has(self.limits) && name in self.limits && quantity(string(self.requests[name]))"
                ".compareTo(quantity(string(self.limits[name]))) == 0))",
                "message": "resources: a device is asked for under limits; leave it out of requests",
            },
        )
    )
    limits: Annotated[ResourceList, Field(description="Most that may be used.")]
    requests: Annotated[ResourceList, Field(description="What is reserved.")]


class Worker(Contract):
    """The pods that run Dynamo + vLLM."""

    image: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=512,
            pattern=r"^\S+$",
            description="Image of the workers. Default: the operator's, pinned when the endpoint is made.",
        ),
    ] = None
    resources: Annotated[Resources, Field(description="Resources of each worker.")] = Resources()
    env: Annotated[
        tuple[EnvVar, ...],
        Field(
            max_length=128,
            description="Environment of the workers. Names that the operator sets itself are refused.",
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    env_from: Annotated[
        tuple[EnvFrom, ...],
        Field(max_length=32, description="ConfigMaps and Secrets whose keys become environment."),
    ] = ()
    image_pull_secrets: Annotated[
        tuple[LocalObjectReference, ...],
        Field(
            max_length=16,
            description="Secrets for the image registry.",
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
            description="An existing ServiceAccount for the workers; it is bound to the workers' role. "
            "Default: one is made for the endpoint.",
        ),
    ] = None
    shared_memory_size: Annotated[
        Quantity, Field(description="Size of /dev/shm, in memory. Default: 8Gi.")
    ] = "8Gi"
    startup_timeout_seconds: Annotated[
        int,
        Field(
            ge=10,
            le=86_400,
            description="Budget of a worker from its start until it serves. Default: 1800.",
        ),
    ] = 1800
    pod_template: Annotated[
        JsonObject | None,
        Field(
            description="A partial PodTemplateSpec, merged last over what the operator renders; "
            "the container is called main. As in any pod, $(NAME) in its env is replaced by a variable."
        ),
    ] = None


class PersistentVolumeClaim(Contract):
    """An existing claim in the endpoint's namespace."""

    claim_name: Annotated[Name, Field(description="Name of the claim.")]


class AccessMode(StrEnum):
    READ_WRITE_ONCE = "ReadWriteOnce"
    READ_WRITE_ONCE_POD = "ReadWriteOncePod"
    READ_WRITE_MANY = "ReadWriteMany"


def _fixed(field: str) -> dict[str, str]:
    """On the field: the API server's cost estimate knows no bound of an optional one."""
    return {
        "rule": "self == oldSelf",
        "message": f"cache.volumeClaimTemplate.{field}: a claim keeps it; make another claim, "
        "and name it in cache.persistentVolumeClaim",
    }


class VolumeClaimTemplate(Contract):
    """A claim that is made for the endpoint, and goes with it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "quantity(string(self.size)).isGreaterThan(quantity('0'))",
                "message": "cache.volumeClaimTemplate.size: must be greater than 0",
            },
            {
                "rule": "!('ReadWriteOncePod' in self.accessModes) || size(self.accessModes) == 1",
                "message": "cache.volumeClaimTemplate.accessModes: ReadWriteOncePod goes with no other mode; "
                "remove it, or the others",
            },
        )
    )
    size: Annotated[
        Quantity,
        # No rule against less: growth that the API server refuses must be taken back.
        Field(description="Size of the volume. It may grow, where its class allows it."),
    ]
    storage_class_name: Annotated[
        str | None,
        Field(
            max_length=253,
            pattern=f"^$|{DNS_SUBDOMAIN}",
            description="Storage class. Default: the cluster's default class.",
            json_schema_extra=rules(_fixed("storageClassName")),
        ),
    ] = None
    access_modes: Annotated[
        tuple[AccessMode, ...],
        Field(
            min_length=1,
            max_length=3,
            description="Access modes. Default: ReadWriteOnce, which takes one replica; more need "
            "ReadWriteMany.",
            json_schema_extra={"x-kubernetes-list-type": "set", **rules(_fixed("accessModes"))},
        ),
    ] = (AccessMode.READ_WRITE_ONCE,)


class EmptyDir(Contract):
    """A directory that lives as long as the pod."""

    size_limit: Annotated[Quantity | None, Field(description="Most that it may hold.")] = None


class Cache(Contract):
    """Where downloaded models are kept. Default: an emptyDir."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            {
                "rule": "!(has(self.persistentVolumeClaim) && has(self.emptyDir))",
                "message": "cache: set one of persistentVolumeClaim and emptyDir, not both",
            },
            {
                "rule": "!has(self.volumeClaimTemplate) || "
                "!(has(self.persistentVolumeClaim) || has(self.emptyDir))",
                "message": "cache: volumeClaimTemplate is set beside persistentVolumeClaim or emptyDir; "
                "set one of them",
            },
        )
    )
    persistent_volume_claim: Annotated[
        PersistentVolumeClaim | None, Field(description="An existing claim, shared by the replicas.")
    ] = None
    volume_claim_template: Annotated[
        VolumeClaimTemplate | None,
        Field(description="A claim that is made for the endpoint, shared by the replicas; it goes with it."),
    ] = None
    empty_dir: Annotated[EmptyDir | None, Field(description="A directory of the pod's own.")] = None
