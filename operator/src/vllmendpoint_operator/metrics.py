"""Prometheus metrics, and the operator's own health."""

import asyncio
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from vllmendpoint_api import ConditionStatus, VLLMEndpointStatus

__all__ = ["Metrics", "serve"]


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self.reconciles = Counter(
            "vllmendpoint_operator_reconcile_total", "Reconciles by result.", ["result"], registry=registry
        )
        self.reconcile_errors = Counter(
            "vllmendpoint_operator_reconcile_errors_total",
            "Reconciles that failed and are tried again.",
            registry=registry,
        )
        self.reconcile_seconds = Histogram(
            "vllmendpoint_operator_reconcile_duration_seconds",
            "Duration of a reconcile.",
            registry=registry,
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30),
        )
        self.queue_seconds = Histogram(
            "vllmendpoint_operator_queue_duration_seconds",
            "Time a key waited in the queue.",
            registry=registry,
            buckets=(0.001, 0.01, 0.1, 0.5, 1, 5, 30, 120),
        )
        self.queue_depth = Gauge("vllmendpoint_operator_queue_depth", "Keys that wait.", registry=registry)
        self.requests = Counter(
            "vllmendpoint_operator_api_requests_total",
            "Requests to the API server. The writes are those with verb apply, create, update or delete.",
            ["verb", "resource", "code"],
            registry=registry,
        )
        self.leader = Gauge(
            "vllmendpoint_operator_leader",
            "1 while this replica leads, and reconciles in one watched namespace at least.",
            registry=registry,
        )
        self.namespaces = Gauge(
            "vllmendpoint_operator_namespace_served",
            "1 while a watched namespace is served; * is the whole cluster.",
            ["watched_namespace"],
            registry=registry,
        )
        self.foreign: set[tuple[str, str]] = set()
        """Endpoints that another operator manages."""
        Gauge(
            "vllmendpoint_operator_foreign_endpoints",
            "Endpoints in watched namespaces that another operator manages.",
            registry=registry,
        ).set_function(lambda: len(self.foreign))
        self._endpoints = _Endpoints()

    def request(self, verb: str, resource: str, status: int) -> None:
        self.requests.labels(verb, resource, str(status)).inc()

    def endpoint(self, key: tuple[str, str], desired: int, status: VLLMEndpointStatus) -> None:
        """Show an endpoint's conditions and replicas, until it is forgotten."""
        self._endpoints.shown[key] = _Shown(
            conditions=_same(tuple((sys.intern(entry.type), entry.status) for entry in status.conditions)),
            replicas=(desired, status.replicas, status.ready_replicas, status.generating_replicas),
        )

    def forget(self, key: tuple[str, str]) -> None:
        self._endpoints.shown.pop(key, None)
        self.foreign.discard(key)

    def exposition(self) -> Iterator[bytes]:
        """All of them in Prometheus' text format, in parts."""
        yield generate_latest(self.registry)
        for part in self._endpoints.text():
            yield part.encode()


_Conditions = tuple[tuple[str, ConditionStatus], ...]


@lru_cache(maxsize=1024)
def _same(conditions: _Conditions) -> _Conditions:
    """One for all endpoints that are alike: most are."""
    return conditions


@dataclass(frozen=True, slots=True)
class _Shown:
    conditions: _Conditions
    replicas: tuple[int, int, int, int]


class _Endpoints:
    """As text, made when it is asked for: as the client library's samples those of 1,000 endpoints took 21 MB
    at each scrape, measured, which the allocator keeps.
    """

    def __init__(self) -> None:
        self.shown: dict[tuple[str, str], _Shown] = {}

    def text(self) -> Iterator[str]:
        """In parts. Namespaces, names and conditions have no character that has to be escaped."""
        shown = [(f'name="{name}",namespace="{space}"', found) for (space, name), found in self.shown.items()]
        yield _family("vllmendpoint_condition", "1 for the status that a condition of an endpoint has.")
        for where, endpoint in shown:
            yield "".join(
                f'vllmendpoint_condition{{condition="{kind}",{where},status="{status}"}} '
                f"{float(status == current)}\n"
                for kind, current in endpoint.conditions
                for status in ConditionStatus
            )
        states = ("desired", "current", "ready", "generating")
        yield _family("vllmendpoint_replicas", f"Replicas of an endpoint by state: {', '.join(states)}.")
        for where, endpoint in shown:
            yield "".join(
                f'vllmendpoint_replicas{{{where},state="{state}"}} {float(count)}\n'
                for state, count in zip(states, endpoint.replicas, strict=True)
            )


def _family(name: str, told: str) -> str:
    return f"# HELP {name} {told}\n# TYPE {name} gauge\n"


def _listener(address: str, port: int) -> socket.socket:
    """On all addresses of both families where ``address`` is empty or ``::``. Raises OSError."""
    bare = address.strip().removeprefix("[").removesuffix("]")
    if bare not in ("", "::"):
        family = socket.AF_INET6 if ":" in bare else socket.AF_INET
        return socket.create_server((bare, port), family=family)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


async def serve(
    metrics: Metrics, ready: Callable[[], bool], *, address: str, metrics_port: int, health_port: int
) -> list[web.AppRunner]:
    """``/metrics`` on one port; ``/healthz`` and ``/readyz`` on the other. Clean the runners up."""

    async def exposition(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE_LATEST})
        await response.prepare(request)
        for part in metrics.exposition():
            await response.write(part)
            await asyncio.sleep(0)  # a thousand endpoints' in a row would hold up the lease
        return response

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if ready():
            return web.Response(text="ok\n")
        return web.Response(status=503, text="no watched namespace is served yet; the log names the cause\n")

    runners = []
    for port, routes in (
        (metrics_port, [web.get("/metrics", exposition)]),
        (health_port, [web.get("/healthz", healthz), web.get("/readyz", readyz)]),
    ):
        app = web.Application()
        app.add_routes(routes)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.SockSite(runner, _listener(address, port)).start()
        runners.append(runner)
    return runners
