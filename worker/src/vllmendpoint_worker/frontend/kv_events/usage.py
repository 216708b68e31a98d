"""How much of the prompts of clients the router knew to be cached, from Dynamo's metrics.

Dynamo's counters include the requests of this process: probes and checks. Their tokens are subtracted,
because on an idle endpoint they are most of the traffic. Pure.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["TokenUsage", "block_sizes", "own_tokens", "ranks", "router_tokens"]

_SAMPLE: Final = r"^\w+_{name}\{{[^}}]*\}} ([0-9.e+]+)$"
_PROMPT: Final = re.compile(_SAMPLE.format(name="router_input_sequence_tokens_sum"), re.MULTILINE)
_CACHED: Final = re.compile(
    _SAMPLE.format(name="router_kv_selected_cached_prefix_tokens_total"), re.MULTILINE
)
_BLOCK_SIZE: Final = re.compile(
    r'^\w+_model_kv_cache_block_size\{[^}]*model="([^"]*)"[^}]*\} ([0-9.e+]+)$', re.MULTILINE
)
_RANK: Final = re.compile(
    r'^\w+_router_worker_registered\{dp_rank="(\d+)"[^}]*router_worker_id="(\d+)"[^}]*\} 1$', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """``prompt``: tokens of prompts. ``cached``: those in the cache of the selected worker, as the router
    knew when it selected the worker.
    """

    prompt: int = 0
    cached: int = 0

    def __add__(self, other: "TokenUsage") -> "TokenUsage":
        return TokenUsage(self.prompt + other.prompt, self.cached + other.cached)

    def without(self, own: "TokenUsage", before: "TokenUsage") -> "TokenUsage":
        """The clients' part. A counter never decreases below ``before``: a request of this process may be
        counted a moment before or after Dynamo counts it.
        """
        return TokenUsage(
            max(before.prompt, self.prompt - own.prompt), max(before.cached, self.cached - own.cached)
        )


def router_tokens(metrics: str) -> TokenUsage:
    """Of all requests, from the text of Dynamo's ``/metrics``."""
    return TokenUsage(
        sum(int(float(value)) for value in _PROMPT.findall(metrics)),
        sum(int(float(value)) for value in _CACHED.findall(metrics)),
    )


def block_sizes(metrics: str) -> dict[str, int]:
    """Block size of the KV cache by model."""
    return {name: int(float(size)) for name, size in _BLOCK_SIZE.findall(metrics)}


def ranks(metrics: str) -> dict[int, tuple[int, ...]]:
    """Data-parallel ranks by the instance ID of the worker."""
    found: dict[int, set[int]] = {}
    for rank, instance in _RANK.findall(metrics):
        found.setdefault(int(instance), set()).add(int(rank))
    return {instance: tuple(sorted(numbers)) for instance, numbers in found.items()}


def own_tokens(response: Any, block_size: int) -> TokenUsage:
    """Of a request of this process. ``response``: its JSON, which has ``nvext.timing``."""
    try:
        prompt = int(response["usage"]["prompt_tokens"])
        rate = float(response["nvext"]["timing"]["kv_hit_rate"])
    except (KeyError, TypeError, ValueError):
        return TokenUsage()
    # The rate is the share of the blocks, of which the last may be partial.
    return TokenUsage(prompt, round(rate * math.ceil(prompt / block_size)) * block_size)
