"""Checks regularly for each route whether the router receives the worker's KV events.

It runs beside :mod:`.prober`: a check uses the engine, so it may take long, and must not delay a probe.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from vllmendpoint_api import KVEventsState, RouteState, Stage
from vllmendpoint_worker.frontend.discovery import Instance
from vllmendpoint_worker.frontend.metrics import RouteMetrics
from vllmendpoint_worker.frontend.probing.probe import Client, RequestForm
from vllmendpoint_worker.frontend.probing.routes import attempts
from vllmendpoint_worker.frontend.state import FrontendState
from vllmendpoint_worker.process.clock import Clock

from .check import KVCheck, run_check
from .state import CheckEnd, CheckOutcome, KVEvents, after_check, next_check_at, with_source
from .usage import TokenUsage, block_sizes, own_tokens, ranks, router_tokens

__all__ = ["KVEventChecker", "Target"]

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.25
MAX_CONCURRENT_CHECKS: Final = 2
METRICS_SECONDS: Final = 10.0
"""Interval between reads of Dynamo's metrics."""
METRICS_TIMEOUT_SECONDS: Final = 5.0
_GENERATES: Final = (RequestForm.CHAT, RequestForm.COMPLETION)
_MAX_BLOCK_SIZE: Final = 8192


@dataclass(frozen=True, slots=True)
class Target:
    """The model, and the form of request that a worker has answered."""

    model: str
    form: RequestForm | None


class KVEventChecker:
    """``run`` is one task; its owner cancels and awaits it. ``target`` returns the current target."""

    def __init__(
        self,
        client: Client,
        state: FrontendState,
        target: Callable[[], Target],
        metrics: RouteMetrics,
        clock: Clock,
    ) -> None:
        self._client = client
        self._state = state
        self._target = target
        self._metrics = metrics
        self._clock = clock
        self._events: dict[Instance, KVEvents] = {}
        self._running: dict[Instance, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_CHECKS)
        self._block_sizes: dict[str, int] = {}
        self._ranks: dict[int, tuple[int, ...]] = {}
        """Data-parallel ranks by instance ID."""
        self._own = TokenUsage()
        """Of the probes and checks of this process."""

    async def run(self) -> None:
        """Check until cancelled. Raises the exception of a check that fails unexpectedly."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read_metrics_forever(), name="read-metrics")
            while True:
                self._update()
                for instance in self._due():
                    self._running[instance] = tasks.create_task(self._check(instance), name="check-kv-events")
                await asyncio.sleep(TICK_SECONDS)

    def count_own_request(self, response: Any) -> None:
        """Exclude a request of this process from the clients' tokens. ``response``: its JSON."""
        if size := self._block_size(self._target().model):
            self._own += own_tokens(response, size)

    async def _read_metrics_forever(self) -> None:
        while True:
            own = self._own
            with suppress(OSError, ValueError):
                response = await self._client.get("/metrics", METRICS_TIMEOUT_SECONDS)
                text = response.body.decode(errors="replace")
                self._block_sizes, self._ranks = block_sizes(text), ranks(text)
                self._metrics.record_client_tokens(router_tokens(text), own)
            await asyncio.sleep(METRICS_SECONDS if self._block_sizes else 1.0)

    def _update(self) -> None:
        """Take the routes that answer, and the sources of events, from the current snapshot."""
        snapshot, now = self._state.snapshot, self._clock.monotonic()
        routes = {route.instance: route for route in snapshot.routes}
        events = {}
        for instance, route in routes.items():
            known = self._events.get(instance)
            if known is None and route.state is not RouteState.ANSWERED:
                continue
            known = known or KVEvents(discovered=now, since=now)
            events[instance] = with_source(known, instance in snapshot.discovery.kv_sources, now)
        self._publish(events)

    def _due(self) -> list[Instance]:
        target = self._target()
        if self._state.stage is not Stage.SERVING or not target.model or target.form not in _GENERATES:
            return []
        now = self._clock.monotonic()
        answering = {
            route.instance for route in self._state.snapshot.routes if route.state is RouteState.ANSWERED
        }
        return [
            instance
            for instance, events in self._events.items()
            if instance in answering
            and instance not in self._running
            and (at := next_check_at(events)) is not None
            and now >= at
        ]

    async def _check(self, instance: Instance) -> None:
        try:
            async with self._slots:
                await self._run_check(instance)
        finally:
            del self._running[instance]

    async def _run_check(self, instance: Instance) -> None:
        target = self._target()
        if target.form is None or self._state.stage is not Stage.SERVING:
            return
        size = self._block_size(target.model)
        if not size:
            # Without a model card there is no route either, and the next tick tries again.
            await asyncio.sleep(1.0)
            return
        check = KVCheck(
            model=target.model,
            form=target.form,
            instance_id=instance.id,
            block_size=size,
            attempts=attempts(self._state.snapshot.discovery.share(instance.namespace)),
        )
        end = await self._check_ranks(check)
        self._metrics.record_kv_check(end.outcome)
        if end.outcome is CheckOutcome.FAILED:
            logger.info(
                "A check of KV events was not answered: instance_id=%d message=%s", instance.id, end.message
            )
        if (before := self._events.get(instance)) is not None:
            self._publish({**self._events, instance: after_check(before, end)})

    async def _check_ranks(self, check: KVCheck) -> CheckEnd:
        """The end of the first check that did not succeed, or else of the last."""
        numbers = self._ranks.get(check.instance_id) or (0,)
        for rank in numbers:
            end = await run_check(
                self._client, replace(check, rank=rank), self._clock, self.count_own_request
            )
            if end.outcome is not CheckOutcome.RECEIVED:
                break
        if end.message and len(numbers) > 1:
            end = replace(end, message=f"Data-parallel rank {rank}: {end.message}")
        return end

    def _block_size(self, model: str) -> int:
        """Of the model's KV cache; 0 if it is unknown."""
        size = self._block_sizes.get(model) or next(iter(self._block_sizes.values()), 0)
        return size if size <= _MAX_BLOCK_SIZE else 0

    def _publish(self, events: Mapping[Instance, KVEvents]) -> None:
        if events == self._events:
            return
        _log_changes(self._events, events)
        self._events = dict(events)
        self._state.update(kv_events=dict(events))


def _log_changes(before: Mapping[Instance, KVEvents], after: Mapping[Instance, KVEvents]) -> None:
    for instance, events in after.items():
        old = before.get(instance)
        if old is not None and old.state is events.state:
            continue
        level = logging.WARNING if events.state is KVEventsState.MISSING else logging.INFO
        logger.log(
            level,
            "KV events changed: instance_id=%d from=%s to=%s message=%s",
            instance.id,
            old.state if old else "-",
            events.state,
            events.message,
        )
