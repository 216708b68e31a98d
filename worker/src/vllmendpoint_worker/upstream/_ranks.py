"""Sends requests to one data-parallel rank of vLLM's engine."""

from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from typing import Any, Final, Protocol

from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["ROUTING", "EngineRank", "RankedClient", "request_id_of", "set_request_id"]

ROUTING: Final = "routing"
"""The field of a request to Dynamo's handlers that names its rank."""

_RANK: Final[ContextVar[int | None]] = ContextVar("rank", default=None)
"""The rank of the current task's requests; None if vLLM chooses it."""

_REQUEST: Final[ContextVar[str | None]] = ContextVar("request", default=None)
"""Prefix of the ids of the current task's requests, if the called code creates ids of its own."""


def set_request_id(request_id: str) -> None:
    """Prefix the ids of the current task's later requests to vLLM with ``request_id``."""
    _REQUEST.set(request_id)


def request_id_of(request_id: str) -> str:
    """``request_id`` with the prefix of the current task."""
    prefix = _REQUEST.get()
    return request_id if prefix is None else f"{prefix}-{request_id}"


class RankedClient:
    """vLLM's client for handlers that cannot name a rank: Dynamo's pooling handlers and vLLM's own. The
    context names it.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def add_request(self, *args: Any, **kwargs: Any) -> Any:
        return self._client.add_request(*args, data_parallel_rank=_RANK.get(), **kwargs)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["request_id"] = request_id_of(kwargs["request_id"])
        return AsyncLLM.encode(self, *args, **kwargs)  # calls add_request of this class


class _RankedEngine(Protocol):
    client: Any

    def generate(self, request: Mapping[str, Any], request_id: str) -> AsyncIterator[Mapping[str, Any]]: ...

    def in_flight(self) -> int: ...

    def dead(self) -> str | None: ...


class EngineRank:
    """One rank of the engine. ``rank`` is an index over all workers of the group, as in vLLM."""

    def __init__(self, engine: _RankedEngine, rank: int) -> None:
        self._engine = engine
        self._rank = rank

    async def generate(self, request: Mapping[str, Any], request_id: str) -> AsyncIterator[Mapping[str, Any]]:
        """Send a request. Iterate it in a task of its own, because the context of the task holds the rank."""
        core = self._engine.client.engine_core
        _RANK.set(core.engine_ranks_managed.index(self._rank))
        routed = {**request, ROUTING: {"dp_rank": self._rank}}
        async for chunk in self._engine.generate(routed, request_id):
            yield chunk

    def in_flight(self) -> int:
        """vLLM's number of unfinished requests of the rank; of the engine if vLLM does not count by rank."""
        core = self._engine.client.engine_core
        counts = getattr(core, "engine_inflight", None)
        if counts is None:
            return self._engine.in_flight()
        return int(counts[core.core_engines[core.engine_ranks_managed.index(self._rank)]])

    def dead(self) -> str | None:
        return self._engine.dead()
