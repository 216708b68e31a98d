"""Publishes the status of an endpoint: metrics, the status itself within its rate limit, and Events."""

from collections.abc import Callable

from vllmendpoint_api import VLLMEndpointStatus
from vllmendpoint_operator.components import worker_pools
from vllmendpoint_operator.kube.client import Object
from vllmendpoint_operator.kube.object_meta import Key
from vllmendpoint_operator.metrics import Metrics
from vllmendpoint_operator.observe.snapshot import Endpoint

from .event_recorder import EventRecorder
from .events import condition_events, handler_events
from .status_write_limiter import WRITE_INTERVAL_SECONDS, StatusWriteLimiter, is_urgent
from .status_writer import StatusWriter

__all__ = ["StatusPublisher"]


class StatusPublisher:
    """Publishes the statuses of all endpoints; each has its own rate limit.

    Args:
        may_write: whether this operator may still write for an endpoint.
        operator: value of ``status.operator``.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self,
        *,
        writer: StatusWriter,
        recorder: EventRecorder,
        metrics: Metrics,
        may_write: Callable[[Endpoint], bool],
        operator: str,
        clock: Callable[[], float],
    ) -> None:
        self._writer = writer
        self._recorder = recorder
        self._metrics = metrics
        self._may_write = may_write
        self._operator = operator
        self._clock = clock
        self._limiters: dict[Key, StatusWriteLimiter] = {}
        """Endpoint -> limiter; none before the first write."""

    async def publish(self, obj: Object, endpoint: Endpoint, status: VLLMEndpointStatus) -> float | None:
        """Write the status if it has changed. ``obj``: the version that ``endpoint`` was parsed from.

        Return None if nothing remains to be written; otherwise the seconds after which to reconcile again,
        because the write is delayed or conflicts.
        """
        status = status.model_copy(update={"operator": self._operator})
        workers, *prefill = worker_pools(endpoint)
        self._metrics.set_endpoint(
            endpoint.key, workers.replicas, status, desired_prefill=sum(pool.replicas for pool in prefill)
        )
        if endpoint.status is not None and status == endpoint.status:
            return None
        now = self._clock()
        limiter = self._limiters.get(endpoint.key) or StatusWriteLimiter(now - WRITE_INTERVAL_SECONDS)
        delay = limiter.delay(now, urgent=is_urgent(endpoint.status, status))
        if delay > 0:
            return delay
        if not self._may_write(endpoint):
            return None
        requeue_after = await self._writer.write(obj, status.wire())
        if requeue_after is not None or not self._may_write(endpoint):
            return requeue_after
        limiter.record_write(now)
        self._limiters[endpoint.key] = limiter
        old_conditions = endpoint.status.conditions if endpoint.status is not None else ()
        events = handler_events(endpoint.status, status) + condition_events(old_conditions, status.conditions)
        await self._recorder.record(endpoint, events)
        return None

    def forget(self, key: Key) -> None:
        self._metrics.remove_endpoint(key)
        self._limiters.pop(key, None)
        self._writer.forget(key)
