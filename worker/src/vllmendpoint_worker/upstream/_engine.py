"""vLLM's engine client and Dynamo's request handler, as the prober and the HTTP server use them."""

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from dynamo._core import Context
from dynamo.llm.exceptions import EngineShutdown
from dynamo.vllm.constants import DisaggregationMode

from vllmendpoint_api import ModelType
from vllmendpoint_worker.payload.forms import SCORE_FORMS, form_of
from vllmendpoint_worker.payload.model_type import pooled_type
from vllmendpoint_worker.probing.progress import PROGRESS

from ._in_flight import AnswerForm, MovableRequests
from ._phases import LocalClient, NamingClient, runs_one_phase, two_phase_handler
from ._ranks import EngineRank
from ._scores import Scorer

__all__ = ["ShutdownInterceptor", "WorkerEngine"]


class WorkerEngine:
    """The engine of this worker. ``shutdown_event`` is set once Dynamo's shutdown begins."""

    def __init__(self, config: Any, shutdown_event: asyncio.Event) -> None:
        self.config = config
        self.client: Any = None
        self.vllm_config: Any = None
        self.default_sampling: dict[str, Any] = {}
        self.on_died: Callable[[], None] = lambda: None
        """Called instead of upstream's own exit when the engine is dead."""
        self.requests = MovableRequests(self.dead)
        """The requests of Dynamo's frontends."""
        self.instance_id = ""
        """Dynamo's instance ID of this worker in decimal. Set before the registration."""
        self.pools = False
        """Whether vLLM pools the model, instead of generating tokens."""
        self.replays_probes = not runs_one_phase(config)
        """Whether the chunks of a probe are an answer to a frontend's request, as for generated tokens and
        embeddings. A frontend's probe of a worker for one phase proves the transfer of the KV cache, too."""
        self._shutdown_event = shutdown_event
        self._generate: Any = None
        self._handler: Any = None
        self._scorer: Scorer | None = None

    def set_loaded(self, client: Any, vllm_config: Any, default_sampling: Any) -> None:
        self.client = client
        self.vllm_config = vllm_config
        self.default_sampling = dict(default_sampling or {})

    @property
    def answer_form(self) -> AnswerForm:
        """How the answers to Dynamo's frontends end."""
        if self.config.disaggregation_mode == DisaggregationMode.PREFILL:
            return AnswerForm.KV_BLOCKS
        return AnswerForm.POOLED if self.pools else AnswerForm.TOKENS

    @property
    def reads_kv_blocks(self) -> bool:
        """Whether prefill workers compute the KV caches of prompts for this worker."""
        return bool(self.config.disaggregation_mode == DisaggregationMode.DECODE)

    def set_handler(self, handler: Any) -> None:
        """Keep Dynamo's handler and the ``generate`` for the worker's own requests, which does not answer the
        canary.
        """
        self._handler = handler
        runtime = handler.runtime
        handler.runtime = ShutdownInterceptor(runtime, self, lambda: EngineShutdown("The engine is dead."))
        handler.engine_monitor.runtime = ShutdownInterceptor(runtime, self, asyncio.CancelledError)
        if runs_one_phase(self.config):
            handler.engine_client = NamingClient(handler.engine_client)
            self._generate = two_phase_handler(handler).generate
        else:
            self._generate = handler.generate

    @property
    def http_client(self) -> Any:
        """The client for vLLM's HTTP server."""
        return LocalClient(self.client) if runs_one_phase(self.config) else self.client

    def set_scores(self, serving: Any) -> None:
        """``serving``: vLLM's ``ServingScores``; None if vLLM does not serve scores with this model."""
        self._scorer = Scorer(serving, self.client) if serving is not None else None

    @property
    def scores(self) -> bool:
        """Whether vLLM serves ``/score`` and ``/rerank``. Known once the HTTP application is built."""
        return self._scorer is not None

    @property
    def max_model_len(self) -> int:
        return int(self.vllm_config.model_config.max_model_len)

    @property
    def model_names(self) -> list[str]:
        return [self.config.served_model_name, *(self.config.served_model_aliases or [])]

    def generate(self, request: Mapping[str, Any], request_id: str) -> AsyncIterator[Mapping[str, Any]]:
        """Call Dynamo's handler as Dynamo does, or vLLM's for scores. Dynamo's handler may change the
        request, so it receives a copy.
        """
        if self._scorer is not None and form_of(request) in SCORE_FORMS:
            return self._scorer.generate(request, request_id)
        stream: AsyncIterator[Mapping[str, Any]] = self._generate(
            copy.deepcopy(dict(request)), Context(id=request_id)
        )
        return stream

    def rank(self, rank: int | None) -> "WorkerEngine | EngineRank":
        """One data-parallel rank of the engine; the engine itself for None, if it has only one rank."""
        return self if rank is None else EngineRank(self, rank)

    def in_flight(self) -> int:
        """Number of unfinished requests of vLLM."""
        return int(self.client.get_num_unfinished_requests()) if self.client is not None else 0

    def unfinished(self) -> int:
        """Number of requests that a client waits for. A request of a frontend counts until its last chunk is
        read, and at a prefill worker until a decode worker has read the KV blocks of the prompt.
        """
        awaits_decode = self.answer_form is AnswerForm.KV_BLOCKS and PROGRESS.holds_kv_blocks
        return max(len(self.requests), self.in_flight(), int(awaits_decode))

    def dead(self) -> str | None:
        """Why the engine is dead; None while it is alive. vLLM's ``errored`` is also true after the worker
        has shut the engine down, so it is ignored then.
        """
        if self.client is None or self._shutdown_event.is_set() or not self.client.errored:
            return None
        return "vLLM reports EngineDeadError"

    async def tasks(self) -> tuple[str, ...]:
        """vLLM's tasks that the model supports."""
        return tuple(await self.client.get_supported_tasks())

    async def pooled_type(self) -> ModelType | None:
        """The type of a model that vLLM pools; None if there is no probe for it."""
        task = self.client.model_config.get_pooling_task(await self.tasks())
        return pooled_type(task, scores=self.scores)


class ShutdownInterceptor:
    """Dynamo's runtime as Dynamo's handler and engine monitor receive it.

    When they find a dead engine, they call ``shutdown()`` and end the process before the worker does. This
    class calls the engine's ``on_died`` instead and raises ``error``, which ends the caller. So the worker
    can move its requests and report the cause before it exits.
    """

    def __init__(self, runtime: Any, engine: WorkerEngine, error: Callable[[], BaseException]) -> None:
        self._runtime = runtime
        self._engine = engine
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def shutdown(self) -> None:
        if self._engine.dead() is not None:
            self._engine.on_died()
            raise self._error()
        self._runtime.shutdown()
