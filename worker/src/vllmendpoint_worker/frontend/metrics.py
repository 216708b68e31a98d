"""Prometheus metrics of the frontend's routes, on the report port."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vllmendpoint_api import RouteState
from vllmendpoint_worker.process.clock import Clock

from .routes import Route, RouteOutcome

__all__ = ["RouteMetrics"]


class RouteMetrics:
    """``routes`` returns the current routes. It is called for each scrape, on the report server's thread."""

    def __init__(self, routes: Callable[[], Iterable[Route]], clock: Clock) -> None:
        self._registry = CollectorRegistry()
        self._probes = Counter(
            "vllmendpoint_route_probes",
            "Probes of routes from this frontend to workers by outcome",
            ["outcome"],
            registry=self._registry,
        )
        for outcome in RouteOutcome:
            self._probes.labels(outcome.value)
        self._registry.register(_RouteCollector(routes, clock))

    def record_probe(self, outcome: RouteOutcome) -> None:
        self._probes.labels(outcome.value).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _RouteCollector(Collector):
    def __init__(self, routes: Callable[[], Iterable[Route]], clock: Clock) -> None:
        self._routes = routes
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        routes = list(self._routes())
        states = [route.state for route in routes]
        by_state = GaugeMetricFamily(
            "vllmendpoint_routes",
            "Routes from this frontend to discovered workers by state",
            labels=["state"],
        )
        for state in RouteState:
            by_state.add_metric([state.value], states.count(state))
        yield by_state
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
