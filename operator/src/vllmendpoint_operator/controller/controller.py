"""Turns the events of endpoints, their children, references, workers and namespaces into reconciles."""

import asyncio
import logging
import random
from collections.abc import Mapping
from typing import Final

from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.kube.client import Kube, Object
from vllmendpoint_operator.kube.object_meta import Key
from vllmendpoint_operator.metrics import Metrics
from vllmendpoint_operator.observe.observer import Observer
from vllmendpoint_operator.reports.streams import ReportStreams
from vllmendpoint_operator.settings import Settings
from vllmendpoint_operator.source.handler import KnownVersion

from .endpoint_store import EndpointStore
from .queue import WorkQueue
from .reconcile import Reconciler
from .reconcile_loop import ReconcileLoop
from .watched_namespaces import WatchedNamespace, WatchedNamespaces

__all__ = ["Controller"]

log = logging.getLogger(__name__)

DEBOUNCE_SECONDS: Final = 0.25
"""A Deployment, its ReplicaSet and their pods change together: one reconcile handles all of these changes."""
_LOST_POLL_SECONDS: Final = 0.1


class Controller:
    """Owns the caches, the queue and all tasks of the leader; the ``EndpointHandler`` of the event source."""

    def __init__(self, kube: Kube, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._queue: WorkQueue[Key] = WorkQueue()
        self._endpoints = EndpointStore()
        self._cache = Cache(
            kube,
            settings.watched_namespaces,
            on_change=self._on_endpoint_change,
            on_reference_change=self._on_reference_change,
        )
        self._reports = ReportStreams(self._on_endpoint_change, port=settings.report_port)
        self._observer = Observer(kube, self._cache, self._reports)
        self.namespaces = WatchedNamespaces(
            kube,
            self._cache,
            metrics,
            settings.watched_namespaces,
            on_workload_synced=self._connect_report_streams,
            on_synced=self._on_namespace_synced,
            on_access_lost=self._on_namespace_lost,
        )
        reconciler = Reconciler(
            kube=kube,
            cache=self._cache,
            observer=self._observer,
            endpoints=self._endpoints,
            options=settings.options,
            metrics=metrics,
            reporting_instance=settings.holder_identity,
            operator=settings.claim_name,
        )
        self._loop = ReconcileLoop(self._queue, reconciler, metrics, is_suspended=self._is_suspended)

    @property
    def ready(self) -> bool:
        """Whether it reconciles."""
        return self.namespaces.ready

    async def run(self) -> None:
        """Reconcile until cancelled. Raises RestartRequired if this process must not continue."""
        try:
            async with self._reports, asyncio.TaskGroup() as tasks:
                tasks.create_task(self.namespaces.run(), name="namespaces")
                await self.namespaces.wait_until_ready()
                log.info(
                    "reconciling: every watched kind is listed",
                    extra={"not_served": ", ".join(self.namespaces.failures)},
                )
                for number in range(self._settings.max_concurrent_reconciles):
                    tasks.create_task(self._loop.run(), name=f"reconcile-{number}")
                tasks.create_task(self._resync(), name="resync")
        finally:
            self._queue.close()

    # Events of endpoints

    def on_upsert(self, obj: Object) -> None:
        if self._endpoints.upsert(obj):
            self._queue.add((obj["metadata"]["namespace"], obj["metadata"]["name"]))

    def on_delete(self, key: Key, uid: str) -> None:
        if self._endpoints.delete(key, uid):
            self._queue.add(key)

    def known_versions(self, namespace: str | None) -> Mapping[Key, KnownVersion]:
        return {
            key: KnownVersion(uid, self._endpoints.resource_version(key))
            for key in self._keys_in(namespace)
            if (uid := self._endpoints.uid(key)) is not None
        }

    # Events of children, references and workers

    def _on_endpoint_change(self, key: Key, urgent: bool) -> None:
        if key not in self._endpoints:
            return
        if urgent:
            self._queue.add(key, urgent=True)
        else:
            self._queue.add_after(key, DEBOUNCE_SECONDS)

    def _on_reference_change(self, kind: str, key: Key) -> None:
        for endpoint in self._endpoints.referencing(kind, *key):
            self._queue.add(endpoint)

    # Events of watched namespaces

    async def _connect_report_streams(self, namespace: WatchedNamespace) -> None:
        """Connect to the workers while the other kinds are listed: the first reconciles then have reports."""
        for key in self._keys_in(namespace.name):
            uid = self._endpoints.uid(key)
            is_ours = self._endpoints.managing_operator(key) in ("", self._settings.claim_name)
            if uid is not None and self._endpoints.is_active(key, uid) and is_ours:
                self._observer.workload(key, uid)
            await asyncio.sleep(0)

    def _on_namespace_synced(self, namespace: WatchedNamespace) -> None:
        for key in self._keys_in(namespace.name):
            self._queue.add(key)

    async def _on_namespace_lost(self, namespace: WatchedNamespace) -> None:
        """Remove the endpoints of the namespace from memory and wait for their running reconciles.

        A reconcile that went on while the caches are filled again would miss children that exist, and would
        render their pods again.
        """
        keys = self._keys_in(namespace.name)
        for key in keys:
            uid = self._endpoints.uid(key)
            if uid is not None:
                self.on_delete(key, uid)
        while any(self._queue.is_running(key) for key in keys):  # noqa: ASYNC110  (ends with a request)
            await asyncio.sleep(_LOST_POLL_SECONDS)

    def _is_suspended(self, key: Key) -> bool:
        return key in self._endpoints and not self.namespaces.serves(key[0])

    def _keys_in(self, namespace: str | None) -> list[Key]:
        return [key for key in self._endpoints if namespace in (None, key[0])]

    async def _resync(self) -> None:
        """Reconcile every endpoint from time to time, whether an event came or not."""
        while True:
            await asyncio.sleep(self._settings.resync_seconds * random.uniform(0.9, 1.1))
            for key in self._endpoints:
                self._queue.add(key)
