"""Holds one informer for each kind and watched namespace, and maps changed objects to endpoints."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from vllmendpoint_api import names
from vllmendpoint_operator.kube.client import Kube
from vllmendpoint_operator.kube.kinds import CLAIM, CONFIG_MAP, MANAGED, POD, REPLICA_SET, Kind
from vllmendpoint_operator.kube.object_meta import (
    Key,
    ObjectMeta,
    keep_pod_template,
    keep_version,
    strip_managed_fields,
)

from .informer import Informer, OwnerIndex

__all__ = ["Cache", "Key"]

_PARALLEL_LISTS: Final = 2
"""The received part of each list is in memory; more lists at a time do not finish earlier."""
_NOT_MANAGED: Final = f"{names.LABEL_MANAGED_BY}!={names.MANAGED_BY}"


class Cache:
    """All objects that a reconcile reads.

    Args:
        namespaces: namespaces to watch; empty for the whole cluster.
        on_change: called with the (namespace, name) of an endpoint when an object that carries its label
            changes; the second argument is True if a pod became ready or unready.
        on_reference_change: called with the kind and (namespace, name) of a ConfigMap or
            PersistentVolumeClaim that changes, because a spec may reference it.
    """

    def __init__(
        self,
        kube: Kube,
        namespaces: Iterable[str],
        *,
        on_change: Callable[[Key, bool], None],
        on_reference_change: Callable[[str, Key], None],
    ) -> None:
        list_slots, owners = asyncio.Semaphore(_PARALLEL_LISTS), OwnerIndex()

        def informer(kind: Kind, scope: str | None) -> Informer:
            def changed(new: ObjectMeta, old: ObjectMeta | None) -> None:
                owner, old_owner = new.owner, None if old is None else old.owner
                # The user waits for a pod to become ready, and an unready pod loses requests.
                urgent = old is not None and new.ready != old.ready
                if owner is not None:
                    on_change(owner, urgent)
                # If somebody changed the label, the old owner restores it.
                if old_owner is not None and old_owner != owner:
                    on_change(old_owner, urgent)
                if kind in (CONFIG_MAP, CLAIM):
                    on_reference_change(kind.kind, new.key)

            transform = keep_pod_template if kind is REPLICA_SET else strip_managed_fields
            return Informer(
                kube, kind, scope, changed, owners=owners, list_slots=list_slots, transform=transform
            )

        def reference_informer(kind: Kind, scope: str | None) -> Informer:
            # Users' objects do not carry the operator's label. Their metadata shows when to read one.
            return Informer(
                kube,
                kind,
                scope,
                lambda new, old: on_reference_change(kind.kind, new.key),
                owners=owners,
                list_slots=list_slots,
                selector=_NOT_MANAGED,
                metadata_only=True,
                transform=keep_version,
            )

        self._scopes: tuple[str | None, ...] = tuple(namespaces) or (None,)
        self._informers = {
            (kind, scope): informer(kind, scope)
            for scope in self._scopes
            # Pods first: their lists are the longest, and the report streams connect during the other lists.
            for kind in (POD, REPLICA_SET, *reversed(MANAGED))
        }
        self._references = {
            (kind, scope): reference_informer(kind, scope)
            for scope in self._scopes
            for kind in (CONFIG_MAP, CLAIM)
        }

    @property
    def informers(self) -> tuple[Informer, ...]:
        return (*self._informers.values(), *self._references.values())

    def informers_of(self, scope: str | None) -> tuple[Informer, ...]:
        """Return the informers of one watched namespace, or (None) of the cluster."""
        return tuple(
            informer
            for informers in (self._informers, self._references)
            for (_, watched), informer in informers.items()
            if watched == scope
        )

    async def wait_for_sync(self, *kinds: Kind, scope: str | None) -> None:
        """Wait until these kinds, or all, were listed once. No reconcile may run before all were listed."""
        for informer in self.informers_of(scope):
            if not kinds or informer.kind in kinds:
                await informer.has_synced.wait()

    def informer(self, kind: Kind, namespace: str) -> Informer:
        return self._informers[kind, self._scope(namespace)]

    def reference(self, kind: Kind, key: Key) -> str | None:
        """Return ``uid/resourceVersion`` of any ConfigMap or claim; None if it does not exist."""
        namespace, _ = key
        scope = self._scope(namespace)
        found = self._references[kind, scope].get(key) or self._informers[kind, scope].get(key)
        return None if found is None else f"{found['metadata']['uid']}/{found['metadata']['resourceVersion']}"

    def _scope(self, namespace: str) -> str | None:
        return None if self._scopes == (None,) else namespace
