"""The PodDisruptionBudget: how many workers a node drain may evict at a time. Pure."""

from typing import Any, Final

from vllmendpoint_operator.components import WORKER, min_ready_replicas, workers_name
from vllmendpoint_operator.observe.snapshot import Endpoint

__all__ = ["budget_name", "budgets"]

_MIN_REPLICAS: Final = 2
"""For one replica, a budget would either block every drain or have no effect."""


def budget_name(endpoint: Endpoint) -> str:
    return workers_name(endpoint)


def budgets(endpoint: Endpoint) -> list[dict[str, Any]]:
    """The workers' PodDisruptionBudget; empty for fewer than two replicas.

    ``maxUnavailable`` is a number, because a budget rounds percentages up. It is at least 1: an eviction
    creates no surge pod, so that a drain would never end with the 0 that a strategy may have. Workers that
    are not ready serve no requests and may always be evicted (``AlwaysAllow``).
    """
    replicas = endpoint.spec.replicas
    if replicas < _MIN_REPLICAS:
        return []
    unavailable = max(1, replicas - min_ready_replicas(replicas, endpoint.spec.strategy.rolling_update))
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": budget_name(endpoint), "labels": endpoint.labels(WORKER)},
            "spec": {
                "maxUnavailable": unavailable,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": endpoint.selector(WORKER)},
            },
        }
    ]
