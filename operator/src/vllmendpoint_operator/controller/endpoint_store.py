"""The VLLMEndpoints as last seen."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from msgspec import json
from pydantic import ValidationError

from vllmendpoint_api import VLLMEndpointSpec
from vllmendpoint_operator.cache.caches import Key
from vllmendpoint_operator.cache.compression import ObjectCompressor
from vllmendpoint_operator.observe.references import claim_references, config_map_references

from .assignment import managing_operator

__all__ = ["EndpointStore"]

Object = dict[str, Any]
Reference = tuple[str, str, str]
"""(kind, namespace, name) of what a spec refers to."""


@dataclass(frozen=True, slots=True)
class _Entry:
    version: int
    uid: str
    deleting: bool
    compressed: bytes
    references: frozenset[Reference]
    operator: str
    """That manages it; empty: the first to claim it."""


_NO_REFERENCES: frozenset[Reference] = frozenset()


class EndpointStore:
    """Fed by kopf's watch and by the answers to our own writes."""

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
        """Metadata, spec and status; a new object each time."""
        entry = self._entries.get(key)
        return None if entry is None else json.decode(self._compressor.decompress(entry.compressed))

    def uid(self, key: Key) -> str | None:
        entry = self._entries.get(key)
        return None if entry is None else entry.uid

    def resource_version(self, key: Key) -> int:
        """0 where it is not entry."""
        entry = self._entries.get(key)
        return 0 if entry is None else entry.version

    def upsert(self, obj: Object) -> bool:
        """False where what is entry is as new."""
        metadata = obj["metadata"]
        key = (sys.intern(metadata["namespace"]), sys.intern(metadata["name"]))
        version = int(metadata["resourceVersion"])
        old = self._entries.get(key)
        # Across UIDs too: kopf may bring the last news of the one before after the one made anew.
        if old is not None and old.version >= version:
            return False
        kept = {
            "metadata": {k: v for k, v in metadata.items() if k != "managedFields"},
            "spec": obj.get("spec") or {},
            "status": obj.get("status") or {},
        }
        references = _references(key[0], kept["spec"])
        self._update_references(key, old.references if old is not None else _NO_REFERENCES, references)
        self._entries[key] = _Entry(
            version,
            metadata["uid"],
            "deletionTimestamp" in metadata,
            self._compressor.compress(json.encode(kept), ""),
            references,
            sys.intern(managing_operator(metadata, kept["status"])),
        )
        return True

    def delete(self, key: Key, uid: str) -> bool:
        """Forget that very object; one made anew under the name stays."""
        old = self._entries.get(key)
        if old is None or old.uid != uid:
            return False
        del self._entries[key]
        self._update_references(key, old.references, _NO_REFERENCES)
        return True

    def is_active(self, key: Key, uid: str) -> bool:
        """That very object stands and is not being deleted, as far as is entry."""
        entry = self._entries.get(key)
        return entry is not None and entry.uid == uid and not entry.deleting

    def managing_operator(self, key: Key) -> str:
        """The operator that manages it; empty: none yet."""
        entry = self._entries.get(key)
        return "" if entry is None else entry.operator

    def referencing(self, kind: str, namespace: str, name: str) -> list[Key]:
        """Endpoints whose spec names that ConfigMap or PersistentVolumeClaim."""
        return list(self._by_reference.get((kind, namespace, name), ()))

    def _update_references(self, key: Key, before: frozenset[Reference], now: frozenset[Reference]) -> None:
        for reference in before - now:
            keys = self._by_reference[reference]
            keys.discard(key)
            if not keys:
                del self._by_reference[reference]
        for reference in now - before:
            self._by_reference.setdefault(reference, set()).add(key)


def _references(namespace: str, spec: Object) -> frozenset[Reference]:
    try:
        read = VLLMEndpointSpec.model_validate(spec)
    except ValidationError:
        return _NO_REFERENCES
    named = {
        "ConfigMap": config_map_references(read),
        "PersistentVolumeClaim": claim_references(read),
    }
    found = {(kind, namespace, name) for kind, names in named.items() for name in names}
    return frozenset(found) if found else _NO_REFERENCES
