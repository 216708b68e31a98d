"""Reads what Dynamo's frontend has discovered from the responses of its HTTP server. Pure.

``GET /health`` lists the instances of all endpoints and of all Dynamo namespaces, whether or not the frontend
sends them requests.
``GET /v1/models/<model>/ready`` contains the number of accepted workers per Dynamo namespace and worker type.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = [
    "Discovery",
    "Instance",
    "Scope",
    "accepted_workers",
    "instances",
    "kv_sources",
    "missing_types",
    "models",
]

ENDPOINT: Final = "generate"
"""Dynamo endpoint of a worker that receives requests. Workers have others, for example for LoRA adapters."""

PREFILL: Final = "prefill"
"""Dynamo component, and worker type, of workers that compute the KV caches of prompts for other workers."""

KV_SOURCE: Final = "worker_kv_query_source_"
"""Prefix of the Dynamo endpoint at which a router reads the index of a worker that publishes KV events."""

MAX_INSTANCES: Final = 256


@dataclass(frozen=True, slots=True)
class Scope:
    """Dynamo namespaces of the frontend. ``prefix`` has priority, as in Dynamo. Empty: all namespaces."""

    namespace: str = ""
    prefix: str = ""

    def __contains__(self, namespace: str) -> bool:
        if self.prefix:
            return namespace.startswith(self.prefix)
        return not self.namespace or namespace == self.namespace


@dataclass(frozen=True, slots=True, order=True)
class Instance:
    """One discovered worker."""

    namespace: str
    id: int
    prefill: bool = False
    """Whether it computes the KV caches of prompts for decode workers."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """Result of one poll. ``accepted``: workers per Dynamo namespace and worker type."""

    instances: tuple[Instance, ...] = ()
    models: tuple[str, ...] = ()
    accepted: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Worker types that a Dynamo namespace lacks. The frontend sends no requests to its other workers."""
    kv_sources: frozenset[Instance] = frozenset()
    """Workers that publish KV events."""

    def accepted_in(self, namespace: str) -> int:
        """Number of accepted workers that generate, which prefill workers do not; 0 if a type is missing."""
        roles = {} if self.missing.get(namespace) else self.accepted.get(namespace, {})
        return sum(count for role, count in roles.items() if role != PREFILL)

    def accepted_like(self, instance: Instance) -> int:
        """Accepted workers of the instance's role in its namespace; 0 if a type is missing."""
        if not instance.prefill or self.missing.get(instance.namespace):
            return self.accepted_in(instance.namespace)
        return self.accepted.get(instance.namespace, {}).get(PREFILL, 0)

    @property
    def total_accepted(self) -> int:
        return sum(self.accepted_in(namespace) for namespace in self.accepted)

    def share(self, namespace: str) -> float:
        """Share of the accepted workers that are in ``namespace``, from 0 to 1.

        Dynamo first draws a namespace with this probability, and then a worker in it.
        """
        return self.accepted_in(namespace) / total if (total := self.total_accepted) else 0.0


def instances(body: Any, scope: Scope) -> tuple[Instance, ...]:
    """The workers of ``scope`` in a response of ``/health``. Invalid entries are skipped."""
    return _instances(body, scope, lambda endpoint: endpoint == ENDPOINT)


def kv_sources(body: Any, scope: Scope) -> frozenset[Instance]:
    """The workers of ``scope`` in a response of ``/health`` that publish KV events."""
    return frozenset(_instances(body, scope, lambda endpoint: endpoint.startswith(KV_SOURCE)))


def _instances(body: Any, scope: Scope, is_wanted: Callable[[str], bool]) -> tuple[Instance, ...]:
    found = set()
    for item in _list(body, "instances"):
        endpoint = item.get("endpoint") if isinstance(item, dict) else None
        if not isinstance(endpoint, str) or not is_wanted(endpoint):
            continue
        namespace, number = item.get("namespace"), item.get("instance_id")
        if not isinstance(namespace, str) or not isinstance(number, int):
            continue
        if namespace in scope and 0 <= number < 2**64:
            found.add(Instance(namespace, number, prefill=item.get("component") == PREFILL))
    return tuple(sorted(found)[:MAX_INSTANCES])


def models(body: Any) -> tuple[str, ...]:
    """The names in a response of ``/v1/models``."""
    names = [item.get("id") for item in _list(body, "data") if isinstance(item, dict)]
    return tuple(name for name in names if isinstance(name, str) and name)


def accepted_workers(body: Any) -> dict[str, dict[str, int]]:
    """Workers per namespace and type in a response of ``/v1/models/<model>/ready``."""
    return {
        namespace: {str(role): _count(row) for role, row in _object(value, "worker_types").items()}
        for namespace, value in _object(body, "namespaces").items()
        if isinstance(value, dict)
    }


def missing_types(body: Any) -> dict[str, tuple[str, ...]]:
    """Worker types that namespaces lack, in a response of ``/v1/models/<model>/ready``."""
    return {
        namespace: tuple(str(role) for role in _list(value, "missing_worker_types"))
        for namespace, value in _object(body, "namespaces").items()
    }


def _object(body: Any, key: str) -> dict[str, Any]:
    value = body.get(key) if isinstance(body, dict) else None
    return value if isinstance(value, dict) else {}


def _list(body: Any, key: str) -> list[Any]:
    value = body.get(key) if isinstance(body, dict) else None
    return value if isinstance(value, list) else []


def _count(row: Any) -> int:
    count = row.get("workers") if isinstance(row, dict) else None
    return max(count, 0) if isinstance(count, int) else 0
