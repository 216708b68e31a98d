"""What the engine itself received: a scheduler (vLLM's ``--scheduler-cls``) that writes down every request
which reaches the engine core, in the core's own process, one JSON line each, and is vLLM's own in all else.
"""

import json
import os
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler


class SpyScheduler(AsyncScheduler):  # type: ignore[misc]
    def add_request(self, request: Any) -> None:
        sampling, pooling = request.sampling_params, request.pooling_params
        seen = {
            "id": request.request_id,
            "tokens": list(request.prompt_token_ids or []),
            "sampling": _fields(sampling) if sampling is not None else None,
            "pooling": _fields(pooling) if pooling is not None else None,
        }
        with Path(os.environ["ENGINE_SPY_FILE"]).open("a") as file:
            file.write(json.dumps(seen, default=str) + "\n")
        super().add_request(request)


def _fields(params: Any) -> dict[str, Any]:
    return {name: getattr(params, name) for name in params.__struct_fields__ if not name.startswith("_")}
