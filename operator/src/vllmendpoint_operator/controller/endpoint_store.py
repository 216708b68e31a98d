"""Keeps the newest known version of each VLLMEndpoint in memory."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from msgspec import json
from pydantic import ValidationError

from vllmendpoint_api import VLLMEndpointSpec
from vllmendpoint_operator.cache.caches import Key
from vllmendpoint_operator.cache.compression import ObjectCompressor
from vllmendpoint_operator.kube.kinds import CLAIM, CONFIG_MAP
from vllmendpoint_operator.observe.references import claim_references, config_map_references

from .assignment import managing_operator

__all__ = ["EndpointStore", "endpoint_key"]

Object = dict[str, Any]
Reference = tuple[str, str, str]
"""(kind, namespace, name) of an object that a spec refers to."""

_NO_REFERENCES: frozenset[Reference] = frozenset()


@dataclass(frozen=True, slots=True)
class _Entry:
    resource_version: int
    uid: str
    is_terminating: bool
    compressed: bytes
    references: frozenset[Reference]
    managing_operator: str
    """Empty: not claimed yet."""


class EndpointStore:
    """Updated by the events of the watch and by the responses to this operator's own status writes."""

    def __init__(self) -> None:
        self._compressor = ObjectCompressor()
        self._entries: dict[Key, _Entry] = {}
        self._by_reference: dict[Reference, set[Key]] = {}

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def get(self, key: Key) -> Object | None:
        """Metadata, spec and status. Each call returns a new object."""
        entry = self._entries.get(key)
        return None if entry is None else json.decode(self._compressor.decompress(entry.compressed))

    def uid(self, key: Key) -> str | None:
        entry = self._entries.get(key)
        return None if entry is None else entry.uid

    def resource_version(self, key: Key) -> int:
        """0 if the endpoint is unknown."""
        entry = self._entries.get(key)
        return 0 if entry is None else entry.resource_version

    def managing_operator(self, key: Key) -> str:
        """Name of the operator that manages the endpoint; empty if no operator has claimed it."""
        entry = self._entries.get(key)
        return "" if entry is None else entry.managing_operator

    def is_active(self, key: Key, uid: str) -> bool:
        """Whether the endpoint with this UID exists and is not being deleted, as far as is known."""
        entry = self._entries.get(key)
        return entry is not None and entry.uid == uid and not entry.is_terminating

    def referencing(self, kind: str, namespace: str, name: str) -> list[Key]:
        """Endpoints whose spec refers to this ConfigMap or PersistentVolumeClaim."""
        return list(self._by_reference.get((kind, namespace, name), ()))

    def upsert(self, obj: Object) -> bool:
        """Store an endpoint. Return False if the stored version is as new."""
        metadata = obj["metadata"]
        key = endpoint_key(obj)
        version = int(metadata["resourceVersion"])
        old = self._entries.get(key)
        # Also if the UIDs differ: kopf may deliver the last event of an endpoint after the first one of its
        # successor with the same name.
        if old is not None and old.resource_version >= version:
            return False
        kept = {
            "metadata": {k: v for k, v in metadata.items() if k != "managedFields"},
            "spec": obj.get("spec") or {},
            "status": obj.get("status") or {},
        }
        references = _references(key[0], kept["spec"])
        self._update_references(key, old.references if old is not None else _NO_REFERENCES, references)
        self._entries[key] = _Entry(
            resource_version=version,
            uid=metadata["uid"],
            is_terminating="deletionTimestamp" in metadata,
            compressed=self._compressor.compress(json.encode(kept), ""),
            references=references,
            managing_operator=sys.intern(managing_operator(metadata, kept["status"])),
        )
        return True

    def delete(self, key: Key, uid: str) -> bool:
        """Remove the endpoint. Return False if it is unknown, or if it has another UID."""
        old = self._entries.get(key)
        if old is None or old.uid != uid:
            return False
        del self._entries[key]
        self._update_references(key, old.references, _NO_REFERENCES)
        return True

    def _update_references(self, key: Key, old: frozenset[Reference], new: frozenset[Reference]) -> None:
        for reference in old - new:
            keys = self._by_reference[reference]
            keys.discard(key)
            if not keys:
                del self._by_reference[reference]
        for reference in new - old:
            self._by_reference.setdefault(reference, set()).add(key)


def endpoint_key(obj: Object) -> Key:
    """(namespace, name). The strings are interned, because many indexes keep them."""
    metadata = obj["metadata"]
    return sys.intern(metadata["namespace"]), sys.intern(metadata["name"])


def _references(namespace: str, spec: Object) -> frozenset[Reference]:
    try:
        parsed = VLLMEndpointSpec.model_validate(spec)
    except ValidationError:
        return _NO_REFERENCES
    found = {
        (kind.kind, namespace, name)
        for kind, names in ((CONFIG_MAP, config_map_references(parsed)), (CLAIM, claim_references(parsed)))
        for name in names
    }
    return frozenset(found) if found else _NO_REFERENCES
