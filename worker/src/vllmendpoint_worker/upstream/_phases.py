"""What differs in a worker that runs only one phase, prefill or decode.

See docs/decisions/0043-prefill-and-decode.md.
"""

import copy
from typing import Any, Final

from dynamo.vllm.constants import DisaggregationMode
from dynamo.vllm.handlers import DecodeWorkerHandler

from ._ranks import request_id_of

__all__ = ["LocalClient", "NamingClient", "runs_one_phase", "two_phase_handler"]

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
