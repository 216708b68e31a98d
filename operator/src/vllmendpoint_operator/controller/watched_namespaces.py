"""Lists and watches each watched namespace independently of the others.

A namespace that is deleted, or that the operator may no longer read, does not affect the other namespaces.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.errors import Inaccessible, KubeError
from vllmendpoint_operator.kube.client import Kube
from vllmendpoint_operator.kube.kinds import DEPLOYMENT, ENDPOINT, POD, REPLICA_SET
from vllmendpoint_operator.metrics import Metrics

__all__ = ["NamespaceState", "WatchedNamespace", "WatchedNamespaces"]

log = logging.getLogger(__name__)

_RECHECK_MIN_SECONDS: Final = 2.0
_RECHECK_MAX_SECONDS: Final = 30.0
"""Bounds of the backoff between two checks of an inaccessible namespace; a check is one request."""
_SYNC_TIMEOUT_SECONDS: Final = 60.0
"""Time that the other namespaces wait for the lists of one namespace."""


class NamespaceState(Enum):
    """Lifecycle of a watched namespace."""

    UNKNOWN = auto()
    """The API server has not answered yet whether the operator may read the namespace."""
    SYNCING = auto()
    """Its endpoints may be watched. The objects that a reconcile reads are being listed."""
    DELAYED = auto()
    """As SYNCING, but for longer than the other namespaces wait."""
    SERVED = auto()
    """All objects that a reconcile reads are listed and watched: its endpoints are reconciled."""
    INACCESSIBLE = auto()
    """The API server refuses to list or to watch; checked again until all objects are listed."""


_ACCESSIBLE: Final = (NamespaceState.SYNCING, NamespaceState.DELAYED, NamespaceState.SERVED)
_FAILED: Final = (NamespaceState.DELAYED, NamespaceState.INACCESSIBLE)


async def _ignore(_: "WatchedNamespace") -> None:
    pass


@dataclass(frozen=True, slots=True)
class _Callbacks:
    on_state: Callable[["WatchedNamespace"], None]
    on_workload_synced: Callable[["WatchedNamespace"], Awaitable[None]]
    on_synced: Callable[["WatchedNamespace"], None]
    on_access_lost: Callable[["WatchedNamespace"], Awaitable[None]]


class WatchedNamespace:
    """One watched namespace. The name None means all namespaces of the cluster."""

    def __init__(self, kube: Kube, cache: Cache, name: str | None, callbacks: _Callbacks) -> None:
        self._kube = kube
        self._cache = cache
        self._callbacks = callbacks
        self.name = name
        self.state = NamespaceState.UNKNOWN
        self.failure = ""
        """Why the namespace is DELAYED or INACCESSIBLE; empty in the other states."""

    @property
    def label(self) -> str:
        """The name in logs and metrics: ``*`` for the cluster."""
        return "*" if self.name is None else self.name

    async def run(self) -> None:
        """List and watch the namespace until cancelled. Check it again when access is lost."""
        delay = _RECHECK_MIN_SECONDS
        while True:
            try:
                await self._check_access()
                informers = [informer.run() for informer in self._cache.informers_of(self.name)]
                await _run_all(*informers, self._wait_for_sync())
            except Inaccessible as error:
                if self.state is NamespaceState.SERVED:
                    delay = _RECHECK_MIN_SECONDS
                await self._on_access_lost(str(error))
            await asyncio.sleep(random.uniform(delay / 2, delay))
            delay = min(delay * 2, _RECHECK_MAX_SECONDS)

    async def _check_access(self) -> None:
        """Raises Inaccessible. Another error than 403 does not show that the namespace is inaccessible."""
        try:
            async with self._kube.list_stream(ENDPOINT, self.name, metadata_only=True, limit=1):
                pass
        except KubeError as error:
            if error.status == 403:
                raise Inaccessible(ENDPOINT.plural, error) from error
        if self.state is NamespaceState.UNKNOWN:
            self._set_state(NamespaceState.SYNCING)

    async def _wait_for_sync(self) -> None:
        try:
            async with asyncio.timeout(_SYNC_TIMEOUT_SECONDS):
                await self._cache.wait_for_sync(POD, REPLICA_SET, DEPLOYMENT, scope=self.name)
                await self._callbacks.on_workload_synced(self)
                await self._cache.wait_for_sync(scope=self.name)
        except TimeoutError:
            self._on_sync_timeout()
            await self._cache.wait_for_sync(scope=self.name)
        if self.state in _FAILED:
            log.info("a watched namespace is served again", extra={"watched_namespace": self.label})
        self._set_state(NamespaceState.SERVED)
        self._callbacks.on_synced(self)

    def _on_sync_timeout(self) -> None:
        missing = {
            informer.kind.plural
            for informer in self._cache.informers_of(self.name)
            if not informer.has_synced.is_set()
        }
        failure = f"{', '.join(sorted(missing))} could not be listed within {_SYNC_TIMEOUT_SECONDS:.0f} s"
        is_inaccessible = self.state is NamespaceState.INACCESSIBLE
        self._fail(NamespaceState.INACCESSIBLE if is_inaccessible else NamespaceState.DELAYED, failure)

    async def _on_access_lost(self, failure: str) -> None:
        was_served = self.state is NamespaceState.SERVED
        for informer in self._cache.informers_of(self.name):
            informer.clear()
        self._fail(NamespaceState.INACCESSIBLE, failure)
        if was_served:
            await self._callbacks.on_access_lost(self)

    def _fail(self, state: NamespaceState, failure: str) -> None:
        if self.state not in _FAILED:
            log.warning(
                "a watched namespace is not served and is checked again; the others are served",
                extra={
                    "watched_namespace": self.label,
                    "error": failure,
                    "max_retry_seconds": _RECHECK_MAX_SECONDS,
                },
            )
        self._set_state(state, failure)

    def _set_state(self, state: NamespaceState, failure: str = "") -> None:
        self.state, self.failure = state, failure
        self._callbacks.on_state(self)


class WatchedNamespaces:
    """All watched namespaces.

    Args:
        names: names of the namespaces; empty: the whole cluster.
        on_workload_synced: awaited when the Deployments, ReplicaSets and pods of a namespace are listed.
        on_synced: called when all objects of a namespace are listed.
        on_access_lost: awaited before a namespace that was served is checked again.
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
        self._metrics = metrics
        self._changed = asyncio.Event()
        callbacks = _Callbacks(self._on_state, on_workload_synced, on_synced, on_access_lost)
        self._namespaces = {
            name: WatchedNamespace(kube, cache, name, callbacks) for name in tuple(names) or (None,)
        }
        for namespace in self._namespaces.values():
            self._on_state(namespace)

    @property
    def ready(self) -> bool:
        """Whether at least one namespace is served and every other one is served or has failed."""
        states = [namespace.state for namespace in self._namespaces.values()]
        return NamespaceState.SERVED in states and all(
            state is NamespaceState.SERVED or state in _FAILED for state in states
        )

    @property
    def failures(self) -> dict[str, str]:
        """The cause for each namespace that is not served."""
        return {
            namespace.label: namespace.failure
            for namespace in self._namespaces.values()
            if namespace.state in _FAILED
        }

    @property
    def served(self) -> tuple[str | None, ...]:
        """Names of the namespaces whose endpoints are reconciled."""
        return self._in_state(NamespaceState.SERVED)

    def serves(self, name: str) -> bool:
        namespace = self._namespaces.get(name) or self._namespaces.get(None)
        return namespace is not None and namespace.state is NamespaceState.SERVED

    async def run(self) -> None:
        """List and watch all namespaces until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for namespace in self._namespaces.values():
                tasks.create_task(namespace.run(), name=f"namespace-{namespace.label}")

    async def wait_until_ready(self) -> None:
        await self._wait_for(lambda: self.ready)

    async def wait_until_accessible(self) -> tuple[str | None, ...]:
        """Wait until all namespaces have been checked and one may be watched; return all that may be."""
        await self._wait_for(lambda: bool(self._accessible) and not self._in_state(NamespaceState.UNKNOWN))
        return self._accessible

    async def wait_for_other_than(self, names: tuple[str | None, ...]) -> None:
        """Wait until the namespaces that may be watched are no longer ``names``."""
        await self._wait_for(lambda: self._accessible != names)

    @property
    def _accessible(self) -> tuple[str | None, ...]:
        return self._in_state(*_ACCESSIBLE)

    def _in_state(self, *states: NamespaceState) -> tuple[str | None, ...]:
        return tuple(name for name, namespace in self._namespaces.items() if namespace.state in states)

    async def _wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def _on_state(self, namespace: WatchedNamespace) -> None:
        is_served = namespace.state is NamespaceState.SERVED
        self._metrics.namespaces.labels(namespace.label).set(is_served)
        self._changed.set()


async def _run_all(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run until one raises, then cancel and await the others.

    A TaskGroup that is cancelled while it waits for the others raises the error and drops the cancellation
    (Python 3.11), so that the caller would continue after SIGTERM.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
