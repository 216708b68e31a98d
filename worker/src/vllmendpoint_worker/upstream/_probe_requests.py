"""Answers Dynamo's canary from the verdict, and a frontend's probe with the worker's own probe.

See docs/decisions/0039-frontends-probe-and-report.md.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from dynamo.health_check import HEALTH_CHECK_KEY

from vllmendpoint_api import names
from vllmendpoint_worker.errors import EngineNotGeneratingError
from vllmendpoint_worker.probing.progress import PROBE_PREFIX

from ._engine import WorkerEngine
from ._ranks import set_request_id

__all__ = ["HEALTH_CHECK_KEY", "HealthSource", "answer_probes"]

Chunk = Mapping[str, Any]

_NO_TOKENS: Final[Chunk] = {"index": 0, "token_ids": [0], "finish_reason": "stop"}
_NO_EMBEDDING: Final[Chunk] = {
    "object": "list",
    "data": [{"object": "embedding", "embedding": "AAAAAA==", "index": 0}],  # one zero, as Dynamo encodes it
    "model": "",
    "usage": {"prompt_tokens": 0, "total_tokens": 0},
}


@dataclass(frozen=True, slots=True)
class HealthSource:
    """The health of the worker, for requests that arrive through Dynamo.

    ``is_healthy``: whether Dynamo's canary succeeds. ``is_stopped``: whether the engine is stalled or dead.
    ``answer_probe``: the chunks of the answer to a frontend's probe; empty if it proves only the route. It
    raises an error if the engine does not generate.
    """

    is_healthy: Callable[[], bool]
    is_stopped: Callable[[], bool]
    answer_probe: Callable[[], Awaitable[Sequence[Chunk]]]


def answer_probes(generate: Any, engine: WorkerEngine, health: HealthSource) -> Any:
    """``generate``, which answers canaries and frontends' probes without the engine.

    Dynamo passes the context by the name ``context``.
    """

    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        if isinstance(request, Mapping) and request.get(HEALTH_CHECK_KEY) is True:
            if health.is_healthy():
                yield _NO_TOKENS
            return  # the canary reads an empty stream as "not ready"; an error would be logged every second
        if _is_probe(context):
            if engine.replays_probes:
                for chunk in _response(request, await health.answer_probe(), pools=engine.pools):
                    yield _identified(chunk, engine)
                return
            if health.is_stopped():
                raise EngineNotGeneratingError("The engine is stalled or dead.")
            set_request_id(f"{PROBE_PREFIX}{uuid4().hex}")  # it does not count as a user's request
            async for chunk in generate(request, context):
                yield _identified(chunk, engine)
            return
        async for chunk in generate(request, context):
            yield chunk

    return answer


def _is_probe(context: Any) -> bool:
    metadata: Mapping[str, str] | None = getattr(context, "metadata", None)
    return metadata is not None and names.PROBE_METADATA in metadata


def _identified(chunk: Any, engine: WorkerEngine) -> Any:
    """``chunk`` with the worker's instance ID as the model, if vLLM pools the model.

    For these models, Dynamo's router ignores the header by which a frontend selects a worker. The frontend
    returns this field unchanged, so its prober recognizes the worker that has answered.
    """
    if engine.pools and engine.instance_id and isinstance(chunk, Mapping) and "model" in chunk:
        return {**chunk, "model": engine.instance_id}
    return chunk


def _response(request: Mapping[str, Any], chunks: Sequence[Chunk], *, pools: bool) -> Sequence[Chunk]:
    if not pools:
        return chunks or [_NO_TOKENS]
    answer = chunks[0] if chunks else _NO_EMBEDDING
    if request.get("token_ids") is None:
        return [answer]
    usage = answer["usage"]  # Dynamo's form for a request that its frontend has tokenized
    return [{"embeddings": [one["embedding"] for one in answer["data"]], **usage}]
