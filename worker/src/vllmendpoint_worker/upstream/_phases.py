"""What differs in a worker that runs only one phase, prefill or decode.

See docs/decisions/0043-prefill-and-decode.md.
"""

import copy
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Final

from dynamo.llm import WorkerType
from dynamo.llm.exceptions import Disconnected
from dynamo.vllm.constants import DisaggregationMode
from dynamo.vllm.handlers import DecodeWorkerHandler

from ._ranks import request_id_of

__all__ = [
    "PREFILL_OR_NOTHING",
    "LocalClient",
    "NamingClient",
    "repeat_prefill",
    "runs_one_phase",
    "two_phase_handler",
]

PREFILL_OR_NOTHING: Final = [[WorkerType.Prefill], []]
"""Alternatives of worker types that a decode worker needs. Dynamo's own decode workers always need a prefill
worker, so that no client is served without one. With the second, a decode worker serves alone meanwhile."""

_TRANSFER: Final = "kv_transfer_params"
"""Name of a request's parameters for the connector, in vLLM's API and in its sampling parameters."""


def runs_one_phase(config: Any) -> bool:
    """``config``: the configuration of Dynamo's worker."""
    return config.disaggregation_mode in (DisaggregationMode.PREFILL, DisaggregationMode.DECODE)


def two_phase_handler(handler: Any) -> Any:
    """Dynamo's handler that runs both phases on the engine of ``handler``, for the worker's own probes.

    A prefill worker's handler generates one token without a finish reason, and asks vLLM to keep the KV
    blocks for a decode worker. A decode worker's handler defers the abort of a request until its first token.

    The new handler shares all state with ``handler``. Dynamo's constructor would start a second monitor of
    the engine.
    """
    both = DecodeWorkerHandler.__new__(DecodeWorkerHandler)
    config = copy.copy(handler.config)
    config.disaggregation_mode = DisaggregationMode.AGGREGATED
    vars(both).update(
        vars(handler),
        config=config,
        _first_token_source=None,
        _external_encoder_handoff_consumer=None,
    )
    return both


def repeat_prefill(generate: Any) -> Any:
    """``generate`` of a decode worker. A request moves if the KV cache of its prompt was not received, for
    instance because the prefill worker has died.

    vLLM ends such a request with an error before the first token. After ``Disconnected`` Dynamo's frontend
    requests the prefill again, and does not avoid this worker, as it would after ``EngineShutdown``.
    """

    async def received(request: Any, context: Any) -> AsyncIterator[Any]:
        is_first = True
        async with aclosing(generate(request, context)) as stream:
            async for chunk in stream:
                if is_first and _lost_kv_blocks(request, chunk):
                    raise Disconnected("The KV cache of the prompt was not received from the prefill worker.")
                is_first = False
                yield chunk

    return received


def _lost_kv_blocks(request: Mapping[str, Any], first: Mapping[str, Any]) -> bool:
    """Whether vLLM could not read the KV blocks that a prefill worker has computed for the request.

    A grammar that vLLM cannot compile has the same end. Dynamo does not move requests with a grammar.
    """
    if not (first.get("finish_reason") or "").startswith("error") or first.get("token_ids"):
        return False
    prefilled = (request.get("prefill_result") or {}).get("disaggregated_params") or {}
    has_grammar = bool((request.get("sampling_options") or {}).get("guided_decoding"))
    return bool(prefilled.get(_TRANSFER)) and not has_grammar


class NamingClient:
    """vLLM's client for handlers that take the id of a request from Dynamo's context, which is read-only.

    The context of the task may give the request a prefix: see :func:`._ranks.set_request_id`.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def generate(self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any) -> Any:
        return self._client.generate(prompt, sampling_params, request_id_of(request_id), **kwargs)

    async def abort(self, request_id: str) -> None:
        await self._client.abort(request_id_of(request_id))


class LocalClient:
    """vLLM's client for its HTTP server, which runs both phases of a request on this engine.

    With ``kv_transfer_params``, a client of the port could make the engine connect to any address, and keep
    KV blocks in use. Dynamo passes these parameters from worker to worker, and never through this server.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def generate(self, prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
        """Raises ValueError, which vLLM answers with status 400."""
        if (getattr(sampling_params, "extra_args", None) or {}).get(_TRANSFER):
            raise ValueError(
                f"{_TRANSFER} is not accepted at this port. Send requests for separate prefill and decode "
                "workers to the frontend."
            )
        return self._client.generate(prompt, sampling_params, *args, **kwargs)

    async def notify_kv_transfer_request_rejected(self, *args: Any, **kwargs: Any) -> None:
        """vLLM would inform the worker that the parameters name."""
