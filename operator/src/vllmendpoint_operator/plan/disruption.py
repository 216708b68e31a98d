"""How many replicas may be down: for a rollout, for ``Available``, and for a node that is drained."""

import math
from typing import Any, Final

from vllmendpoint_operator.model import Endpoint

from .pods import WORKER
from .workload import deployment_name

__all__ = ["budgets", "required"]

_FEWEST: Final = 2
"""With one replica a budget either blocks every drain for ever or protects nothing."""


def required(replicas: int, max_unavailable: int | str) -> int:
    """Ready replicas needed: at least one, whatever the strategy allows to be down.

    Percentages are rounded down, as the Deployment's controller does.
    """
    if isinstance(max_unavailable, str) and max_unavailable.endswith("%"):
        down = math.floor(replicas * int(max_unavailable[:-1]) / 100)
    else:
        down = int(max_unavailable)
    return max(1, replicas - down)


def budgets(endpoint: Endpoint) -> list[dict[str, Any]]:
    """The workers' PodDisruptionBudget; none for fewer than two.

    A number, not the strategy's percentage, which a budget would round up. At least one: where the strategy
    lets none be down (it surges instead), a drain could never end, since an eviction makes no surge. Workers
    that are not ready protect nobody and may always be evicted (``AlwaysAllow``).
    """
    replicas = endpoint.spec.replicas
    if replicas < _FEWEST:
        return []
    down = max(1, replicas - required(replicas, endpoint.spec.strategy.rolling_update.max_unavailable))
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": deployment_name(endpoint), "labels": endpoint.labels(WORKER)},
            "spec": {
                "maxUnavailable": down,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": endpoint.selector(WORKER)},
            },
        }
    ]
