"""Defines the operator's Prometheus metrics. ``http_server`` serves them."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from vllmendpoint_api import ConditionStatus, Reason, VLLMEndpointStatus

__all__ = ["Metrics"]


class Metrics:
    """The operator's own metrics, in ``registry``, and the series of endpoints."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self.reconciles = Counter(
            "vllmendpoint_operator_reconcile_total", "Reconciles by result.", ["result"], registry=registry
        )
        self.reconcile_errors = Counter(
            "vllmendpoint_operator_reconcile_errors_total",
            "Reconciles that failed and are retried.",
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
            "Time an endpoint waited in the queue.",
            registry=registry,
            buckets=(0.001, 0.01, 0.1, 0.5, 1, 5, 30, 120),
        )
        self.queue_depth = Gauge(
            "vllmendpoint_operator_queue_depth", "Endpoints that wait in the queue.", registry=registry
        )
        self.requests = Counter(
            "vllmendpoint_operator_api_requests_total",
            "Requests to the API server. The writes are those with verb apply, create, update or delete.",
            ["verb", "resource", "code"],
            registry=registry,
        )
        self.leader = Gauge(
            "vllmendpoint_operator_leader",
            "1 while this replica leads and reconciles at least one watched namespace.",
            registry=registry,
        )
        self.namespaces = Gauge(
            "vllmendpoint_operator_namespace_served",
            "1 while a watched namespace is reconciled; * is the whole cluster.",
            ["watched_namespace"],
            registry=registry,
        )
        self.foreign: set[tuple[str, str]] = set()
        """(namespace, name) of the endpoints that another operator manages."""
        Gauge(
            "vllmendpoint_operator_foreign_endpoints",
            "Endpoints in watched namespaces that another operator manages.",
            registry=registry,
        ).set_function(lambda: len(self.foreign))
        self._endpoints = _EndpointSeries()

    def count_request(self, verb: str, resource: str, status: int) -> None:
        self.requests.labels(verb, resource, str(status)).inc()

    def set_endpoint(
        self, key: tuple[str, str], desired: int, status: VLLMEndpointStatus, *, desired_prefill: int = 0
    ) -> None:
        """Set the series of the endpoint ``key`` (namespace, name).

        ``desired``: ``spec.replicas``. ``desired_prefill``: desired number of prefill workers.
        """
        prefill = status.prefill
        self._endpoints.samples[key] = _EndpointSample(
            conditions=_shared(tuple((sys.intern(entry.type), entry.status) for entry in status.conditions)),
            replicas=(
                desired,
                status.replicas,
                status.ready_replicas,
                status.generating_replicas,
                status.routed_replicas,
            ),
            prefill=None
            if prefill is None
            else (
                desired_prefill,
                prefill.replicas,
                prefill.ready_replicas,
                prefill.generating_replicas,
            ),
            kv_events_missing=any(entry.reason == Reason.KV_EVENTS_MISSING for entry in status.conditions),
        )

    def remove_endpoint(self, key: tuple[str, str]) -> None:
        self._endpoints.samples.pop(key, None)
        self.foreign.discard(key)

    def exposition(self) -> Iterator[bytes]:
        """Iterate over all metrics in the Prometheus text format, in chunks."""
        yield generate_latest(self.registry)
        for chunk in self._endpoints.text():
            yield chunk.encode()


_Conditions = tuple[tuple[str, ConditionStatus], ...]


@lru_cache(maxsize=1024)
def _shared(conditions: _Conditions) -> _Conditions:
    """Return the cached tuple that equals ``conditions``, so that endpoints share one: it saves memory."""
    return conditions


@dataclass(frozen=True, slots=True)
class _EndpointSample:
    conditions: _Conditions
    replicas: tuple[int, int, int, int, int]
    """In the order of ``_STATES``."""
    prefill: tuple[int, int, int, int] | None
    """In the order of ``_PREFILL_STATES``; None without prefill workers."""
    kv_events_missing: bool


_STATES: Final = ("desired", "current", "ready", "generating", "routed")
"""Values of the label ``state`` of ``vllmendpoint_replicas``."""
_PREFILL_STATES: Final = _STATES[:-1]
"""Those of ``vllmendpoint_prefill_replicas``."""


class _EndpointSeries:
    """The series of endpoints, rendered as text at each scrape.

    As samples of ``prometheus_client``, the series of 1,000 endpoints took 21 MB per scrape (measured), which
    the allocator does not return to the system.
    """

    def __init__(self) -> None:
        self.samples: dict[tuple[str, str], _EndpointSample] = {}

    def text(self) -> Iterator[str]:
        """Iterate over chunks. Labels are not escaped: names in Kubernetes contain no quote or backslash."""
        samples = [
            (f'name="{name}",namespace="{namespace}"', sample)
            for (namespace, name), sample in self.samples.items()
        ]
        yield _header("vllmendpoint_condition", "1 for the status that a condition of an endpoint has.")
        for labels, sample in samples:
            yield "".join(
                f'vllmendpoint_condition{{condition="{kind}",{labels},status="{status}"}} '
                f"{float(status == current)}\n"
                for kind, current in sample.conditions
                for status in ConditionStatus
            )
        yield _header("vllmendpoint_replicas", f"Replicas of an endpoint by state: {', '.join(_STATES)}.")
        for labels, sample in samples:
            yield "".join(
                f'vllmendpoint_replicas{{{labels},state="{state}"}} {float(count)}\n'
                for state, count in zip(_STATES, sample.replicas, strict=True)
            )
        yield _header(
            "vllmendpoint_prefill_replicas",
            f"Prefill replicas of an endpoint by state: {', '.join(_PREFILL_STATES)}.",
        )
        for labels, sample in samples:
            if sample.prefill is None:
                continue
            yield "".join(
                f'vllmendpoint_prefill_replicas{{{labels},state="{state}"}} {float(count)}\n'
                for state, count in zip(_PREFILL_STATES, sample.prefill, strict=True)
            )
        yield _header(
            "vllmendpoint_kv_events_missing",
            "1 if a frontend that routes by KV caches does not receive the KV events of a ready replica.",
        )
        for labels, sample in samples:
            yield f"vllmendpoint_kv_events_missing{{{labels}}} {float(sample.kv_events_missing)}\n"


def _header(name: str, text: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} gauge\n"
