"""What probing costs and finds, as Prometheus metrics (the guide, "Monitoring Impact").

One registry, shown twice: on the report port (``GET /metrics``), which answers while the engine starts or
stalls, and on Dynamo's system port, next to vLLM's and Dynamo's own.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vllmendpoint_api import Outcome, Verdict

from .prober import ProbeResult

__all__ = ["Metrics"]

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """``since_proof`` gives the seconds since the engine last finished a probe or a user's request."""

    def __init__(self, since_proof: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self._latency = Histogram(
            "vllmendpoint_probe_latency_seconds",
            "Time a probe took to its end, aborted ones included",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._probes = Counter(
            "vllmendpoint_probes", "Probes by outcome", ["outcome"], registry=self.registry
        )
        self._tokens = Counter(
            "vllmendpoint_probe_tokens", "Tokens that probes made the engine generate", registry=self.registry
        )
        self._verdict = Gauge(
            "vllmendpoint_verdict", "1 for the verdict in force", ["state"], registry=self.registry
        )
        Gauge(
            "vllmendpoint_seconds_since_proof_of_life",
            "Seconds since the engine last finished a probe or a user's request",
            registry=self.registry,
        ).set_function(since_proof)
        for outcome in Outcome:
            self._probes.labels(outcome.value)
        self.verdict(Verdict.STARTING)

    def probed(self, result: ProbeResult) -> None:
        self._latency.observe(result.latency)
        self._probes.labels(result.outcome.value).inc()
        self._tokens.inc(result.tokens)

    def verdict(self, verdict: Verdict) -> None:
        for state in Verdict:
            self._verdict.labels(state.value).set(1 if state is verdict else 0)

    def text(self) -> bytes:
        return generate_latest(self.registry)
