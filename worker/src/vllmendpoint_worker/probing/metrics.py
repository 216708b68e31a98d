"""Prometheus metrics of probing.

One registry, exposed on the report port (``GET /metrics``), which answers while the engine starts or stalls,
and on Dynamo's system port next to the metrics of vLLM and Dynamo.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vllmendpoint_api import Outcome, Verdict

from .probe import ProbeResult

__all__ = ["ProbeMetrics"]

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class ProbeMetrics:
    """``seconds_since_proof``: seconds since the engine last finished a probe or a user's request."""

    def __init__(self, seconds_since_proof: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self._latency = Histogram(
            "vllmendpoint_probe_latency_seconds",
            "Time from the start of a probe to its end, including aborted probes",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._probes = Counter(
            "vllmendpoint_probes", "Probes by outcome", ["outcome"], registry=self.registry
        )
        self._tokens = Counter(
            "vllmendpoint_probe_tokens", "Tokens generated for probes", registry=self.registry
        )
        self._verdict = Gauge(
            "vllmendpoint_verdict", "1 for the current verdict, else 0", ["state"], registry=self.registry
        )
        Gauge(
            "vllmendpoint_seconds_since_proof_of_life",
            "Seconds since the engine last finished a probe or a user's request",
            registry=self.registry,
        ).set_function(seconds_since_proof)
        for outcome in Outcome:
            self._probes.labels(outcome.value)
        self.set_verdict(Verdict.STARTING)

    def record_probe(self, result: ProbeResult) -> None:
        self._latency.observe(result.latency)
        self._probes.labels(result.outcome.value).inc()
        self._tokens.inc(result.tokens)

    def set_verdict(self, verdict: Verdict) -> None:
        for state in Verdict:
            self._verdict.labels(state.value).set(1 if state is verdict else 0)

    def text(self) -> bytes:
        return generate_latest(self.registry)
