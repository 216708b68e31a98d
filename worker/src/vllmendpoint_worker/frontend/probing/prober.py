"""Polls what the frontend has discovered, probes each route, and publishes the result.

The client, the clock and the settings come through the constructor, so that tests need no network.
:mod:`.routes` decides the states and when a probe is due.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from vllmendpoint_api import ModelType, RouteState, Stage
from vllmendpoint_worker.errors import ProbeUnavailableError
from vllmendpoint_worker.frontend.discovery import (
    Discovery,
    Instance,
    Scope,
    accepted_workers,
    instances,
    kv_sources,
    missing_types,
    models,
)
from vllmendpoint_worker.frontend.kv_events.checker import KVEventChecker, Target
from vllmendpoint_worker.frontend.metrics import RouteMetrics
from vllmendpoint_worker.frontend.settings import SettingsFile
from vllmendpoint_worker.frontend.state import FrontendState
from vllmendpoint_worker.process.clock import Clock

from .probe import Client, Probe, RequestForm, forms_to_try, run_probe
from .routes import Route, attempts, next_probe_at, partner, readiness, route_after_probe, update_routes

__all__ = ["RouteProber"]

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.1
POLL_SECONDS: Final = 1.0
POLL_SECONDS_UNREADY: Final = 0.25
"""Interval between polls while the frontend is not ready, because a new worker makes it ready."""

GET_TIMEOUT_SECONDS: Final = 2.0
SLACK_SECONDS: Final = 1.0
"""A probe may take this much longer than ``timeoutSeconds``: the worker may first wait for its own probe."""

UNRESPONSIVE_SECONDS: Final = 60.0
"""The process exits if its HTTP server has not responded for this long."""

MAX_CONCURRENT_PROBES: Final = 16

_HTTP_ERRORS: Final = (OSError, ValueError)

_STARTING: Final = (
    "The frontend is starting: Dynamo starts its HTTP server after it has listed the objects in which it "
    "discovers workers."
)
_UNRESPONSIVE: Final = (
    f"The frontend's HTTP server does not respond. The pod restarts after {UNRESPONSIVE_SECONDS:g} s."
)


class RouteProber:
    """``run`` is one task; its owner cancels and awaits it.

    ``model``: the name that clients send; if it is empty, the first model that the frontend serves.
    ``kv_events``: whether the router selects workers by their KV events, which are then checked.
    ``on_unresponsive`` is called if the HTTP server has not responded for ``UNRESPONSIVE_SECONDS``.
    """

    def __init__(
        self,
        client: Client,
        state: FrontendState,
        settings: SettingsFile,
        *,
        scope: Scope,
        model: str = "",
        model_type: ModelType | None = None,
        kv_events: bool = False,
        on_unresponsive: Callable[[], None],
        clock: Clock | None = None,
    ) -> None:
        self._client = client
        self._state = state
        self._settings = settings
        self._scope = scope
        self._model = model
        self._model_type = model_type
        self._on_unresponsive = on_unresponsive
        self._clock = clock or Clock()
        self.metrics = RouteMetrics(lambda: state.snapshot, self._clock)
        self._kv_checker = None
        if kv_events:
            self._kv_checker = KVEventChecker(client, state, self._target, self.metrics, self._clock)
            state.update(kv_routing=True)
        self._routes: dict[Instance, Route] = {}
        self._discovery = Discovery()
        self._form: RequestForm | None = None
        self._tasks = asyncio.TaskGroup()
        self._in_flight: dict[Instance, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_PROBES)
        self._failed_polls = 0
        self._last_response: float | None = None
        """None until the HTTP server has responded for the first time."""

    async def run(self) -> None:
        """Poll and probe until cancelled. Raises the exception of a task that fails unexpectedly."""
        async with self._tasks:
            self._tasks.create_task(self._poll_forever(), name="poll-discovery")
            self._tasks.create_task(self._probe_forever(), name="schedule-probes")
            if self._kv_checker is not None:
                self._tasks.create_task(self._kv_checker.run(), name="check-kv-events")

    async def probe_all(self) -> dict[str, Any]:
        """Probe all routes now. Raises ProbeUnavailableError if no probe can run."""
        if not self._can_probe():
            raise ProbeUnavailableError("probing is off, or the frontend does not serve")
        if tasks := [self._start(route) for route in self._routes.values()]:
            await asyncio.wait(tasks)
        report = self._state.report().wire()
        return {"ready": report["ready"], "routes": report.get("routes", [])}

    async def _poll_forever(self) -> None:
        while True:
            began = self._clock.monotonic()
            self._state.update(rules=self._settings.reload())
            try:
                discovery = await self._poll()
            except _HTTP_ERRORS as error:
                self._on_failed_poll(error)
            else:
                self._on_discovery(discovery)
            self._publish()
            interval = POLL_SECONDS if self._state.readiness()[0] else POLL_SECONDS_UNREADY
            await asyncio.sleep(max(interval - (self._clock.monotonic() - began), TICK_SECONDS))

    async def _poll(self) -> Discovery:
        """Raises OSError or ValueError if the HTTP server does not respond."""
        health = await self._client.get("/health", GET_TIMEOUT_SECONDS)
        served = models((await self._client.get("/v1/models", GET_TIMEOUT_SECONDS)).json())
        model = self._model_name(served)
        ready = None
        if model:
            path = f"/v1/models/{quote(model, safe='')}/ready"
            ready = (await self._client.get(path, GET_TIMEOUT_SECONDS)).json()
        body = health.json()
        sources = kv_sources(body, self._scope) if self._kv_checker is not None else frozenset()
        found = instances(body, self._scope)
        return Discovery(found, served, accepted_workers(ready), missing_types(ready), sources)

    def _model_name(self, served: tuple[str, ...]) -> str:
        return self._model or next(iter(served), "")

    def _target(self) -> Target:
        return Target(self._model_name(self._discovery.models), self._form)

    def _on_discovery(self, discovery: Discovery) -> None:
        now = self._clock.monotonic()
        self._failed_polls = 0
        self._last_response = now
        self._discovery = discovery
        self._routes = update_routes(self._routes, discovery, self._settings.rules, now)
        self._state.update(started=True, answering=True)
        self._state.enter_stage(Stage.SERVING)

    def _on_failed_poll(self, error: Exception) -> None:
        self._failed_polls += 1
        if self._last_response is None:
            return  # it is starting
        if self._failed_polls >= self._settings.rules.failure_threshold and self._state.snapshot.answering:
            logger.warning("The HTTP server does not respond: error=%s", type(error).__name__)
            self._state.update(answering=False)
        if self._clock.monotonic() - self._last_response >= UNRESPONSIVE_SECONDS:
            self._on_unresponsive()

    async def _probe_forever(self) -> None:
        while True:
            if self._can_probe():
                now = self._clock.monotonic()
                for route in self._routes.values():
                    due = next_probe_at(route, self._settings.rules, _phase(route.instance))
                    if due is not None and now >= due:
                        self._start(route)
            await asyncio.sleep(TICK_SECONDS)

    def _can_probe(self) -> bool:
        """During the drain no new probe starts, so that only clients' requests are in flight."""
        return (
            self._settings.rules.probing
            and self._state.stage is Stage.SERVING
            and bool(self._model_name(self._discovery.models))
        )

    def _start(self, route: Route) -> "asyncio.Task[None]":
        """The probe of the route that is in flight, or a new one."""
        instance = route.instance
        if (running := self._in_flight.get(instance)) is not None:
            return running
        task = self._tasks.create_task(self._probe(instance), name="probe-route")
        self._in_flight[instance] = task
        task.add_done_callback(lambda _: self._in_flight.pop(instance, None))
        return task

    async def _probe(self, instance: Instance) -> None:
        async with self._slots:
            if not self._can_probe():
                return
            rules = self._settings.rules
            if (route := self._routes.get(instance)) is None:
                return
            other = partner(route, self._routes.values())
            decode, prefill = (other, instance) if instance.prefill else (instance, other)
            if decode is None:
                return
            probe = Probe(
                model=self._model_name(self._discovery.models),
                instance_id=decode.id,
                prefill_id=None if prefill is None else prefill.id,
                forms=forms_to_try(self._model_type, self._form),
                attempts=attempts(self._discovery.share(instance.namespace)),
                attempts_without_header=attempts(1.0 / max(self._discovery.total_accepted, 1)),
                timeout=rules.timeout + SLACK_SECONDS,
                answers_first=self._form is not None,
                kv_routing=self._kv_checker is not None,
            )
            end, form = await run_probe(self._client, probe, self._clock, self._count)
        self._form = form or self._form
        self.metrics.record_probe(end.outcome)
        before = self._routes.get(instance)
        if before is None or not self._settings.rules.probing:
            return  # the worker has left, or probing was disabled
        after = route_after_probe(before, replace(end, partner=other), rules.failure_threshold)
        self._routes = {**self._routes, instance: after}
        self._publish()

    def _count(self, response: Any) -> None:
        if self._kv_checker is not None:
            self._kv_checker.count_own_request(response)

    def _publish(self) -> None:
        rules = self._settings.rules
        reachable, reason = readiness(self._routes.values(), self._discovery, rules)
        if not self._state.snapshot.answering:
            reason = _STARTING if self._last_response is None else _UNRESPONSIVE
        _log_changes(self._state.snapshot.routes, self._routes)
        self._state.update(
            rules=rules,
            discovery=self._discovery,
            routes=tuple(self._routes.values()),
            reachable=reachable,
            message=reason,
        )


def _phase(instance: Instance) -> float:
    """Position of the route's probes in the period, from 0 to 1. Instance IDs are random."""
    return (instance.id % 1009) / 1009


def _log_changes(before: tuple[Route, ...], routes: dict[Instance, Route]) -> None:
    known = {route.instance: route for route in before}
    for instance in known.keys() - routes.keys():
        logger.info("A worker has left: instance_id=%d namespace=%s", instance.id, instance.namespace)
    for instance, route in routes.items():
        old = known.get(instance)
        if old is not None and old.state is route.state:
            continue
        level = logging.INFO if route.state in (RouteState.PENDING, RouteState.ANSWERED) else logging.WARNING
        logger.log(
            level,
            "Route changed: instance_id=%d namespace=%s from=%s to=%s message=%s",
            instance.id,
            instance.namespace,
            old.state if old else "-",
            route.state,
            route.message,
        )
