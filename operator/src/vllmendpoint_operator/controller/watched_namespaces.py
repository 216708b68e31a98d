"""The namespaces that are served, each by itself: one that is deleted, or closed to us, stops no other."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.errors import Inaccessible, KubeError
from vllmendpoint_operator.kube.client import Kube
from vllmendpoint_operator.kube.kinds import DEPLOYMENT, ENDPOINT, POD, REPLICA_SET
from vllmendpoint_operator.metrics import Metrics

__all__ = ["WatchedNamespace", "WatchedNamespaces"]

log = logging.getLogger(__name__)

_RECHECK_MIN_SECONDS: Final = 2.0
_RECHECK_MAX_SECONDS: Final = 30.0
"""A namespace that is there again is served soon after; until then it costs one request in this time."""
_SYNC_TIMEOUT_SECONDS: Final = 60.0
"""One whose lists take longer, or fail, is not waited for by the others."""


class WatchedNamespace:
    """One watched namespace, or the whole cluster (``name`` is None)."""

    def __init__(self, kube: Kube, cache: Cache, name: str | None, owner: "WatchedNamespaces") -> None:
        self._kube = kube
        self._cache = cache
        self.name = name
        self._all = owner
        self.served = False
        """All that a reconcile reads has been listed, and is watched."""
        self.accessible = False
        """Its endpoints may be watched."""
        self.failure = ""
        """Why it is not served, once that is known."""

    def __str__(self) -> str:
        return "the cluster" if self.name is None else f"the namespace {self.name}"

    async def run(self) -> None:
        """Serve it for as long as it may be, and ask for it again when it may not; ends by cancellation."""
        wait = _RECHECK_MIN_SECONDS
        while True:
            try:
                await self._check_access()
                async with asyncio.TaskGroup() as tasks:
                    for informer in self._cache.informers_of(self.name):
                        tasks.create_task(informer.run(), name=f"watch-{informer.kind.plural}")
                    tasks.create_task(self._wait_for_sync(), name="sync")
            except* Inaccessible as refused:
                if self.served:
                    wait = _RECHECK_MIN_SECONDS
                await self._on_access_lost(_first(refused))
            await asyncio.sleep(random.uniform(wait / 2, wait))
            wait = min(wait * 2, _RECHECK_MAX_SECONDS)

    async def _check_access(self) -> None:
        """Raises Inaccessible. An API server that is away says nothing of the namespace."""
        try:
            async with self._kube.list_stream(ENDPOINT, self.name, metadata_only=True, limit=1):
                pass
        except KubeError as error:
            if error.status == 403:
                raise Inaccessible(ENDPOINT.plural, error) from error
        if not self.failure:
            self.accessible = True
            self._all.on_change(self)

    async def _wait_for_sync(self) -> None:
        try:
            async with asyncio.timeout(_SYNC_TIMEOUT_SECONDS):
                await self._cache.wait_for_sync(POD, REPLICA_SET, DEPLOYMENT, scope=self.name)
                await self._all.on_workload_synced(self)
                await self._cache.wait_for_sync(scope=self.name)
        except TimeoutError:
            missing = sorted(
                {
                    informer.kind.plural
                    for informer in self._cache.informers_of(self.name)
                    if not informer.has_synced.is_set()
                }
            )
            self._record_failure(
                f"{', '.join(missing)} could not be listed within {_SYNC_TIMEOUT_SECONDS:.0f} s"
            )
            self._all.on_change(self)
            await self._cache.wait_for_sync(scope=self.name)
        if self.failure:
            log.info("%s is served again", self)
        self.served, self.accessible, self.failure = True, True, ""
        self._all.on_change(self)
        self._all.on_synced(self)

    async def _on_access_lost(self, refused: Inaccessible) -> None:
        self._record_failure(str(refused))
        was_served = self.served
        self.served = self.accessible = False
        for informer in self._cache.informers_of(self.name):
            informer.clear()
        self._all.on_change(self)
        if was_served:
            await self._all.on_access_lost(self)

    def _record_failure(self, failure: str) -> None:
        if not self.failure:
            log.warning(
                "%s is not served: %s. What else is watched is served. It is asked for again, at least every "
                "%.0f s",
                self,
                failure,
                _RECHECK_MAX_SECONDS,
            )
        self.failure = failure


async def _ignore(_: WatchedNamespace) -> None:
    """For one that only holds the caches."""


class WatchedNamespaces:
    """All of them. ``on_workload_synced`` is awaited when the pods and their owners are listed in one,
    ``on_synced`` is called when all is, and ``on_access_lost`` is awaited before one that was served is
    asked for again.
    """

    def __init__(
        self,
        kube: Kube,
        cache: Cache,
        metrics: Metrics,
        names: Iterable[str],
        *,
        on_workload_synced: Callable[[WatchedNamespace], Awaitable[None]] = _ignore,
        on_synced: Callable[[WatchedNamespace], None] = lambda namespace: None,
        on_access_lost: Callable[[WatchedNamespace], Awaitable[None]] = _ignore,
    ) -> None:
        self.on_workload_synced, self.on_synced, self.on_access_lost = (
            on_workload_synced,
            on_synced,
            on_access_lost,
        )
        self._metrics = metrics
        self._namespaces = {
            name: WatchedNamespace(kube, cache, name, self) for name in tuple(names) or (None,)
        }
        self._change = asyncio.Event()
        for namespace in self._namespaces.values():
            self._update_gauge(namespace)

    @property
    def ready(self) -> bool:
        """One at least is served, and no other is about to be."""
        namespaces = self._namespaces.values()
        return any(namespace.served for namespace in namespaces) and all(
            namespace.served or namespace.failure for namespace in namespaces
        )

    @property
    def failures(self) -> dict[str, str]:
        """Why, of each that is not served."""
        return {
            str(namespace.name): namespace.failure
            for namespace in self._namespaces.values()
            if namespace.failure
        }

    @property
    def served(self) -> tuple[str | None, ...]:
        return tuple(name for name, namespace in self._namespaces.items() if namespace.served)

    def serves(self, name: str) -> bool:
        namespace = self._namespaces.get(name) or self._namespaces.get(None)
        return namespace is not None and namespace.served

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for namespace in self._namespaces.values():
                tasks.create_task(namespace.run(), name=f"serve-{namespace.name}")

    async def wait_until_ready(self) -> None:
        """Wait until it is ready."""
        await self._wait_for(lambda: self.ready)

    async def wait_until_accessible(self) -> tuple[str | None, ...]:
        """Those whose endpoints may be watched: waits until all were asked for, and for one at least."""
        await self._wait_for(
            lambda: (
                bool(self._accessible)
                and all(namespace.accessible or namespace.failure for namespace in self._namespaces.values())
            )
        )
        return self._accessible

    async def wait_for_other_than(self, names: tuple[str | None, ...]) -> None:
        """Wait until others may be watched than these."""
        await self._wait_for(lambda: self._accessible != names)

    def on_change(self, namespace: WatchedNamespace) -> None:
        self._update_gauge(namespace)
        self._change.set()

    @property
    def _accessible(self) -> tuple[str | None, ...]:
        return tuple(name for name, namespace in self._namespaces.items() if namespace.accessible)

    async def _wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._change.clear()
            await self._change.wait()

    def _update_gauge(self, namespace: WatchedNamespace) -> None:
        self._metrics.namespaces.labels("*" if namespace.name is None else namespace.name).set(
            namespace.served
        )


def _first(error: BaseExceptionGroup[Inaccessible]) -> Inaccessible:
    found: BaseException = error
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, Inaccessible)
    return found
