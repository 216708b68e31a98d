"""The PodDisruptionBudget: how many workers a node drain may evict at a time."""

from typing import Any, Final

from vllmendpoint_operator.components import WORKER, min_ready_replicas, workers_name
from vllmendpoint_operator.observe.snapshot import Endpoint

__all__ = ["budget_name", "budgets"]

_FEWEST: Final = 2
"""With one replica a budget either blocks every drain for ever or protects nothing."""


def budget_name(endpoint: Endpoint) -> str:
    return workers_name(endpoint)


def budgets(endpoint: Endpoint) -> list[dict[str, Any]]:
    """The workers' PodDisruptionBudget; none for fewer than two.

    A number, not the strategy's percentage, which a budget would round up. At least one: where the strategy
    lets none be down (it surges instead), a drain could never end, since an eviction makes no surge. Workers
    that are not ready protect nobody and may always be evicted (``AlwaysAllow``).
    """
    replicas = endpoint.spec.replicas
    if replicas < _FEWEST:
        return []
    down = max(1, replicas - min_ready_replicas(replicas, endpoint.spec.strategy.rolling_update))
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": budget_name(endpoint), "labels": endpoint.labels(WORKER)},
            "spec": {
                "maxUnavailable": down,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": endpoint.selector(WORKER)},
            },
        }
    ]
