"""Dynamo's worker, composed of its own building blocks, with our hooks between its steps."""

import asyncio
import copy
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from dynamo._core import Context
from dynamo.common.utils.graceful_shutdown import get_grace_period_seconds, graceful_shutdown_with_discovery
from dynamo.common.utils.prometheus import register_engine_metrics_callback
from dynamo.common.utils.runtime import create_runtime
from dynamo.health_check import HEALTH_CHECK_KEY
from dynamo.llm import ModelInput, ModelType, WorkerType
from dynamo.vllm import main as dynamo_main
from dynamo.vllm.handlers import EmbeddingWorkerHandler
from dynamo.vllm.health_check import VllmEmbeddingHealthCheckPayload
from dynamo.vllm.pooling_handlers import ClassifyWorkerHandler
from dynamo.vllm.publisher import StatLoggerFactory
from dynamo.vllm.state_agent import StateAgentLifecycle
from dynamo.vllm.worker_factory import WorkerFactory
from prometheus_client import CollectorRegistry

from vllmendpoint_api import ModelType as AskedFor
from vllmendpoint_worker.payload.forms import SCORE_FORMS, form_of
from vllmendpoint_worker.payload.model_type import pooled_type

from ._arguments import Arguments
from ._ranks import OneRank, RankedClient
from ._scores import Scorer

__all__ = ["HEALTH_CHECK_KEY", "Gate", "Hooks", "Shutdown", "WorkerEngine", "grace_seconds", "serve"]

logger = logging.getLogger(__name__)

Gate = Callable[[], bool]
"""Whether the worker may be called healthy now."""


class Hooks(Protocol):
    """What the worker does at the points where upstream's composition lets it in."""

    def engine_loaded(self, engine: "WorkerEngine") -> None: ...

    async def before_register(self, engine: "WorkerEngine", shutdown: "Shutdown") -> None:
        """The engine is loaded and its handler exists; the model is not registered yet. Dynamo's signal
        handlers are not installed: the worker handles signals.
        """
        ...

    def registered(self, engine: "WorkerEngine") -> None: ...


class Shutdown:
    """Dynamo's graceful shutdown: unregister, grace period, stop the endpoints, end the engine."""

    def __init__(self, runtime: Any, endpoints: list[Any], event: asyncio.Event, lifecycle: Any) -> None:
        self._runtime = runtime
        self._endpoints = endpoints
        self._event = event
        self._lifecycle = lifecycle

    async def run(self, drain: Callable[[], Any], cleanup: Callable[[], Any]) -> None:
        """Each is awaited for 30 s at most: ``drain`` after the grace period, before upstream aborts what is
        in flight; ``cleanup`` then, before the runtime goes.
        """
        await graceful_shutdown_with_discovery(
            self._runtime,
            self._endpoints,
            shutdown_event=self._event,
            drain_callback=drain,
            pre_shutdown_callback=self._lifecycle.close,
            cleanup_callback=cleanup,
        )


def grace_seconds() -> float:
    """``DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS``, default 5: between unregistering and the end."""
    return float(get_grace_period_seconds())


async def serve(parsed: Arguments, hooks: Hooks, gate: Gate, metrics: CollectorRegistry) -> None:
    """Run Dynamo's worker until it is shut down: upstream's ``main.worker``, with our hooks between its
    steps.

    ``gate`` decides what Dynamo's ``/health`` says; ``metrics`` are shown on its system port too.
    """
    config = parsed.dynamo
    event = asyncio.Event()
    endpoints: list[Any] = []
    lifecycle = StateAgentLifecycle()
    runtime, _ = create_runtime(
        discovery_backend=config.discovery_backend,
        request_plane=config.request_plane,
        event_plane=config.event_plane,
        response_plane=config.response_plane,
    )
    shutdown = Shutdown(runtime, endpoints, event, lifecycle)
    engine = WorkerEngine(config, event)

    def setup(config: Any, factory: StatLoggerFactory, **kwargs: Any) -> Any:
        # Blocks the event loop for the whole load.
        result = dynamo_main.setup_vllm_engine(config, factory, **kwargs)
        for publisher in factory.created_loggers.values():
            publisher.inner = DeduplicatingPublisher(publisher.inner)
        engine.loaded(result[0], result[1], result[2])
        hooks.engine_loaded(engine)
        return result

    async def register(*args: Any, **kwargs: Any) -> None:
        await hooks.before_register(engine, shutdown)
        await dynamo_main.register_vllm_model(*args, **kwargs)
        hooks.registered(engine)

    def collect_metrics(of: Any, endpoint: Any, log: Any) -> None:
        dynamo_main.setup_metrics_collection(of, endpoint, log)
        register_engine_metrics_callback(
            endpoint,
            metrics,
            namespace_name=config.namespace,
            component_name=config.component,
            endpoint_name=config.endpoint,
            model_name=config.served_model_name,
        )

    factory = _Factory(
        engine,
        gate,
        setup_vllm_engine_fn=setup,
        setup_kv_event_publisher_fn=dynamo_main.setup_kv_event_publisher,
        setup_kv_state_attachment_owner_fn=dynamo_main.setup_kv_state_attachment_owner,
        register_vllm_model_fn=register,
        setup_fpm_relay_fn=dynamo_main.setup_fpm_relay,
        setup_metrics_collection_fn=collect_metrics,
        state_agent_lifecycle=lifecycle,
    )
    await factory.create(runtime, config, event, endpoints)


class _Factory(WorkerFactory):  # type: ignore[misc]  # upstream is not typed
    """Catches the request handler, answers the canary from our verdict, and leaves out the unauthenticated
    ``/engine/*`` routes.

    ``POST /engine/control/sleep`` or ``pause_generation`` on the system port would stop the engine for anyone
    who reaches it.
    """

    def __init__(self, engine: "WorkerEngine", gate: Gate, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._engine = engine
        self._gate = gate

    def register_engine_routes(
        self, runtime: Any, generate_endpoint: Any, handler: Any, lora_enabled: bool = False
    ) -> None:
        del runtime, generate_endpoint, lora_enabled
        self._engine.use(handler)
        # The factory serves ``handler.generate``: the canary's requests are answered from our verdict there.
        handler.generate = _answer_canary(self._engine.counted(handler.generate), self._gate)

    async def _create_embedding_worker(
        self, runtime: Any, config: Any, shutdown_event: asyncio.Event, shutdown_endpoints: list[Any]
    ) -> None:
        """Upstream's steps, which leave no room for a hook: its handler goes from its constructor straight to
        ``serve_endpoint``.

        Other than upstream's: vLLM's tasks for the model decide whether it is Dynamo's embedding worker or
        its classify worker, and nobody has to say so; the canary is answered from our verdict; vLLM's metrics
        are shown; the model is registered before it is served, as upstream does where it generates; no
        ``/engine/*`` route.
        """
        endpoint = runtime.endpoint(f"{config.namespace}.{config.component}.{config.endpoint}")
        shutdown_endpoints[:] = [endpoint]
        client, vllm_config, _, metrics_folder, _ = self.setup_vllm_engine(
            config,
            StatLoggerFactory(endpoint=endpoint, embedding_worker=True),
            fpm_worker_id=str(endpoint.connection_id()),
        )
        task = client.model_config.get_pooling_task(await client.get_supported_tasks())
        embeds = pooled_type(task, scores=False) is AskedFor.EMBEDDING
        if embeds:
            handler = EmbeddingWorkerHandler(
                runtime=runtime, engine=client, config=config, shutdown_event=shutdown_event
            )
        else:
            handler = ClassifyWorkerHandler(
                runtime=runtime,
                engine=client,
                config=config,
                model_config=client.model_config,
                shutdown_event=shutdown_event,
            )
        handler.engine_client = RankedClient(client)
        self._engine.use(handler)
        self.setup_metrics_collection(config, endpoint, logger)
        try:
            await self.register_vllm_model(
                ModelInput.Tokens if config.embedding_frontend_tokenization and embeds else ModelInput.Text,
                ModelType.Embedding if embeds else ModelType.Classify | ModelType.Pooling,
                endpoint,
                config,
                client,
                vllm_config,
                worker_type=WorkerType.Aggregated,
                needs=[],
            )
            await endpoint.serve_endpoint(
                _answer_canary(self._engine.counted(handler.generate), self._gate),
                graceful_shutdown=True,
                metrics_labels=[("model", config.model)],
                health_check_payload=VllmEmbeddingHealthCheckPayload(
                    model_name=config.served_model_name or config.model
                ).to_dict(),
            )
        finally:
            handler.cleanup()
            try:
                client.shutdown()
            finally:
                if metrics_folder is not None:
                    metrics_folder.cleanup()


def _answer_canary(generate: Any, gate: Gate) -> Any:
    """Upstream's canary costs the engine nothing: where its marker is seen, our verdict answers.

    Dynamo passes the context by the name ``context``.
    """

    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        if isinstance(request, Mapping) and request.get(HEALTH_CHECK_KEY) is True:
            if gate():
                yield {"index": 0, "token_ids": [0], "finish_reason": "stop"}
            return  # an empty stream is "not ready" to the canary; an error would be logged every second
        async for chunk in generate(request, context):
            yield chunk

    return answer


class DeduplicatingPublisher:
    """What tells Dynamo's routers the blocks in use: upstream has it say so at every engine step, which wakes
    threads of its own each time, though the number changes every few steps.
    """

    def __init__(self, publisher: Any) -> None:
        self._publisher = publisher
        self._told: object = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._publisher, name)

    def publish(self, *args: Any, **kwargs: Any) -> None:
        if self._told != (args, kwargs):
            self._told = (args, kwargs)
            self._publisher.publish(*args, **kwargs)


class ShutdownInterceptor:
    """The runtime, as upstream's handler and its monitor have it: where a request, or the monitor, meets a
    dead engine they call ``shutdown()`` and end the process, sooner than we do and with nothing said.
    """

    def __init__(self, runtime: Any, engine: "WorkerEngine") -> None:
        self._runtime = runtime
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def shutdown(self) -> None:
        if self._engine.dead() is not None:
            self._engine.died()
        self._runtime.shutdown()


class WorkerEngine:
    """The engine client and Dynamo's request handler, as the prober and the HTTP server need them."""

    def __init__(self, config: Any, shutdown_event: asyncio.Event) -> None:
        self.config = config
        self.client: Any = None
        self.vllm_config: Any = None
        self.default_sampling: dict[str, Any] = {}
        self.died: Callable[[], None] = lambda: None
        """Called where upstream is about to end the process over a dead engine."""
        self._served = 0
        self._shutdown_event = shutdown_event
        self._generate: Any = None
        self._handler: Any = None
        self._scorer: Scorer | None = None

    def loaded(self, client: Any, vllm_config: Any, default_sampling: Any) -> None:
        self.client = client
        self.vllm_config = vllm_config
        self.default_sampling = dict(default_sampling or {})

    def use(self, handler: Any) -> None:
        """Keep the handler alive and its own ``generate``, without the canary's answer."""
        self._handler = handler
        self._generate = handler.generate
        handler.runtime = handler.engine_monitor.runtime = ShutdownInterceptor(handler.runtime, self)

    def use_scores(self, serving: Any) -> None:
        """``serving``: vLLM's ``ServingScores``; None where vLLM has no scores with this model."""
        self._scorer = Scorer(serving, self.client) if serving is not None else None

    @property
    def scores(self) -> bool:
        """Whether vLLM serves ``/score`` and ``/rerank``; known once the HTTP server's app is built."""
        return self._scorer is not None

    @property
    def max_model_len(self) -> int:
        return int(self.vllm_config.model_config.max_model_len)

    @property
    def model_names(self) -> list[str]:
        return [self.config.served_model_name, *(self.config.served_model_aliases or [])]

    def generate(self, request: Mapping[str, Any], request_id: str) -> AsyncIterator[Mapping[str, Any]]:
        """Dynamo's own handler, called as Dynamo calls it; for scores vLLM's. It may change the request: it
        gets a copy.
        """
        if self._scorer is not None and form_of(request) in SCORE_FORMS:
            return self._scorer.generate(request, request_id)
        stream: AsyncIterator[Mapping[str, Any]] = self._generate(
            copy.deepcopy(dict(request)), Context(id=request_id)
        )
        return stream

    def rank(self, rank: int | None) -> "WorkerEngine | OneRank":
        """The engine as one of its data-parallel ranks; None: it has one only."""
        return self if rank is None else OneRank(self, rank)

    def in_flight(self) -> int:
        return int(self.client.get_num_unfinished_requests()) if self.client is not None else 0

    def counted(self, generate: Any) -> Any:
        """Dynamo's own ``generate``, for its frontends; :meth:`unfinished` knows of its requests."""

        async def counting(request: Any, context: Any) -> AsyncIterator[Any]:
            self._served += 1
            try:
                async for chunk in generate(request, context):
                    yield chunk
            finally:
                self._served -= 1

        return counting

    def unfinished(self) -> int:
        """Requests that somebody waits for: one of :meth:`counted` until its last chunk is taken."""
        return max(self._served, self.in_flight())

    def dead(self) -> str | None:
        """vLLM's ``errored`` turns true when the core is gone, and when we shut it down ourselves."""
        if self.client is None or self._shutdown_event.is_set() or not self.client.errored:
            return None
        return "vLLM reports EngineDeadError"

    async def tasks(self) -> tuple[str, ...]:
        return tuple(await self.client.get_supported_tasks())

    async def pooled_type(self) -> AskedFor | None:
        """What a model that vLLM pools is asked for; None where there is no probe for it."""
        task = self.client.model_config.get_pooling_task(await self.tasks())
        return pooled_type(task, scores=self.scores)
