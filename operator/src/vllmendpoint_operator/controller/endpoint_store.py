"""The VLLMEndpoints as last seen."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from msgspec import json
from pydantic import ValidationError

from vllmendpoint_api import VLLMEndpointSpec
from vllmendpoint_operator.cache.caches import Key
from vllmendpoint_operator.cache.compression import Packer
from vllmendpoint_operator.observe.references import claim_references, config_map_references

from .assignment import manager

__all__ = ["Endpoints"]

Object = dict[str, Any]
Reference = tuple[str, str, str]
"""(kind, namespace, name) of what a spec refers to."""


@dataclass(frozen=True, slots=True)
class _Known:
    version: int
    uid: str
    deleting: bool
    packed: bytes
    references: frozenset[Reference]
    operator: str
    """That manages it; empty: the first to claim it."""


_NONE: frozenset[Reference] = frozenset()


class Endpoints:
    """Fed by kopf's watch and by the answers to our own writes."""

    def __init__(self) -> None:
        self._packer = Packer()
        self._known: dict[Key, _Known] = {}
        self._referring: dict[Reference, set[Key]] = {}

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._known))

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: Key) -> bool:
        return key in self._known

    def get(self, key: Key) -> Object | None:
        """Metadata, spec and status; a new object each time."""
        known = self._known.get(key)
        return None if known is None else json.decode(self._packer.unpack(known.packed))

    def uid(self, key: Key) -> str | None:
        known = self._known.get(key)
        return None if known is None else known.uid

    def version(self, key: Key) -> int:
        """0 where it is not known."""
        known = self._known.get(key)
        return 0 if known is None else known.version

    def put(self, obj: Object) -> bool:
        """False where what is known is as new."""
        metadata = obj["metadata"]
        key = (sys.intern(metadata["namespace"]), sys.intern(metadata["name"]))
        version = int(metadata["resourceVersion"])
        old = self._known.get(key)
        # Across UIDs too: kopf may bring the last news of the one before after the one made anew.
        if old is not None and old.version >= version:
            return False
        kept = {
            "metadata": {k: v for k, v in metadata.items() if k != "managedFields"},
            "spec": obj.get("spec") or {},
            "status": obj.get("status") or {},
        }
        references = _references(key[0], kept["spec"])
        self._refer(key, old.references if old is not None else _NONE, references)
        self._known[key] = _Known(
            version,
            metadata["uid"],
            "deletionTimestamp" in metadata,
            self._packer.pack(json.encode(kept), ""),
            references,
            sys.intern(manager(metadata, kept["status"])),
        )
        return True

    def drop(self, key: Key, uid: str) -> bool:
        """Forget that very object; one made anew under the name stays."""
        old = self._known.get(key)
        if old is None or old.uid != uid:
            return False
        del self._known[key]
        self._refer(key, old.references, _NONE)
        return True

    def wants(self, key: Key, uid: str) -> bool:
        """That very object stands and is not being deleted, as far as is known."""
        known = self._known.get(key)
        return known is not None and known.uid == uid and not known.deleting

    def operator(self, key: Key) -> str:
        """The operator that manages it; empty: none yet."""
        known = self._known.get(key)
        return "" if known is None else known.operator

    def referring(self, kind: str, namespace: str, name: str) -> list[Key]:
        """Endpoints whose spec names that ConfigMap or PersistentVolumeClaim."""
        return list(self._referring.get((kind, namespace, name), ()))

    def _refer(self, key: Key, before: frozenset[Reference], now: frozenset[Reference]) -> None:
        for reference in before - now:
            keys = self._referring[reference]
            keys.discard(key)
            if not keys:
                del self._referring[reference]
        for reference in now - before:
            self._referring.setdefault(reference, set()).add(key)


def _references(namespace: str, spec: Object) -> frozenset[Reference]:
    try:
        read = VLLMEndpointSpec.model_validate(spec)
    except ValidationError:
        return _NONE
    named = {
        "ConfigMap": config_map_references(read),
        "PersistentVolumeClaim": claim_references(read),
    }
    found = {(kind, namespace, name) for kind, names in named.items() for name in names}
    return frozenset(found) if found else _NONE
