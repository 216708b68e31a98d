"""The PodDisruptionBudgets: how many workers a node drain may evict at a time. Pure."""

from typing import Any, Final

from vllmendpoint_operator.components import WorkerPool, min_ready_replicas, worker_pools
from vllmendpoint_operator.observe.snapshot import Endpoint

__all__ = ["budgets"]

_MIN_REPLICAS: Final = 2
"""For one replica, a budget would either block every drain or have no effect."""


def budgets(endpoint: Endpoint) -> list[dict[str, Any]]:
    """A PodDisruptionBudget for each kind of worker that has two replicas or more.

    ``maxUnavailable`` is a number, because a budget rounds percentages up. It is at least 1: an eviction
    creates no surge pod, so that a drain would never end with the 0 that a strategy may have. Workers that
    are not ready serve no requests and may always be evicted (``AlwaysAllow``).
    """
    return [_budget(endpoint, pool) for pool in worker_pools(endpoint) if pool.replicas >= _MIN_REPLICAS]


def _budget(endpoint: Endpoint, pool: WorkerPool) -> dict[str, Any]:
    ready = min_ready_replicas(pool.replicas, endpoint.spec.strategy.rolling_update)
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": pool.name, "labels": endpoint.labels(pool.component)},
        "spec": {
            "maxUnavailable": max(1, pool.replicas - ready),
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": endpoint.selector(pool.component)},
        },
    }
