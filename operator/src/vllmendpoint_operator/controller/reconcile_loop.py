"""Takes keys from the work queue and reconciles them; retries with backoff; counts the results."""

import asyncio
import logging
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

from vllmendpoint_operator.errors import KubeError, RestartRequired
from vllmendpoint_operator.kube.object_meta import Key
from vllmendpoint_operator.logs import reconciling
from vllmendpoint_operator.metrics import Metrics

from .queue import WorkQueue

__all__ = ["ReconcileLoop"]

log = logging.getLogger(__name__)


class _Reconciler(Protocol):
    async def reconcile(self, key: Key) -> float | None: ...


class ReconcileLoop:
    """Runs until cancelled. Several of them share one queue.

    Args:
        is_suspended: whether a key must not be reconciled now; it is added again when that changes.
    """

    def __init__(
        self,
        queue: WorkQueue[Key],
        reconciler: _Reconciler,
        metrics: Metrics,
        *,
        is_suspended: Callable[[Key], bool] = lambda key: False,
    ) -> None:
        self._queue = queue
        self._reconciler = reconciler
        self._metrics = metrics
        self._is_suspended = is_suspended
        metrics.queue_depth.set_function(lambda: len(queue))

    async def run(self) -> None:
        while True:
            key, waited = await self._queue.get()
            self._metrics.queue_seconds.observe(waited)
            if self._is_suspended(key):
                self._queue.done(key)
            else:
                with reconciling(key):
                    await self._reconcile(key)
            # A reconcile without requests never yields to the event loop. A thousand of them in a row would
            # delay the renewal of the lease.
            await asyncio.sleep(0)

    async def _reconcile(self, key: Key) -> None:
        started = perf_counter()
        cooldown = 0.0
        try:
            requeue_after = await self._reconciler.reconcile(key)
        except RestartRequired:
            raise
        except KubeError as error:
            cooldown = error.retry_after or 0.0
            delay = max(self._queue.add_rate_limited(key), cooldown)
            log.warning(
                "the reconcile failed and is retried",
                extra={"error": str(error), "retry_seconds": round(delay, 1)},
            )
            self._count_failure()
        except Exception:
            # A defect must not stop the reconciles of other endpoints.
            delay = self._queue.add_rate_limited(key)
            log.exception(
                "the reconcile failed because of a defect of the operator and is retried",
                extra={"retry_seconds": round(delay, 1)},
            )
            self._count_failure()
        else:
            self._queue.reset_backoff(key)
            self._metrics.reconciles.labels("success").inc()
            if requeue_after is not None:
                self._queue.add_after(key, requeue_after)
        finally:
            self._metrics.reconcile_seconds.observe(perf_counter() - started)
            self._queue.done(key, cooldown=cooldown)

    def _count_failure(self) -> None:
        self._metrics.reconciles.labels("error").inc()
        self._metrics.reconcile_errors.inc()
