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

from .endpoint_store import Endpoints
from .queue import WorkQueue
from .reconcile import Reconciler
from .scopes import Scope, Scopes

__all__ = ["Operator"]

log = logging.getLogger(__name__)

_BUNCH_SECONDS: Final = 0.25
"""A Deployment, its ReplicaSet and their pods change within moments of each other: one look for all."""
_FIRST_CHECK_SECONDS: Final = 30.0
"""A list that was cut off at the start is made up for by then."""
_LAG_SECONDS: Final = 5.0
"""By then the watch has brought what a list had."""


class Operator:
    """Owns every task of the leading operator; :meth:`run` ends only by cancellation or failure."""

    def __init__(self, kube: Kube, settings: Settings, metrics: Metrics) -> None:
        self._kube = kube
        self._settings = settings
        self._metrics = metrics
        self._queue: WorkQueue[Key] = WorkQueue()
        metrics.queue_depth.set_function(lambda: len(self._queue))
        self._endpoints = Endpoints()
        self._cache = Cache(kube, settings.scopes, changed=self._changed, referenced=self._reference_changed)
        self._observer: Observer | None = None
        """While it runs."""
        self.scopes = Scopes(
            kube,
            self._cache,
            metrics,
            settings.scopes,
            on_workload=self._listen,
            on_served=self._served,
            on_lost=self._lost,
        )

    @property
    def ready(self) -> bool:
        """It reconciles."""
        return self.scopes.ready

    # Fed by the VLLMEndpoint watch

    def seen(self, obj: Object) -> None:
        if self._endpoints.put(obj):
            self._queue.add(_key(obj))

    def deleted(self, obj: Object) -> None:
        if self._endpoints.drop(_key(obj), obj["metadata"]["uid"]):
            self._queue.add(_key(obj))

    # Fed by the cache and the reports

    def _changed(self, owner: Key, urgent: bool) -> None:
        if owner not in self._endpoints:
            return
        if urgent:
            self._queue.add(owner, urgent=True)
        else:
            self._queue.add_after(owner, _BUNCH_SECONDS)

    def _reference_changed(self, kind: str, key: Key) -> None:
        for owner in self._endpoints.referring(kind, *key):
            self._queue.add(owner)

    async def run(self) -> None:
        async with Reports(self._changed, port=self._settings.report_port) as reports:
            observer = self._observer = Observer(self._kube, self._cache, reports)
            reconciler = Reconciler(
                kube=self._kube,
                cache=self._cache,
                observer=observer,
                endpoints=self._endpoints,
                options=self._settings.options,
                metrics=self._metrics,
                identity=self._settings.holder,
                operator=self._settings.operator,
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self.scopes.run(), name="scopes")
                    await self.scopes.started()
                    log.info(
                        "every watched kind is listed", extra={"not_served": ", ".join(self.scopes.failures)}
                    )
                    for number in range(self._settings.workers):
                        tasks.create_task(self._work(reconciler), name=f"worker-{number}")
                    tasks.create_task(self._resync(), name="resync")
            finally:
                self._queue.close()

    # Told by the scopes

    async def _listen(self, scope: Scope) -> None:
        """Ask the workers for their reports while the rest is listed: few looks have to wait for one then."""
        assert self._observer is not None
        for key in self._known(scope):
            uid = self._endpoints.uid(key)
            other = self._endpoints.operator(key) not in ("", self._settings.operator)
            if uid is not None and self._endpoints.wants(key, uid) and not other:
                self._observer.workload(key, uid)
            await asyncio.sleep(0)

    def _served(self, scope: Scope) -> None:
        for key in self._known(scope):
            self._queue.add(key)

    async def _lost(self, scope: Scope) -> None:
        """Forget its endpoints, as if they had been deleted. A reconcile that is under way writes nothing
        more, and what it knows must not be mixed with what the next list brings.
        """
        lost = self._known(scope)
        for key in lost:
            uid = self._endpoints.uid(key)
            if uid is not None and self._endpoints.drop(key, uid):
                self._queue.add(key)
        while any(self._queue.runs(key) for key in lost):  # noqa: ASYNC110  (a request's time, at the most)
            await asyncio.sleep(0.1)

    def _known(self, scope: Scope) -> list[Key]:
        return [key for key in self._endpoints if scope.name in (None, key[0])]

    async def _work(self, reconciler: Reconciler) -> None:
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
        rest = 0.0
        if key in self._endpoints and not self.scopes.serves(key[0]):
            self._queue.done(key)
            return  # it is added when its namespace is served
        try:
            again = await reconciler.reconcile(key)
        except StartAnew:
            raise
        except KubeError as error:
            rest = error.retry_after or 0.0
            delay = max(self._queue.retry(key), rest)
            self._failed(key, delay, error)
        except Exception as error:
            # A defect must not stop the other endpoints; it is loud, and tried again.
            delay = self._queue.retry(key)
            log.exception("%s/%s: a defect of the operator", *key)
            self._failed(key, delay, error)
        else:
            self._queue.succeeded(key)
            self._metrics.reconciles.labels("success").inc()
            if again is not None:
                self._queue.add_after(key, again)
        finally:
            self._metrics.reconcile_seconds.observe(perf_counter() - started)
            self._queue.done(key, rest=rest)

    def _failed(self, key: Key, delay: float, error: Exception) -> None:
        self._metrics.reconciles.labels("error").inc()
        self._metrics.reconcile_errors.inc()
        log.warning("%s/%s: %s; trying again in %.1f s", *key, error, delay)

    async def _resync(self) -> None:
        """Look at everything once in a while, and make up for what the watch of the endpoints missed: soon
        after the start too, since a list may have been cut off then.
        """
        await asyncio.sleep(_FIRST_CHECK_SECONDS)
        await self._make_up()
        while True:
            await asyncio.sleep(self._settings.resync_seconds * random.uniform(0.9, 1.1))
            await self._make_up()
            for key in self._endpoints:
                self._queue.add(key)

    async def _make_up(self) -> None:
        """Drop endpoints that have gone unnoticed, and take in those that have come or changed so."""
        for scope in self.scopes.served:
            try:
                await self._make_up_for(scope)
            except KubeError as error:
                log.warning("resync of %s: %s", "the cluster" if scope is None else scope, error)

    async def _make_up_for(self, scope: str | None) -> None:
        known = {
            uid: key
            for key in self._endpoints
            if scope in (None, key[0]) and (uid := self._endpoints.uid(key)) is not None
        }
        listed: dict[str, tuple[Key, int]] = {}
        async with self._kube.listing(ENDPOINT, scope, metadata_only=True) as (_, items):
            async for item in items:
                found = view(keep_version(item))
                listed[found.metadata.uid] = found.key, found.version
        await asyncio.sleep(_LAG_SECONDS)
        for key, version in listed.values():
            if self._endpoints.version(key) < version:
                missed, _ = await self._kube.list(ENDPOINT, key[0], name=key[1])
                for obj in missed:
                    self.seen(obj)
        for uid, key in known.items():
            if uid not in listed and self._endpoints.drop(key, uid):
                self._queue.add(key)


def _key(obj: Object) -> Key:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]
