"""Prometheus metrics of the frontend's routes, on the report port."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vllmendpoint_api import KVEventsState, RouteState
from vllmendpoint_worker.process.clock import Clock

from .kv_events.state import CheckOutcome
from .kv_events.usage import TokenUsage
from .probing.routes import RouteOutcome
from .state import FrontendSnapshot

__all__ = ["RouteMetrics"]


class RouteMetrics:
    """``snapshot`` returns the current snapshot. It is called for each scrape, on the report server's
    thread.
    """

    def __init__(self, snapshot: Callable[[], FrontendSnapshot], clock: Clock) -> None:
        self._registry = CollectorRegistry()
        self._probes = Counter(
            "vllmendpoint_route_probes",
            "Probes of routes from this frontend to workers by outcome",
            ["outcome"],
            registry=self._registry,
        )
        for outcome in RouteOutcome:
            self._probes.labels(outcome.value)
        self._kv_checks = Counter(
            "vllmendpoint_kv_event_checks",
            "Checks whether the router receives the KV events of a worker, by outcome",
            ["outcome"],
            registry=self._registry,
        )
        self._client_tokens: TokenUsage | None = None
        self._registry.register(_RouteCollector(snapshot, clock))

    def record_probe(self, outcome: RouteOutcome) -> None:
        self._probes.labels(outcome.value).inc()

    def record_kv_check(self, outcome: CheckOutcome) -> None:
        self._kv_checks.labels(outcome.value).inc()

    def record_client_tokens(self, total: TokenUsage, own: TokenUsage) -> None:
        """``total``: of all requests; ``own``: of those that this process sent."""
        if self._client_tokens is None:
            self._registry.register(_TokenCollector(lambda: self._client_tokens or TokenUsage()))
        self._client_tokens = total.without(own, self._client_tokens or TokenUsage())

    def add_retries(self, retries: Callable[[], int | None]) -> None:
        """``retries`` returns the number of retries, or None if unknown."""
        self._registry.register(_RetryCollector(retries))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _TokenCollector(Collector):
    def __init__(self, tokens: Callable[[], TokenUsage]) -> None:
        self._tokens = tokens

    def collect(self) -> Iterable[Metric]:
        tokens = self._tokens()
        yield CounterMetricFamily(
            "vllmendpoint_prompt_tokens",
            "Tokens of the prompts of clients that this frontend has routed",
            value=tokens.prompt,
        )
        yield CounterMetricFamily(
            "vllmendpoint_cached_prompt_tokens",
            "Those of vllmendpoint_prompt_tokens that were in the KV cache of the selected worker",
            value=tokens.cached,
        )


class _RetryCollector(Collector):
    def __init__(self, retries: Callable[[], int | None]) -> None:
        self._retries = retries

    def collect(self) -> Iterable[Metric]:
        count = self._retries()
        if count is not None:
            yield CounterMetricFamily(
                "vllmendpoint_frontend_retries",
                "Retries that HAProxy counts: above 0 if requests were repeated",
                value=count,
            )


class _RouteCollector(Collector):
    def __init__(self, snapshot: Callable[[], FrontendSnapshot], clock: Clock) -> None:
        self._snapshot = snapshot
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        snapshot = self._snapshot()
        routes = snapshot.routes
        states = [route.state for route in routes]
        by_state = GaugeMetricFamily(
            "vllmendpoint_routes",
            "Routes from this frontend to discovered workers by state",
            labels=["state"],
        )
        for state in RouteState:
            by_state.add_metric([state.value], states.count(state))
        yield by_state
        if snapshot.kv_routing:
            events = [event.state for event in snapshot.kv_events.values()]
            kv_events = GaugeMetricFamily(
                "vllmendpoint_kv_event_routes",
                "Routes by whether the router receives the KV events of the worker",
                labels=["state"],
            )
            for kv_state in KVEventsState:
                kv_events.add_metric([kv_state.value], events.count(kv_state))
            yield kv_events
        age = GaugeMetricFamily(
            "vllmendpoint_seconds_since_route_answer",
            "Seconds since the last complete response of a worker to a probe of this frontend",
            labels=["instance_id"],
        )
        now = self._clock.monotonic()
        for route in routes:
            if route.last_answer is not None:
                age.add_metric([str(route.instance.id)], now - route.last_answer)
        yield age
