"""Every store that a reconcile reads from, and whom the changes in them concern."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from vllmendpoint_api import names
from vllmendpoint_operator.kube.client import Kube
from vllmendpoint_operator.kube.kinds import CLAIM, CONFIG_MAP, MANAGED, POD, REPLICA_SET, Kind
from vllmendpoint_operator.kube.object_meta import Key, View, keep_all, keep_mounts, keep_version

from .informer import Owned, Store

__all__ = ["Cache", "Key"]

_LISTS_AT_ONCE: Final = 2
"""What has arrived of each is held in memory; more than these are no sooner taken in."""
_NOT_OURS: Final = f"{names.LABEL_MANAGED_BY}!={names.MANAGED_BY}"


class Cache:
    """``changed(owner, urgent)`` is called with the (namespace, name) of the endpoint whose world
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
        listing, owned = asyncio.Semaphore(_LISTS_AT_ONCE), Owned()

        def store(kind: Kind, scope: str | None) -> Store:
            def told(new: View, old: View | None) -> None:
                owner, before = new.owner, None if old is None else old.owner
                # A pod's readiness: the user waits for it, or is losing requests.
                urgent = old is not None and new.ready != old.ready
                if owner is not None:
                    changed(owner, urgent)
                # Where somebody changed the label, the one that lost it puts it back.
                if before is not None and before != owner:
                    changed(before, urgent)
                if kind in (CONFIG_MAP, CLAIM):
                    referenced(kind.kind, new.key)

            keep = keep_mounts if kind is REPLICA_SET else keep_all
            return Store(kube, kind, scope, told, owned=owned, listing=listing, keep=keep)

        def references(kind: Kind, scope: str | None) -> Store:
            # Users' objects carry no label of ours; their metadata tells when to read one.
            return Store(
                kube,
                kind,
                scope,
                lambda new, old: referenced(kind.kind, new.key),
                owned=owned,
                listing=listing,
                selector=_NOT_OURS,
                metadata_only=True,
                keep=keep_version,
            )

        self._scopes: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._stores = {
            (kind, scope): store(kind, scope)
            for scope in self._scopes
            # The workload first: its lists are the longest, and workers can be asked for reports meanwhile.
            for kind in (POD, REPLICA_SET, *reversed(MANAGED))
        }
        self._references = {
            (kind, scope): references(kind, scope) for scope in self._scopes for kind in (CONFIG_MAP, CLAIM)
        }

    @property
    def stores(self) -> tuple[Store, ...]:
        return (*self._stores.values(), *self._references.values())

    def of_scope(self, scope: str | None) -> tuple[Store, ...]:
        """The stores of one watched namespace, or (None) of the cluster."""
        return tuple(
            store
            for stores in (self._stores, self._references)
            for (_, watched), store in stores.items()
            if watched == scope
        )

    async def synced(self, *kinds: Kind, scope: str | None) -> None:
        """Wait until these kinds, or all, were listed there once: no reconcile may run before all were."""
        for store in self.of_scope(scope):
            if not kinds or store.kind in kinds:
                await store.synced.wait()

    def store(self, kind: Kind, namespace: str) -> Store:
        return self._stores[kind, self._scope(namespace)]

    def reference(self, kind: Kind, key: Key) -> str | None:
        """``uid/resourceVersion`` of a ConfigMap or claim, whoever made it; None where there is none."""
        namespace, _ = key
        scope = self._scope(namespace)
        found = self._references[kind, scope].get(key) or self._stores[kind, scope].get(key)
        return None if found is None else f"{found['metadata']['uid']}/{found['metadata']['resourceVersion']}"

    def _scope(self, namespace: str) -> str | None:
        return None if self._scopes == (None,) else namespace
