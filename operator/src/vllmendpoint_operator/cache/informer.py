"""Keeps the current objects of one kind in memory by a list and a watch (client-go: Informer and Indexer).

kopf watches VLLMEndpoints only. It does not report when its first list is complete, and it takes several
times the CPU per object. The informer of the package ``kubernetes`` is a thread that keeps decoded objects.
This module only reads from the API server.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from msgspec import json

from vllmendpoint_api import names
from vllmendpoint_operator.errors import Gone, Inaccessible, KubeError, NotFound
from vllmendpoint_operator.kube.client import Kube, Object
from vllmendpoint_operator.kube.kinds import Kind
from vllmendpoint_operator.kube.lists import RawObject
from vllmendpoint_operator.kube.object_meta import Key, ObjectMeta, parse_meta, strip_managed_fields

from .compression import ObjectCompressor

__all__ = ["Informer", "OwnerIndex"]

log = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS: Final = 0.5
_MAX_RETRY_SECONDS: Final = 30.0
_MAX_REJECTIONS: Final = 3
"""Consecutive rejections before the namespace counts as inaccessible: an API server that is starting refuses
requests that it allows a moment later."""
_MAX_TOMBSTONES: Final = 256
"""More than the number of deletions that arrive while a write is in flight."""
_MANAGED: Final = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"

OnChange = Callable[[ObjectMeta, ObjectMeta | None], None]
"""Called with (new, old) when an object is added (old is None) or changed, and with (last, last) when it is
deleted."""


class OwnerIndex:
    """Maps endpoints to the objects that carry their label, for all informers together."""

    def __init__(self) -> None:
        self._entries: dict[Key, tuple[object, ...]] = {}
        """Endpoint -> informer, name, informer, name and so on: one flat tuple takes the least memory."""

    def names(self, owner: Key, informer: "Informer") -> Iterator[str]:
        entries = iter(self._entries.get(owner, ()))
        return (str(name) for of, name in zip(entries, entries, strict=True) if of is informer)

    def add(self, owner: Key, informer: "Informer", name: str) -> None:
        self._entries[owner] = (*self._entries.get(owner, ()), informer, name)

    def remove(self, owner: Key, informer: "Informer", name: str) -> None:
        entries = iter(self._entries.pop(owner))
        rest = [pair for pair in zip(entries, entries, strict=True) if pair != (informer, name)]
        if rest:
            self._entries[owner] = tuple(entry for pair in rest for entry in pair)


class Informer:
    """The last known state of one kind in one namespace (None: in the cluster).

    Objects are kept compressed; each read decodes a new object.

    Args:
        on_change: called for every change except this operator's own writes.
        owners: index to keep up to date.
        list_slots: held during a list request, to limit how many run at a time.
        selector: label selector; by default, the objects that the operator manages.
        metadata_only: request ``PartialObjectMetadata``.
        transform: encodes the part of an object to keep.
    """

    def __init__(
        self,
        kube: Kube,
        kind: Kind,
        namespace: str | None,
        on_change: OnChange,
        *,
        owners: OwnerIndex,
        list_slots: asyncio.Semaphore,
        selector: str = _MANAGED,
        metadata_only: bool = False,
        transform: Callable[[RawObject], bytes] = strip_managed_fields,
    ) -> None:
        self.kind = kind
        self.has_synced = asyncio.Event()
        """Set when the first list is complete."""
        self._kube = kube
        self._namespace = namespace
        self._on_change = on_change
        self._owners = owners
        self._list_slots = list_slots
        self._selector = selector
        self._metadata_only = metadata_only
        self._transform = transform
        self._compressor = ObjectCompressor()
        self._compressed: dict[str, dict[str, bytes]] = {}
        """Namespace -> name -> object."""
        self._tombstones: deque[str] = deque(maxlen=_MAX_TOMBSTONES)
        """UIDs of deleted objects."""

    def __contains__(self, key: Key) -> bool:
        namespace, name = key
        return name in self._compressed.get(namespace, ())

    def get(self, key: Key) -> Object | None:
        text = self._text(key)
        return None if text is None else json.decode(text)

    def by_owner(self, owner: Key) -> Iterator[Object]:
        """Iterate over the objects that carry the label of the endpoint ``owner`` (namespace, name)."""
        namespace, _ = owner
        for name in self._owners.names(owner, self):
            yield json.decode(self._compressor.decompress(self._compressed[namespace][name]))

    def apply_local_write(self, obj: Object) -> None:
        """Store the response to this operator's own write before the watch delivers it.

        Ignore it if the watch has already delivered a later version, or the deletion of the object.
        """
        if obj["metadata"]["uid"] not in self._tombstones:
            self._upsert(json.decode(json.encode(obj), type=RawObject), notify=False)

    def apply_local_delete(self, key: Key) -> None:
        """Remove an object that this operator deleted before the watch delivers the deletion."""
        self._delete(key, notify=False)

    async def run(self) -> None:
        """List and watch until cancelled. Raises Inaccessible if the API server refuses both."""
        version: str | None = None
        delay = _FIRST_RETRY_SECONDS
        rejections = 0
        while True:
            failure: KubeError | None = None
            try:
                if version is None:
                    version = await self._list()
                    rejections = 0
                async for reached in self._watch(version):
                    version, delay = reached, _FIRST_RETRY_SECONDS
                    rejections = 0
            except Gone:
                version = None
            except KubeError as error:
                failure = error
            rejections = rejections + 1 if failure is not None and _is_rejection(failure) else 0
            if failure is not None and rejections >= _MAX_REJECTIONS:
                raise Inaccessible(self.kind.plural, failure) from failure
            # Also after a regular end: a server may end every stream right after its start.
            wait = random.uniform(delay / 2, delay)
            if failure is not None:
                wait = max(wait, failure.retry_after or 0.0)
                # The watched namespace logs lasting rejections once.
                level = logging.DEBUG if rejections else logging.WARNING
                log.log(
                    level,
                    "the list or watch failed and is retried",
                    extra={
                        "resource": self.kind.plural,
                        "watched_namespace": self._namespace or "*",
                        "error": str(failure),
                        "retry_seconds": round(wait, 1),
                    },
                )
            await asyncio.sleep(wait)
            delay = min(delay * 2, _MAX_RETRY_SECONDS)

    def clear(self) -> None:
        """Remove all objects without notification: they may no longer exist."""
        for namespaced in self._compressed.values():
            for name, compressed in namespaced.items():
                owner = parse_meta(self._compressor.decompress(compressed)).owner
                if owner is not None:
                    self._owners.remove(owner, self, name)
        self._compressed.clear()
        self.has_synced.clear()

    async def _list(self) -> str:
        """Store one list; return its resourceVersion."""
        async with (
            self._list_slots,
            self._kube.list_stream(
                self.kind, self._namespace, selector=self._selector, metadata_only=self._metadata_only
            ) as (version, items),
        ):
            listed = {self._upsert(item).key async for item in items}
        self._delete_all_except(listed)
        self.has_synced.set()
        return version

    async def _watch(self, version: str) -> AsyncIterator[str]:
        """Store the events of one watch; yield the resourceVersion after each, to continue from."""
        async for event, obj in self._kube.watch(
            self.kind,
            self._namespace,
            version,
            selector=self._selector,
            metadata_only=self._metadata_only,
        ):
            if event == "DELETED":
                yield self._on_deleted(obj).resource_version
            elif event in ("ADDED", "MODIFIED"):
                yield self._upsert(obj).resource_version
            else:
                yield json.decode(obj["metadata"])["resourceVersion"]

    def _delete_all_except(self, listed: set[Key]) -> None:
        """Delete objects whose deletion no watch delivered."""
        known = [(namespace, name) for namespace, found in self._compressed.items() for name in found]
        for key in known:
            if key not in listed:
                self._delete(key)

    def _upsert(self, obj: RawObject, *, notify: bool = True) -> ObjectMeta:
        text = self._transform(obj)
        new = parse_meta(text)
        namespace, name = key = new.key
        old = self._meta(key)
        if old is not None and not new.is_newer(old):
            return new
        owner, old_owner = new.owner, old.owner if old is not None else None
        if owner != old_owner:
            if old_owner is not None:
                self._owners.remove(old_owner, self, name)
            if owner is not None:
                self._owners.add(owner, self, name)
        self._compressed.setdefault(namespace, {})[name] = self._compressor.compress(text, new.component)
        if notify:
            self._on_change(new, old)
        return new

    def _on_deleted(self, obj: RawObject) -> ObjectMeta:
        """Delete the object, unless this operator has recreated it and stored the response already."""
        last = parse_meta(self._transform(obj))
        known = self._meta(last.key)
        if known is not None and known.version <= last.version:
            self._delete(last.key)
        self._tombstones.append(last.uid)
        return last

    def _delete(self, key: Key, *, notify: bool = True) -> None:
        old = self._meta(key)
        if old is None:
            return
        namespace, name = key
        del self._compressed[namespace][name]
        if not self._compressed[namespace]:
            del self._compressed[namespace]
        if old.owner is not None:
            self._owners.remove(old.owner, self, name)
        if notify:
            self._on_change(old, old)

    def _text(self, key: Key) -> bytes | None:
        namespace, name = key
        compressed = self._compressed.get(namespace, {}).get(name)
        return None if compressed is None else self._compressor.decompress(compressed)

    def _meta(self, key: Key) -> ObjectMeta | None:
        text = self._text(key)
        return None if text is None else parse_meta(text)


def _is_rejection(error: KubeError) -> bool:
    """403, or 404: the namespace does not exist, because every cluster has these kinds."""
    return error.status == 403 or isinstance(error, NotFound)
