"""A Dynamo worker without an engine, which answers with numbered tokens, one every 20 ms.

``python -m tests.worker.plain_worker MODEL_FOLDER NAMESPACE [BLOCK_SIZE]``. Workers with different block
sizes have different model cards. With ``PLAIN_SHUTDOWN_AFTER=N``, an answer with more than N tokens ends with
``EngineShutdown`` after N.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvloop
from dynamo.common.utils.runtime import create_runtime
from dynamo.llm import ModelInput, ModelType, WorkerType, register_model
from dynamo.llm.exceptions import EngineShutdown

MODEL = "plain"
TOKEN_SECONDS = 0.02
SHUTDOWN_AFTER = int(os.environ.get("PLAIN_SHUTDOWN_AFTER", "-1"))


async def generate(request: Any, context: Any) -> AsyncIterator[dict[str, Any]]:
    count = request["stop_conditions"].get("max_tokens") or 20
    for number in range(count):
        if number == SHUTDOWN_AFTER:
            raise EngineShutdown("the engine is stalled")
        await asyncio.sleep(TOKEN_SECONDS)
        end = {"finish_reason": "stop"} if number == count - 1 else {}
        yield {"token_ids": [300 + number % 100], "index": 0, **end}


async def main(folder: str, namespace: str, block_size: str = "16") -> None:
    runtime, _ = create_runtime(discovery_backend="file", request_plane="tcp", event_plane="zmq")
    endpoint = runtime.endpoint(f"{namespace}.backend.generate")
    print("instance", endpoint.connection_id(), flush=True)
    await register_model(
        ModelInput.Tokens,
        ModelType.Completions | ModelType.Chat,
        endpoint,
        folder,
        MODEL,
        kv_cache_block_size=int(block_size),
        worker_type=WorkerType.Aggregated,
    )
    await endpoint.serve_endpoint(generate, graceful_shutdown=True, metrics_labels=[("model", MODEL)])


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
