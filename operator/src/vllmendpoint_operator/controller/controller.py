"""The operator's engine room: caches, queue, workers and resync, wired together. Knows no kopf."""

import asyncio
import logging
import random
from time import perf_counter
from typing import Final

from vllmendpoint_operator.cache.caches import Cache, Key
from vllmendpoint_operator.errors import KubeError, StartAnew
from vllmendpoint_operator.kube.client import Kube, Object
from vllmendpoint_operator.kube.kinds import ENDPOINT
from vllmendpoint_operator.kube.object_meta import keep_version, view
from vllmendpoint_operator.logs import reconciling
from vllmendpoint_operator.metrics import Metrics
from vllmendpoint_operator.observe.observer import Observer
from vllmendpoint_operator.reports.streams import Reports
from vllmendpoint_operator.settings import Settings

from .endpoint_store import EndpointStore
from .queue import WorkQueue
from .reconcile import Reconciler
from .watched_namespaces import WatchedNamespace, WatchedNamespaces

__all__ = ["Controller"]

log = logging.getLogger(__name__)

DEBOUNCE_SECONDS: Final = 0.25
"""A Deployment, its ReplicaSet and their pods change within moments of each other: one look for all."""
FIRST_RESYNC_SECONDS: Final = 30.0
"""A list that was cut off at the start is made up for by then."""
WATCH_LAG_SECONDS: Final = 5.0
"""By then the watch has brought what a list had."""


class Controller:
    """Owns every task of the leading operator; :meth:`run` ends only by cancellation or failure."""

    def __init__(self, kube: Kube, settings: Settings, metrics: Metrics) -> None:
        self._kube = kube
        self._settings = settings
        self._metrics = metrics
        self._queue: WorkQueue[Key] = WorkQueue()
        metrics.queue_depth.set_function(lambda: len(self._queue))
        self._endpoints = EndpointStore()
        self._cache = Cache(
            kube,
            settings.watched_namespaces,
            changed=self._on_owned_change,
            referenced=self._on_reference_change,
        )
        self._observer: Observer | None = None
        """While it runs."""
        self.namespaces = WatchedNamespaces(
            kube,
            self._cache,
            metrics,
            settings.watched_namespaces,
            on_workload_synced=self._connect_report_streams,
            on_synced=self._on_namespace_synced,
            on_access_lost=self._on_namespace_lost,
        )

    @property
    def ready(self) -> bool:
        """It reconciles."""
        return self.namespaces.ready

    # Fed by the VLLMEndpoint watch

    def on_upsert(self, obj: Object) -> None:
        if self._endpoints.upsert(obj):
            self._queue.add(_key(obj))

    def on_delete(self, obj: Object) -> None:
        if self._endpoints.delete(_key(obj), obj["metadata"]["uid"]):
            self._queue.add(_key(obj))

    # Fed by the cache and the reports

    def _on_owned_change(self, owner: Key, urgent: bool) -> None:
        if owner not in self._endpoints:
            return
        if urgent:
            self._queue.add(owner, urgent=True)
        else:
            self._queue.add_after(owner, DEBOUNCE_SECONDS)

    def _on_reference_change(self, kind: str, key: Key) -> None:
        for owner in self._endpoints.referencing(kind, *key):
            self._queue.add(owner)

    async def run(self) -> None:
        async with Reports(self._on_owned_change, port=self._settings.report_port) as reports:
            observer = self._observer = Observer(self._kube, self._cache, reports)
            reconciler = Reconciler(
                kube=self._kube,
                cache=self._cache,
                observer=observer,
                endpoints=self._endpoints,
                options=self._settings.options,
                metrics=self._metrics,
                identity=self._settings.holder_identity,
                operator=self._settings.claim_name,
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self.namespaces.run(), name="namespaces")
                    await self.namespaces.wait_until_ready()
                    log.info(
                        "every watched kind is listed",
                        extra={"not_served": ", ".join(self.namespaces.failures)},
                    )
                    for number in range(self._settings.max_concurrent_reconciles):
                        tasks.create_task(self._run_worker(reconciler), name=f"worker-{number}")
                    tasks.create_task(self._resync(), name="resync")
            finally:
                self._queue.close()

    # Called by the watched namespaces

    async def _connect_report_streams(self, namespace: WatchedNamespace) -> None:
        """Ask the workers for their reports while the rest is listed: few looks have to wait for one then."""
        assert self._observer is not None
        for key in self._keys_in(namespace):
            uid = self._endpoints.uid(key)
            other = self._endpoints.managing_operator(key) not in ("", self._settings.claim_name)
            if uid is not None and self._endpoints.is_active(key, uid) and not other:
                self._observer.workload(key, uid)
            await asyncio.sleep(0)

    def _on_namespace_synced(self, namespace: WatchedNamespace) -> None:
        for key in self._keys_in(namespace):
            self._queue.add(key)

    async def _on_namespace_lost(self, namespace: WatchedNamespace) -> None:
        """Forget its endpoints, as if they had been deleted. A reconcile that is under way writes nothing
        more, and what it knows must not be mixed with what the next list brings.
        """
        lost = self._keys_in(namespace)
        for key in lost:
            uid = self._endpoints.uid(key)
            if uid is not None and self._endpoints.delete(key, uid):
                self._queue.add(key)
        while any(self._queue.is_running(key) for key in lost):  # noqa: ASYNC110  (a request's time, at the most)
            await asyncio.sleep(0.1)

    def _keys_in(self, namespace: WatchedNamespace) -> list[Key]:
        return [key for key in self._endpoints if namespace.name in (None, key[0])]

    async def _run_worker(self, reconciler: Reconciler) -> None:
        while True:
            key, waited = await self._queue.get()
            self._metrics.queue_seconds.observe(waited)
            with reconciling(key):
                await self._reconcile(reconciler, key)
            # One that needs no answer from anybody never waits: without this a thousand of them would hold up
            # the renewal of the lease.
            await asyncio.sleep(0)

    async def _reconcile(self, reconciler: Reconciler, key: Key) -> None:
        started = perf_counter()
        cooldown = 0.0
        if key in self._endpoints and not self.namespaces.serves(key[0]):
            self._queue.done(key)
            return  # it is added when its namespace is served
        try:
            again = await reconciler.reconcile(key)
        except StartAnew:
            raise
        except KubeError as error:
            cooldown = error.retry_after or 0.0
            delay = max(self._queue.add_rate_limited(key), cooldown)
            self._record_failure(key, delay, error)
        except Exception as error:
            # A defect must not stop the other endpoints; it is loud, and tried again.
            delay = self._queue.add_rate_limited(key)
            log.exception("%s/%s: a defect of the operator", *key)
            self._record_failure(key, delay, error)
        else:
            self._queue.reset_backoff(key)
            self._metrics.reconciles.labels("success").inc()
            if again is not None:
                self._queue.add_after(key, again)
        finally:
            self._metrics.reconcile_seconds.observe(perf_counter() - started)
            self._queue.done(key, cooldown=cooldown)

    def _record_failure(self, key: Key, delay: float, error: Exception) -> None:
        self._metrics.reconciles.labels("error").inc()
        self._metrics.reconcile_errors.inc()
        log.warning("%s/%s: %s; trying again in %.1f s", *key, error, delay)

    async def _resync(self) -> None:
        """Look at everything once in a while, and make up for what the watch of the endpoints missed: soon
        after the start too, since a list may have been cut off then.
        """
        await asyncio.sleep(FIRST_RESYNC_SECONDS)
        await self._reconcile_missed_events()
        while True:
            await asyncio.sleep(self._settings.resync_seconds * random.uniform(0.9, 1.1))
            await self._reconcile_missed_events()
            for key in self._endpoints:
                self._queue.add(key)

    async def _reconcile_missed_events(self) -> None:
        """Drop endpoints that have gone unnoticed, and take in those that have come or changed so."""
        for namespace in self.namespaces.served:
            try:
                await self._reconcile_missed_events_in(namespace)
            except KubeError as error:
                log.warning("resync of %s: %s", "the cluster" if namespace is None else namespace, error)

    async def _reconcile_missed_events_in(self, namespace: str | None) -> None:
        known = {
            uid: key
            for key in self._endpoints
            if namespace in (None, key[0]) and (uid := self._endpoints.uid(key)) is not None
        }
        listed: dict[str, tuple[Key, int]] = {}
        async with self._kube.listing(ENDPOINT, namespace, metadata_only=True) as (_, items):
            async for item in items:
                found = view(keep_version(item))
                listed[found.metadata.uid] = found.key, found.version
        await asyncio.sleep(WATCH_LAG_SECONDS)
        for key, version in listed.values():
            if self._endpoints.resource_version(key) < version:
                missed, _ = await self._kube.list(ENDPOINT, key[0], name=key[1])
                for obj in missed:
                    self.on_upsert(obj)
        for uid, key in known.items():
            if uid not in listed and self._endpoints.delete(key, uid):
                self._queue.add(key)


def _key(obj: Object) -> Key:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]
