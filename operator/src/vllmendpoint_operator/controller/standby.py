"""Keeps a leader's caches filled while another replica leads."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.kube.client import Kube
from vllmendpoint_operator.metrics import Metrics

from .watched_namespaces import WatchedNamespaces

__all__ = ["Standby"]


class Standby:
    """Proves that this replica could lead: that it has the permissions and the memory that a leader needs.

    A rollout replaces the leader only when its successor is ready. The caches are dropped at a change of
    leaders, because until then the other replica may have written objects that they do not hold yet.
    """

    def __init__(self, kube: Kube, metrics: Metrics, namespaces: Iterable[str]) -> None:
        self._kube = kube
        self._metrics = metrics
        self._names = tuple(namespaces)
        self._namespaces: WatchedNamespaces | None = None

    @property
    def ready(self) -> bool:
        return self._namespaces is not None and self._namespaces.ready

    @contextlib.asynccontextmanager
    async def fill_caches(self) -> AsyncIterator[None]:
        cache = Cache(self._kube, self._names, on_change=lambda *_: None, on_reference_change=lambda *_: None)
        self._namespaces = WatchedNamespaces(self._kube, cache, self._metrics, self._names)
        try:
            async with asyncio.TaskGroup() as tasks:
                filling = tasks.create_task(self._namespaces.run(), name="standby")
                yield
                filling.cancel()
        finally:
            self._namespaces = None
