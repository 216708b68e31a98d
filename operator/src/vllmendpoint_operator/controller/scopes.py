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

__all__ = ["Scope", "Scopes"]

log = logging.getLogger(__name__)

_RECHECK_FIRST: Final = 2.0
_RECHECK_LAST: Final = 30.0
"""A namespace that is there again is served soon after; until then it costs one request in this time."""
_LISTING_SECONDS: Final = 60.0
"""One whose lists take longer, or fail, is not waited for by the others."""


class Scope:
    """One watched namespace, or the whole cluster (``name`` is None)."""

    def __init__(self, kube: Kube, cache: Cache, name: str | None, owner: "Scopes") -> None:
        self._kube = kube
        self._cache = cache
        self.name = name
        self._owner = owner
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
        wait = _RECHECK_FIRST
        while True:
            try:
                await self._check()
                async with asyncio.TaskGroup() as tasks:
                    for store in self._cache.of_scope(self.name):
                        tasks.create_task(store.run(), name=f"watch-{store.kind.plural}")
                    tasks.create_task(self._listed(), name="listed")
            except* Inaccessible as refused:
                if self.served:
                    wait = _RECHECK_FIRST
                await self._lost(_first(refused))
            await asyncio.sleep(random.uniform(wait / 2, wait))
            wait = min(wait * 2, _RECHECK_LAST)

    async def _check(self) -> None:
        """Raises Inaccessible. An API server that is away says nothing of the namespace."""
        try:
            async with self._kube.listing(ENDPOINT, self.name, metadata_only=True, limit=1):
                pass
        except KubeError as error:
            if error.status == 403:
                raise Inaccessible(ENDPOINT.plural, error) from error
        if not self.failure:
            self.accessible = True
            self._owner.changed(self)

    async def _listed(self) -> None:
        try:
            async with asyncio.timeout(_LISTING_SECONDS):
                await self._cache.synced(POD, REPLICA_SET, DEPLOYMENT, scope=self.name)
                await self._owner.on_workload(self)
                await self._cache.synced(scope=self.name)
        except TimeoutError:
            missing = sorted(
                {store.kind.plural for store in self._cache.of_scope(self.name) if not store.synced.is_set()}
            )
            self._tell(f"{', '.join(missing)} could not be listed within {_LISTING_SECONDS:.0f} s")
            self._owner.changed(self)
            await self._cache.synced(scope=self.name)
        if self.failure:
            log.info("%s is served again", self)
        self.served, self.accessible, self.failure = True, True, ""
        self._owner.changed(self)
        self._owner.on_served(self)

    async def _lost(self, refused: Inaccessible) -> None:
        self._tell(str(refused))
        was_served = self.served
        self.served = self.accessible = False
        for store in self._cache.of_scope(self.name):
            store.clear()
        self._owner.changed(self)
        if was_served:
            await self._owner.on_lost(self)

    def _tell(self, failure: str) -> None:
        if not self.failure:
            log.warning(
                "%s is not served: %s. What else is watched is served. It is asked for again, at least every "
                "%.0f s",
                self,
                failure,
                _RECHECK_LAST,
            )
        self.failure = failure


async def _nothing(_: Scope) -> None:
    """For one that only holds the caches."""


class Scopes:
    """All of them. ``on_workload`` is awaited when the pods and their owners are listed in one,
    ``on_served`` is called when all is, and ``on_lost`` is awaited before one that was served is asked for
    again.
    """

    def __init__(
        self,
        kube: Kube,
        cache: Cache,
        metrics: Metrics,
        names: Iterable[str],
        *,
        on_workload: Callable[[Scope], Awaitable[None]] = _nothing,
        on_served: Callable[[Scope], None] = lambda scope: None,
        on_lost: Callable[[Scope], Awaitable[None]] = _nothing,
    ) -> None:
        self.on_workload, self.on_served, self.on_lost = on_workload, on_served, on_lost
        self._metrics = metrics
        self._scopes = {name: Scope(kube, cache, name, self) for name in tuple(names) or (None,)}
        self._news = asyncio.Event()
        for scope in self._scopes.values():
            self._show(scope)

    @property
    def ready(self) -> bool:
        """One at least is served, and no other is about to be."""
        scopes = self._scopes.values()
        return any(scope.served for scope in scopes) and all(
            scope.served or scope.failure for scope in scopes
        )

    @property
    def failures(self) -> dict[str, str]:
        """Why, of each that is not served."""
        return {str(scope.name): scope.failure for scope in self._scopes.values() if scope.failure}

    @property
    def served(self) -> tuple[str | None, ...]:
        return tuple(name for name, scope in self._scopes.items() if scope.served)

    def serves(self, namespace: str) -> bool:
        scope = self._scopes.get(namespace) or self._scopes.get(None)
        return scope is not None and scope.served

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for scope in self._scopes.values():
                tasks.create_task(scope.run(), name=f"serve-{scope.name}")

    async def started(self) -> None:
        """Wait until it is ready."""
        await self._until(lambda: self.ready)

    async def accessible(self) -> tuple[str | None, ...]:
        """Those whose endpoints may be watched: waits until all were asked for, and for one at least."""
        await self._until(
            lambda: (
                bool(self._accessible())
                and all(scope.accessible or scope.failure for scope in self._scopes.values())
            )
        )
        return self._accessible()

    async def other_than(self, names: tuple[str | None, ...]) -> None:
        """Wait until others may be watched than these."""
        await self._until(lambda: self._accessible() != names)

    def changed(self, scope: Scope) -> None:
        self._show(scope)
        self._news.set()

    def _accessible(self) -> tuple[str | None, ...]:
        return tuple(name for name, scope in self._scopes.items() if scope.accessible)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._news.clear()
            await self._news.wait()

    def _show(self, scope: Scope) -> None:
        self._metrics.namespaces.labels("*" if scope.name is None else scope.name).set(scope.served)


def _first(error: BaseExceptionGroup[Inaccessible]) -> Inaccessible:
    found: BaseException = error
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, Inaccessible)
    return found
