"""Asking one data-parallel rank of vLLM's engine."""

from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar
from typing import Any, Final, Protocol

from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["ROUTING", "OneRank", "RankedClient", "asking"]

ROUTING: Final = "routing"
"""The field in which a request to Dynamo's handlers names its rank."""

_RANK: Final[ContextVar[int | None]] = ContextVar("rank", default=None)
"""The rank that the current task asks; None: vLLM chooses."""

_REQUEST: Final[ContextVar[str | None]] = ContextVar("request", default=None)
"""The id of the request that the current task makes, where what it calls makes up ids of its own."""


def asking(request_id: str) -> None:
    """What the current task asks of vLLM from now on bears this id at the front of its own."""
    _REQUEST.set(request_id)


class RankedClient:
    """vLLM's client for Dynamo's pooling handlers and vLLM's own, which cannot name a rank: it comes from the
    context.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def add_request(self, *args: Any, **kwargs: Any) -> Any:
        return self._client.add_request(*args, data_parallel_rank=_RANK.get(), **kwargs)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        if (request := _REQUEST.get()) is not None:
            kwargs["request_id"] = f"{request}-{kwargs['request_id']}"
        return AsyncLLM.encode(self, *args, **kwargs)  # by way of our add_request


class _Engine(Protocol):
    client: Any

    def generate(self, request: Mapping[str, Any], request_id: str) -> AsyncIterator[Mapping[str, Any]]: ...

    def in_flight(self) -> int: ...

    def dead(self) -> str | None: ...


class OneRank:
    """The engine as one of its ranks. ``rank`` counts over all workers of the group, as vLLM's own does."""

    def __init__(self, engine: _Engine, rank: int) -> None:
        self._engine = engine
        self._rank = rank

    async def generate(self, request: Mapping[str, Any], request_id: str) -> AsyncIterator[Mapping[str, Any]]:
        """A probe is read by a task of its own, so that the rank is its alone."""
        core = self._engine.client.engine_core
        _RANK.set(core.engine_ranks_managed.index(self._rank))
        routed = {**request, ROUTING: {"dp_rank": self._rank}}
        async for chunk in self._engine.generate(routed, request_id):
            yield chunk

    def in_flight(self) -> int:
        """vLLM's own count of the rank's unfinished requests; without one, that of all."""
        core = self._engine.client.engine_core
        counts = getattr(core, "engine_inflight", None)
        if counts is None:
            return self._engine.in_flight()
        return int(counts[core.core_engines[core.engine_ranks_managed.index(self._rank)]])

    def dead(self) -> str | None:
        return self._engine.dead()
