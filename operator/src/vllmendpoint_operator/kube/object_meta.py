"""What is read of an object as it comes, and what is kept of it; all else stays JSON text, unread.

Half of what an API server sends of an object is ``managedFields``; nobody asks for it here.
"""

import sys
from typing import Final

from msgspec import UNSET, Raw, Struct, UnsetType, json

from vllmendpoint_api import names

from .lists import Parts

__all__ = ["Key", "View", "keep_all", "keep_mounts", "keep_version", "view"]

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


class _Explained(_Condition):
    message: str = ""


class _Status(Struct):
    conditions: list[_Condition] | None = None


class View(Struct):
    """Identity, labels and conditions."""

    metadata: _Metadata
    status: _Status | None = None

    @property
    def key(self) -> Key:
        """The names outlive the object in many indexes: of those that are the same, one is kept."""
        return sys.intern(self.metadata.namespace), sys.intern(self.metadata.name)

    @property
    def owner(self) -> Key | None:
        """The endpoint that it is labelled as belonging to."""
        instance = self._label(names.LABEL_INSTANCE)
        return (sys.intern(self.metadata.namespace), sys.intern(instance)) if instance else None

    @property
    def component(self) -> str:
        return self._label(names.LABEL_COMPONENT)

    @property
    def version(self) -> int:
        """Those of one object are ordered."""
        return int(self.metadata.resource_version)

    @property
    def ready(self) -> bool:
        conditions = (self.status.conditions if self.status is not None else None) or ()
        return any(entry.type == "Ready" and entry.status == "True" for entry in conditions)

    def is_newer(self, other: "View") -> bool:
        """Another UID is another object."""
        return self.metadata.uid != other.metadata.uid or self.version > other.version

    def _label(self, name: str) -> str:
        return (self.metadata.labels or {}).get(name, "")


view: Final = json.Decoder(View).decode
"""Of what one of the functions below made."""


def keep_all(parts: Parts) -> bytes:
    """But ``managedFields``."""
    return json.encode({**parts, "metadata": _metadata(parts)})


def _metadata(parts: Parts) -> Parts:
    metadata: Parts = json.decode(parts["metadata"], type=Parts)
    metadata.pop("managedFields", None)
    return metadata


class _Mounts(Struct, rename="camel"):
    volumes: Raw | UnsetType = UNSET
    service_account_name: Raw | UnsetType = UNSET


class _Template(Struct):
    spec: _Mounts


class _ReplicaSet(Struct):
    template: _Template
    replicas: int = 0


class _ReplicaSetStatus(Struct):
    conditions: list[_Explained] | None = None


def keep_mounts(parts: Parts) -> bytes:
    """Of a ReplicaSet: how many pods it makes, what they mount, as whom they run, and why it makes none."""
    return json.encode(
        {
            "metadata": _metadata(parts),
            "spec": json.decode(parts["spec"], type=_ReplicaSet),
            "status": json.decode(parts.get("status", b"{}"), type=_ReplicaSetStatus),
        }
    )


class _Version(Struct, rename="camel"):
    namespace: str
    name: str
    uid: str
    resource_version: str


def keep_version(parts: Parts) -> bytes:
    """Which object it is, and which version of it."""
    return json.encode({"metadata": json.decode(parts["metadata"], type=_Version)})
