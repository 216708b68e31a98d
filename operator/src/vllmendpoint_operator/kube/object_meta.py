"""Decodes identity, labels and conditions of a raw object, and drops the fields that the cache does not need.

All other fields stay undecoded JSON. Half of what an API server sends of an object is ``managedFields``,
which the operator never reads.
"""

import sys
from typing import Final

from msgspec import UNSET, Raw, Struct, UnsetType, json

from vllmendpoint_api import names

from .lists import RawObject

__all__ = ["Key", "ObjectMeta", "keep_pod_template", "keep_version", "parse_meta", "strip_managed_fields"]

Key = tuple[str, str]
"""(namespace, name)"""


class _Metadata(Struct, rename="camel"):
    namespace: str
    name: str
    uid: str
    resource_version: str
    labels: dict[str, str] | None = None


class _Condition(Struct):
    type: str = ""
    status: str = ""


class _ConditionWithMessage(_Condition):
    message: str = ""


class _Status(Struct):
    conditions: list[_Condition] | None = None


class ObjectMeta(Struct):
    """Identity, labels and conditions of an object."""

    metadata: _Metadata
    status: _Status | None = None

    @property
    def key(self) -> Key:
        """Namespace and name, interned: they outlive the object in many indexes."""
        return sys.intern(self.metadata.namespace), sys.intern(self.metadata.name)

    @property
    def uid(self) -> str:
        return self.metadata.uid

    @property
    def resource_version(self) -> str:
        return self.metadata.resource_version

    @property
    def owner(self) -> Key | None:
        """The endpoint that the instance label names; None without that label."""
        instance = self._label(names.LABEL_INSTANCE)
        return (sys.intern(self.metadata.namespace), sys.intern(instance)) if instance else None

    @property
    def component(self) -> str:
        return self._label(names.LABEL_COMPONENT)

    @property
    def version(self) -> int:
        """The resourceVersion as a number: the versions of one object are ordered."""
        return int(self.metadata.resource_version)

    @property
    def ready(self) -> bool:
        conditions = (self.status.conditions if self.status is not None else None) or ()
        return any(entry.type == "Ready" and entry.status == "True" for entry in conditions)

    def is_newer(self, other: "ObjectMeta") -> bool:
        """Whether this is a later version of ``other``, or another object (another UID)."""
        return self.uid != other.uid or self.version > other.version

    def _label(self, name: str) -> str:
        return (self.metadata.labels or {}).get(name, "")


parse_meta: Final = json.Decoder(ObjectMeta).decode
"""Decodes the output of one of the transforms below."""


# Transforms (client-go: TransformFunc). Each encodes the part of an object that the cache keeps.


def strip_managed_fields(obj: RawObject) -> bytes:
    """Keep everything except ``metadata.managedFields``."""
    return json.encode({**obj, "metadata": _metadata(obj)})


def _metadata(obj: RawObject) -> RawObject:
    metadata: RawObject = json.decode(obj["metadata"], type=RawObject)
    metadata.pop("managedFields", None)
    return metadata


class _PodSpec(Struct, rename="camel"):
    volumes: Raw | UnsetType = UNSET
    service_account_name: Raw | UnsetType = UNSET


class _Template(Struct):
    spec: _PodSpec


class _ReplicaSetSpec(Struct):
    template: _Template
    replicas: int = 0


class _ReplicaSetStatus(Struct):
    conditions: list[_ConditionWithMessage] | None = None


def keep_pod_template(obj: RawObject) -> bytes:
    """Keep a ReplicaSet's metadata, replicas, conditions, and its pods' volumes and ServiceAccount."""
    return json.encode(
        {
            "metadata": _metadata(obj),
            "spec": json.decode(obj["spec"], type=_ReplicaSetSpec),
            "status": json.decode(obj.get("status", b"{}"), type=_ReplicaSetStatus),
        }
    )


class _Version(Struct, rename="camel"):
    namespace: str
    name: str
    uid: str
    resource_version: str


def keep_version(obj: RawObject) -> bytes:
    """Keep namespace, name, UID and resourceVersion."""
    return json.encode({"metadata": json.decode(obj["metadata"], type=_Version)})
