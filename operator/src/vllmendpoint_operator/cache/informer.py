"""What the cluster holds of one kind: a list, then a watch, with a signal when all is there.

kopf watches the VLLMEndpoint; it has no such signal and takes several times the CPU an object, so the
children come this way. Nothing here writes.
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
from vllmendpoint_operator.kube.lists import Parts
from vllmendpoint_operator.kube.object_meta import Key, View, keep_all, view

from .compression import Packer

__all__ = ["Owned", "Store"]

log = logging.getLogger(__name__)

_RELIST_FIRST: Final = 0.5
_RELIST_LAST: Final = 30.0
_REFUSALS: Final = 3
"""In a row, until it is believed: an API server that starts refuses what it will allow in a moment."""
_WENT: Final = 256
"""Deletions that are remembered: more than come in the time that an answer is on its way."""
_SELECTOR: Final = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"

Changed = Callable[[View, View | None], None]
"""Told of an object that came or changed, with its earlier state; of one that went, twice the same."""


class Owned:
    """Which objects carry an endpoint's label, of all stores together: one entry an endpoint."""

    def __init__(self) -> None:
        self._found: dict[Key, tuple[object, ...]] = {}
        """Endpoint -> store, name, store, name and so on."""

    def names(self, owner: Key, store: "Store") -> Iterator[str]:
        found = iter(self._found.get(owner, ()))
        return (str(name) for of, name in zip(found, found, strict=True) if of is store)

    def add(self, owner: Key, store: "Store", name: str) -> None:
        self._found[owner] = (*self._found.get(owner, ()), store, name)

    def remove(self, owner: Key, store: "Store", name: str) -> None:
        found = iter(self._found.pop(owner))
        rest = [pair for pair in zip(found, found, strict=True) if pair != (store, name)]
        if rest:
            self._found[owner] = tuple(one for pair in rest for one in pair)


class Store:
    """The newest known state of one kind in one scope, as few bytes: what is asked for is made anew.

    ``keep``: what is kept of an object. ``listing``: held while a list is taken in.
    """

    def __init__(
        self,
        kube: Kube,
        kind: Kind,
        namespace: str | None,
        changed: Changed,
        *,
        owned: Owned,
        listing: asyncio.Semaphore,
        selector: str = _SELECTOR,
        metadata_only: bool = False,
        keep: Callable[[Parts], bytes] = keep_all,
    ) -> None:
        self.kind = kind
        self.synced = asyncio.Event()
        self._kube = kube
        self._namespace = namespace
        self._changed = changed
        self._owned = owned
        self._listing = listing
        self._selector = selector
        self._metadata_only = metadata_only
        self._keep = keep
        self._packer = Packer()
        self._packed: dict[str, dict[str, bytes]] = {}
        """Namespace -> name -> object."""
        self._went: deque[str] = deque(maxlen=_WENT)
        """UIDs."""

    def __contains__(self, key: Key) -> bool:
        namespace, name = key
        return name in self._packed.get(namespace, ())

    def get(self, key: Key) -> Object | None:
        text = self._text(key)
        return None if text is None else json.decode(text)

    def of(self, owner: Key) -> Iterator[Object]:
        """Objects labelled as belonging to the endpoint ``owner`` (namespace, name)."""
        namespace, _ = owner
        for name in self._owned.names(owner, self):
            yield json.decode(self._packer.unpack(self._packed[namespace][name]))

    def absorb(self, obj: Object) -> None:
        """Take in what a write of ours returned, ahead of the watch; or after it, where the object has gone
        again meanwhile.
        """
        if obj["metadata"]["uid"] not in self._went:
            self._put(json.decode(json.encode(obj), type=Parts), notify=False)

    def drop(self, key: Key) -> None:
        self._delete(key, notify=False)

    async def run(self) -> None:
        """List and watch for ever; ends by cancellation. Raises Inaccessible where the API server lets us do
        neither.
        """
        version: str | None = None
        delay = _RELIST_FIRST
        refusals = 0
        while True:
            failure: KubeError | None = None
            try:
                if version is None:
                    version = await self._list()
                    refusals = 0
                async for reached in self._watch(version):
                    version, delay = reached, _RELIST_FIRST
                    refusals = 0
            except Gone:
                version = None
            except KubeError as error:
                failure = error
            refusals = refusals + 1 if failure is not None and _is_refusal(failure) else 0
            if failure is not None and refusals >= _REFUSALS:
                raise Inaccessible(self.kind.plural, failure) from failure
            # After an orderly end too: a server may end every stream as soon as it is begun.
            wait = random.uniform(delay / 2, delay)
            if failure is not None:
                wait = max(wait, failure.retry_after or 0.0)
                # A refusal that lasts is reported once, of the whole namespace.
                level = logging.DEBUG if refusals else logging.WARNING
                log.log(level, "%s: %s; trying again in %.1f s", self.kind.plural, failure, wait)
            await asyncio.sleep(wait)
            delay = min(delay * 2, _RELIST_LAST)

    def clear(self) -> None:
        """Forget all, and tell nobody: it may no longer be so."""
        for found in self._packed.values():
            for name, packed in found.items():
                owner = view(self._packer.unpack(packed)).owner
                if owner is not None:
                    self._owned.remove(owner, self, name)
        self._packed.clear()
        self.synced.clear()

    async def _list(self) -> str:
        async with (
            self._listing,
            self._kube.listing(
                self.kind, self._namespace, selector=self._selector, metadata_only=self._metadata_only
            ) as (version, items),
        ):
            listed = {self._put(item).key async for item in items}
        self._is_all(listed)
        return version

    async def _watch(self, version: str) -> AsyncIterator[str]:
        """Take in one stream; yields the resourceVersion reached, to go on from."""
        async for event, obj in self._kube.watch(
            self.kind,
            self._namespace,
            version,
            selector=self._selector,
            metadata_only=self._metadata_only,
        ):
            if event == "DELETED":
                yield self._gone(obj).metadata.resource_version
            elif event in ("ADDED", "MODIFIED"):
                yield self._put(obj).metadata.resource_version
            else:
                yield json.decode(obj["metadata"])["resourceVersion"]

    def _is_all(self, listed: set[Key]) -> None:
        """Whatever else is known has gone unnoticed."""
        known = [(namespace, name) for namespace, found in self._packed.items() for name in found]
        for key in known:
            if key not in listed:
                self._delete(key)
        self.synced.set()

    def _put(self, obj: Parts, *, notify: bool = True) -> View:
        text = self._keep(obj)
        new = view(text)
        namespace, name = key = new.key
        old = self._view(key)
        if old is not None and not new.is_newer(old):
            return new
        owner, before = new.owner, old.owner if old is not None else None
        if owner != before:
            if before is not None:
                self._owned.remove(before, self, name)
            if owner is not None:
                self._owned.add(owner, self, name)
        self._packed.setdefault(namespace, {})[name] = self._packer.pack(text, new.component)
        if notify:
            self._changed(new, old)
        return new

    def _gone(self, obj: Parts) -> View:
        """What a write of ours has made anew since, and was taken in, stays."""
        last = view(self._keep(obj))
        known = self._view(last.key)
        if known is not None and known.version <= last.version:
            self._delete(last.key)
        self._went.append(last.metadata.uid)
        return last

    def _delete(self, key: Key, *, notify: bool = True) -> None:
        old = self._view(key)
        if old is None:
            return
        namespace, name = key
        del self._packed[namespace][name]
        if not self._packed[namespace]:
            del self._packed[namespace]
        if old.owner is not None:
            self._owned.remove(old.owner, self, name)
        if notify:
            self._changed(old, old)

    def _text(self, key: Key) -> bytes | None:
        namespace, name = key
        packed = self._packed.get(namespace, {}).get(name)
        return None if packed is None else self._packer.unpack(packed)

    def _view(self, key: Key) -> View | None:
        text = self._text(key)
        return None if text is None else view(text)


def _is_refusal(error: KubeError) -> bool:
    """The namespace is gone, or the right to look into it: for a kind that every cluster has also by 404."""
    return error.status == 403 or isinstance(error, NotFound)
