"""How many replicas may be down: for a rollout, for ``Available``, and for a node that is drained."""

import math
from fractions import Fraction
from typing import Any, Final

from vllmendpoint_api import RollingUpdate
from vllmendpoint_operator.observe.snapshot import Endpoint

from .pods.common import WORKER
from .pods.workers import deployment_name

__all__ = ["budget_name", "budgets", "required"]

_FEWEST: Final = 2
"""With one replica a budget either blocks every drain for ever or protects nothing."""


def required(replicas: int, strategy: RollingUpdate) -> int:
    """Ready replicas needed: at least one, whatever the strategy allows to be down.

    As the Deployment's controller counts (``ResolveFenceposts``): what may be down is rounded down, a surge
    up; where both come to 0, one may be down.
    """
    down = math.floor(_share(strategy.max_unavailable, replicas))
    if not down and not math.ceil(_share(strategy.max_surge, replicas)):
        down = 1
    return max(1, replicas - down)


def _share(amount: int | str, replicas: int) -> Fraction:
    text = str(amount)
    return Fraction(int(text[:-1]) * replicas, 100) if text.endswith("%") else Fraction(int(text))


def budget_name(endpoint: Endpoint) -> str:
    return deployment_name(endpoint)


def budgets(endpoint: Endpoint) -> list[dict[str, Any]]:
    """The workers' PodDisruptionBudget; none for fewer than two.

    A number, not the strategy's percentage, which a budget would round up. At least one: where the strategy
    lets none be down (it surges instead), a drain could never end, since an eviction makes no surge. Workers
    that are not ready protect nobody and may always be evicted (``AlwaysAllow``).
    """
    replicas = endpoint.spec.replicas
    if replicas < _FEWEST:
        return []
    down = max(1, replicas - required(replicas, endpoint.spec.strategy.rolling_update))
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
