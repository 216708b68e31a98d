"""What the cluster holds, by kind: a list, then a watch, with a signal when all is there.

The list comes by the watch itself, or in answers where the API server cannot do that. kopf watches the
VLLMEndpoint; it has no such signal and takes several times the CPU an object, so the children come this way.
Nothing here writes.
"""

import asyncio
import logging
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Final

from vllmendpoint_api import names

from .errors import Gone, KubeError, NotStreamed
from .kinds import (
    CLAIM,
    CONFIG_MAP,
    MANAGED,
    POD,
    REPLICA_SET,
    Kind,
)
from .kube import Kube, Object
from .packing import Packer

__all__ = ["Cache", "Key", "Store"]

Key = tuple[str, str]
"""(namespace, name)"""

log = logging.getLogger(__name__)

_RELIST_FIRST: Final = 0.5
_RELIST_LAST: Final = 30.0
_LISTS_AT_ONCE: Final = 2
"""What has arrived of each is held in memory; more than these are no sooner taken in."""
_SELECTOR: Final = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"

Trim = Callable[[Object], Object]
Changed = Callable[[Object, Object | None], None]
"""Told of an object that came or changed, with its earlier state; of one that went, twice the same."""


def _trim(obj: Object) -> Object:
    obj.get("metadata", {}).pop("managedFields", None)
    return obj


def _trim_replica_set(obj: Object) -> Object:
    spec = obj.get("spec", {})
    pod = spec.get("template", {}).get("spec", {})
    return {
        "metadata": _trim(obj)["metadata"],
        "spec": {
            "replicas": spec.get("replicas", 0),
            "template": {"spec": {key: pod[key] for key in ("volumes", "serviceAccountName") if key in pod}},
        },
    }


def _trim_reference(obj: Object) -> Object:
    metadata = obj["metadata"]
    return {"metadata": {k: metadata[k] for k in ("namespace", "name", "uid", "resourceVersion")}}


class Store:
    """The newest known state of one kind in one scope, as few bytes: what is asked for is made anew."""

    def __init__(
        self,
        kube: Kube,
        kind: Kind,
        namespace: str | None,
        changed: Changed,
        *,
        listing: asyncio.Semaphore,
        selector: str = _SELECTOR,
        metadata_only: bool = False,
        trim: Trim = _trim,
    ) -> None:
        self.kind = kind
        self.synced = asyncio.Event()
        self._kube = kube
        self._namespace = namespace
        self._changed = changed
        self._listing = listing
        self._selector = selector
        self._metadata_only = metadata_only
        self._trim = trim
        self._packer = Packer()
        self._packed: dict[Key, bytes] = {}
        self._by_owner: dict[Key, tuple[Key, ...]] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._packed

    def get(self, key: Key) -> Object | None:
        packed = self._packed.get(key)
        return None if packed is None else self._packer.unpack(packed)

    def of(self, owner: Key) -> Iterator[Object]:
        """Objects labelled as belonging to the endpoint ``owner`` (namespace, name)."""
        for key in self._by_owner.get(owner, ()):
            yield self._packer.unpack(self._packed[key])

    def absorb(self, obj: Object) -> None:
        """Take in what a write of ours returned, ahead of the watch."""
        self._put(obj, notify=False)

    def drop(self, key: Key) -> None:
        self._delete(key, notify=False)

    async def run(self) -> None:
        """List and watch for ever; ends only by cancellation."""
        version: str | None = None
        streamed = True
        delay = _RELIST_FIRST
        while True:
            failure: KubeError | None = None
            try:
                if version is None and not streamed:
                    version = await self._list()
                async for reached in self._watch(version):
                    version, delay = reached, _RELIST_FIRST
            except NotStreamed:
                streamed = False
                continue
            except Gone:
                version = None
            except KubeError as error:
                failure = error
            # After an orderly end too: a server may end every stream as soon as it is begun.
            wait = random.uniform(delay / 2, delay)
            if failure is not None:
                wait = max(wait, failure.retry_after or 0.0)
                log.warning("%s: %s; trying again in %.1f s", self.kind.plural, failure, wait)
            await asyncio.sleep(wait)
            delay = min(delay * 2, _RELIST_LAST)

    async def _list(self) -> str:
        version, listed = "", set()
        async with self._listing:
            async for items, version in self._kube.pages(  # noqa: B007
                self.kind, self._namespace, selector=self._selector, metadata_only=self._metadata_only
            ):
                for item in items:
                    listed.add(_key(item))
                    self._put(item)
        self._is_all(listed)
        return version

    async def _watch(self, version: str | None) -> AsyncIterator[str]:
        """Take in one stream; yields the resourceVersion reached, to go on from. Without one to begin from
        that is so when all that is there has come.
        """
        listed: set[Key] | None = None
        async with AsyncExitStack() as listing:
            if version is None:
                await listing.enter_async_context(self._listing)
                listed = set()
            async for event, obj in self._kube.watch(
                self.kind,
                self._namespace,
                version,
                selector=self._selector,
                metadata_only=self._metadata_only,
            ):
                if event == "DELETED":
                    self._gone(obj)
                elif event in ("ADDED", "MODIFIED"):
                    self._put(obj)
                    if listed is not None:
                        listed.add(_key(obj))
                elif event == "LISTED" and listed is not None:
                    self._is_all(listed)
                    listed = None
                    await listing.aclose()
                if listed is None:
                    yield obj["metadata"]["resourceVersion"]

    def _is_all(self, listed: set[Key]) -> None:
        """Whatever else is known has gone unnoticed."""
        for key in [key for key in self._packed if key not in listed]:
            self._delete(key)
        self.synced.set()

    def _put(self, obj: Object, *, notify: bool = True) -> None:
        key = _key(obj)
        old = self.get(key)
        if old is not None and not _newer(obj, old):
            return
        new = self._trim(obj)
        owner, before = _owner_key(new), _owner_key(old) if old is not None else None
        if owner != before:
            self._unindex(key, before)
            if owner is not None:
                self._by_owner[owner] = (*self._by_owner.get(owner, ()), key)
        self._packed[key] = self._packer.pack(new, _sort(new))
        if notify:
            self._changed(new, old)

    def _gone(self, obj: Object) -> None:
        """What a write of ours has made anew since, and was taken in, stays."""
        known = self.get(_key(obj))
        if known is not None and _version(known) <= _version(obj):
            self._delete(_key(obj))

    def _delete(self, key: Key, *, notify: bool = True) -> None:
        old = self.get(key)
        if old is None:
            return
        del self._packed[key]
        self._unindex(key, _owner_key(old))
        if notify:
            self._changed(old, old)

    def _unindex(self, key: Key, owner: Key | None) -> None:
        if owner is not None:
            rest = tuple(other for other in self._by_owner.pop(owner) if other != key)
            if rest:
                self._by_owner[owner] = rest


class Cache:
    """Every store that a reconcile reads from.

    ``changed(owner, urgent)`` is called with the (namespace, name) of the endpoint whose world
    changed; ``referenced`` with the (kind, key) of a ConfigMap or claim that users may refer to.
    """

    def __init__(
        self,
        kube: Kube,
        namespaces: Iterable[str],
        *,
        changed: Callable[[Key, bool], None],
        referenced: Callable[[str, Key], None],
    ) -> None:
        def ours(new: Object, old: Object | None) -> None:
            # Both, where somebody changed the label: the one that lost it puts it back.
            for owner in {_owner_key(new), _owner_key(old or new)}:
                if owner is not None:
                    changed(owner, _is_urgent(new, old))

        def refers(kind: Kind) -> Changed:
            return lambda new, old: referenced(kind.kind, _key(new))

        listing = asyncio.Semaphore(_LISTS_AT_ONCE)
        self._stores: dict[tuple[Kind, str | None], Store] = {}
        self._references: dict[tuple[Kind, str | None], Store] = {}
        self._scopes: tuple[str | None, ...] = tuple(namespaces) or (None,)
        for scope in self._scopes:
            for kind in (*MANAGED, POD):
                self._stores[kind, scope] = Store(kube, kind, scope, ours, listing=listing)
            self._stores[REPLICA_SET, scope] = Store(
                kube, REPLICA_SET, scope, ours, listing=listing, trim=_trim_replica_set
            )
            for kind in (CONFIG_MAP, CLAIM):
                # Users' objects carry no label of ours; their metadata tells when to read one.
                self._references[kind, scope] = Store(
                    kube,
                    kind,
                    scope,
                    refers(kind),
                    listing=listing,
                    selector="",
                    metadata_only=True,
                    trim=_trim_reference,
                )

    @property
    def stores(self) -> tuple[Store, ...]:
        return (*self._stores.values(), *self._references.values())

    async def synced(self) -> None:
        """Wait until every kind was listed once: no reconcile may run before."""
        for store in self.stores:
            await store.synced.wait()

    def store(self, kind: Kind, namespace: str) -> Store:
        return self._stores[kind, self._scope(namespace)]

    def reference(self, kind: Kind, namespace: str) -> Store:
        return self._references[kind, self._scope(namespace)]

    def _scope(self, namespace: str) -> str | None:
        return None if self._scopes == (None,) else namespace


def _key(obj: Mapping[str, Mapping[str, str]]) -> Key:
    """The names outlive the object in many indexes: of those that are the same, one is kept."""
    metadata = obj["metadata"]
    return sys.intern(metadata["namespace"]), metadata["name"]


def _owner_key(obj: Object) -> Key | None:
    metadata = obj["metadata"]
    instance = (metadata.get("labels") or {}).get(names.LABEL_INSTANCE)
    return (sys.intern(metadata["namespace"]), sys.intern(instance)) if instance else None


def _sort(obj: Object) -> str:
    return str((obj["metadata"].get("labels") or {}).get(names.LABEL_COMPONENT, ""))


def _newer(new: Object, old: Object) -> bool:
    """resourceVersions of one object are ordered; another UID is another object."""
    a, b = new["metadata"], old["metadata"]
    if a["uid"] != b["uid"]:
        return True
    return _version(new) > _version(old)


def _version(obj: Object) -> int:
    return int(obj["metadata"]["resourceVersion"])


def _is_urgent(new: Object, old: Object | None) -> bool:
    """A pod's readiness changed: the user waits for that, or is losing requests."""
    return old is not None and _ready(new) != _ready(old)


def _ready(obj: Object) -> bool:
    conditions = (obj.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
