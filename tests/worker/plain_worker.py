"""A Dynamo worker without an engine, which answers with numbered tokens, one every 20 ms.

``python -m tests.worker.plain_worker MODEL_FOLDER NAMESPACE [BLOCK_SIZE]``. Workers with different block
sizes have different model cards. With ``PLAIN_SHUTDOWN_AFTER=N``, an answer with more than N tokens ends with
``EngineShutdown`` after N. The worker prints a line for each request and for each that the client cancels.

With ``PLAIN_KV_EVENTS=publish`` it has a KV cache without limit, and publishes KV events. With ``lose`` the
events get lost, as if the network between worker and frontend was interrupted.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvloop
from dynamo.common.utils.runtime import create_runtime
from dynamo.llm import (
    KvEventPublisher,
    ModelInput,
    ModelRuntimeConfig,
    ModelType,
    WorkerType,
    register_model,
)
from dynamo.llm.exceptions import EngineShutdown

MODEL = "plain"
TOKEN_SECONDS = 0.02
KV_EVENTS = os.environ.get("PLAIN_KV_EVENTS", "")
SHUTDOWN_AFTER = int(os.environ.get("PLAIN_SHUTDOWN_AFTER", "-1"))


class Cache:
    """A KV cache without limit."""

    def __init__(self, publisher: KvEventPublisher, block_size: int) -> None:
        self.publisher = publisher
        self.block_size = block_size
        self.blocks: set[tuple[int, ...]] = set()

    def store(self, tokens: list[int]) -> int:
        """Number of tokens that were stored before."""
        size = self.block_size
        ends = range(size, len(tokens) + 1, size)
        cached = sum(tuple(tokens[:end]) in self.blocks for end in ends) * size
        for end in ends:
            block, parent = tuple(tokens[:end]), tuple(tokens[: end - size])
            if block not in self.blocks:
                self.blocks.add(block)
                if KV_EVENTS == "publish":
                    self.publisher.publish_stored(
                        list(block[-size:]), [size], [hash(block)], hash(parent) if parent else None
                    )
        return cached


caches: list[Cache] = []
"""The worker's cache, unless it has none."""


async def generate(request: Any, context: Any) -> AsyncIterator[dict[str, Any]]:
    print("request", flush=True)
    tokens = request["token_ids"]
    cached = sum(cache.store(tokens) for cache in caches)
    count = request["stop_conditions"].get("max_tokens") or 20
    for number in range(count):
        if number == SHUTDOWN_AFTER:
            raise EngineShutdown("the engine is stalled")
        await asyncio.sleep(TOKEN_SECONDS)
        if context.is_stopped():
            print("cancelled", flush=True)
            return
        usage = {
            "prompt_tokens": len(tokens),
            "completion_tokens": count,
            "total_tokens": len(tokens) + count,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        end = {"finish_reason": "stop", "completion_usage": usage} if number == count - 1 else {}
        yield {"token_ids": [300 + number % 100], "index": 0, **end}


async def main(folder: str, namespace: str, block_size: str = "16") -> None:
    runtime, _ = create_runtime(discovery_backend="file", request_plane="tcp", event_plane="zmq")
    endpoint = runtime.endpoint(f"{namespace}.backend.generate")
    print("instance", endpoint.connection_id(), flush=True)
    config = ModelRuntimeConfig()
    if KV_EVENTS:
        publisher = KvEventPublisher(endpoint, kv_block_size=int(block_size), enable_local_indexer=True)
        caches.append(Cache(publisher, int(block_size)))
        config.enable_local_indexer = config.kv_event_publishing_enabled = True
    await register_model(
        ModelInput.Tokens,
        ModelType.Completions | ModelType.Chat,
        endpoint,
        folder,
        MODEL,
        kv_cache_block_size=int(block_size),
        runtime_config=config,
        worker_type=WorkerType.Aggregated,
    )
    await endpoint.serve_endpoint(generate, graceful_shutdown=True, metrics_labels=[("model", MODEL)])


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
