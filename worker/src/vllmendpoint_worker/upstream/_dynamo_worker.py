"""Runs Dynamo's worker, composed of Dynamo's own functions, with hooks of this worker between its steps.

See docs/decisions/0026-composition-of-dynamo-and-vllm.md.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from dynamo.common.utils.graceful_shutdown import get_grace_period_seconds, graceful_shutdown_with_discovery
from dynamo.common.utils.prometheus import register_engine_metrics_callback
from dynamo.common.utils.runtime import create_runtime
from dynamo.llm import ModelInput, ModelType, WorkerType
from dynamo.vllm import main as dynamo_main
from dynamo.vllm.handlers import EmbeddingWorkerHandler
from dynamo.vllm.health_check import VllmEmbeddingHealthCheckPayload
from dynamo.vllm.pooling_handlers import ClassifyWorkerHandler
from dynamo.vllm.publisher import StatLoggerFactory
from dynamo.vllm.state_agent import StateAgentLifecycle
from dynamo.vllm.worker_factory import WorkerFactory
from prometheus_client import CollectorRegistry

from vllmendpoint_api import ModelType as ProbedType
from vllmendpoint_worker.payload.model_type import pooled_type

from ._arguments import Arguments
from ._engine import WorkerEngine
from ._phases import PREFILL_OR_NOTHING, repeat_prefill
from ._probe_requests import HEALTH_CHECK_KEY, HealthSource, answer_probes
from ._ranks import RankedClient

__all__ = ["HEALTH_CHECK_KEY", "HealthSource", "Hooks", "Shutdown", "grace_seconds", "serve"]

logger = logging.getLogger(__name__)


class Hooks(Protocol):
    """The worker's code at the extension points of upstream's composition."""

    def after_engine_load(self, engine: WorkerEngine) -> None: ...

    async def before_registration(self, engine: WorkerEngine, shutdown: "Shutdown") -> None:
        """The engine is loaded and its handler exists; the model is not registered yet. Dynamo's signal
        handlers are not installed: the worker handles signals.
        """
        ...

    def after_registration(self, engine: WorkerEngine) -> None: ...


class Shutdown:
    """Dynamo's graceful shutdown: unregister, grace period, stop the endpoints, end the engine."""

    def __init__(self, runtime: Any, endpoints: list[Any], event: asyncio.Event, lifecycle: Any) -> None:
        self._runtime = runtime
        self._endpoints = endpoints
        self._event = event
        self._lifecycle = lifecycle

    async def run(self, drain: Callable[[], Any], cleanup: Callable[[], Any]) -> None:
        """Run it. ``drain`` is called after the grace period, before upstream aborts the requests in flight;
        ``cleanup`` then, before the runtime shuts down. Each is awaited for at most 30 s.
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
    """``DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS``, default 5: seconds between unregistering and the end."""
    return float(get_grace_period_seconds())


async def serve(parsed: Arguments, hooks: Hooks, health: HealthSource, metrics: CollectorRegistry) -> None:
    """Run Dynamo's worker until it is shut down: the steps of upstream's ``main.worker``, with hooks.

    ``health`` decides the answers of Dynamo's ``/health`` and of frontends' probes. Dynamo's system port also
    serves ``metrics``.
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
    engine.requests.is_stopped = health.is_stopped

    def setup(config: Any, factory: StatLoggerFactory, **kwargs: Any) -> Any:
        # Blocks the event loop for the whole load.
        result = dynamo_main.setup_vllm_engine(config, factory, **kwargs)
        for publisher in factory.created_loggers.values():
            publisher.inner = DeduplicatingPublisher(publisher.inner)
        engine.set_loaded(result[0], result[1], result[2])
        hooks.after_engine_load(engine)
        return result

    async def register(*args: Any, **kwargs: Any) -> None:
        await hooks.before_registration(engine, shutdown)
        if engine.reads_kv_blocks:
            kwargs["needs"] = PREFILL_OR_NOTHING
        await dynamo_main.register_vllm_model(*args, **kwargs)
        hooks.after_registration(engine)

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

    factory = _HookedFactory(
        engine,
        health,
        setup_vllm_engine_fn=setup,
        setup_kv_event_publisher_fn=dynamo_main.setup_kv_event_publisher,
        setup_kv_state_attachment_owner_fn=dynamo_main.setup_kv_state_attachment_owner,
        register_vllm_model_fn=register,
        setup_fpm_relay_fn=dynamo_main.setup_fpm_relay,
        setup_metrics_collection_fn=collect_metrics,
        state_agent_lifecycle=lifecycle,
    )
    await factory.create(runtime, config, event, endpoints)


class _HookedFactory(WorkerFactory):  # type: ignore[misc]  # upstream is not typed
    """Records the request handler, wraps it, and omits the ``/engine/*`` routes.

    These routes need no authentication: with ``POST /engine/control/sleep`` or ``pause_generation``, every
    client that reaches the system port could stop the engine.
    """

    def __init__(self, engine: WorkerEngine, health: HealthSource, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._engine = engine
        self._health = health

    def register_engine_routes(
        self, runtime: Any, generate_endpoint: Any, handler: Any, lora_enabled: bool = False
    ) -> None:
        del runtime, lora_enabled
        self._engine.instance_id = str(generate_endpoint.connection_id())
        self._engine.set_handler(handler)
        handler.generate = self._wrap(handler.generate)  # the factory serves it

    def _wrap(self, generate: Any) -> Any:
        if self._engine.reads_kv_blocks:
            generate = repeat_prefill(generate)
        movable = self._engine.requests.wrap(generate, self._engine.answer_form)
        return answer_probes(movable, self._engine, self._health)

    async def _create_embedding_worker(
        self, runtime: Any, config: Any, shutdown_event: asyncio.Event, shutdown_endpoints: list[Any]
    ) -> None:
        """Upstream's steps. Upstream has no extension point here: it passes the handler from its constructor
        directly to ``serve_endpoint``.

        Differences from upstream: vLLM's tasks for the model select Dynamo's embedding worker or its classify
        worker without an option; the canary is answered from the verdict; vLLM's metrics are served; the
        model is registered before it is served, as in upstream's generating worker; there are no
        ``/engine/*`` routes.
        """
        endpoint = runtime.endpoint(f"{config.namespace}.{config.component}.{config.endpoint}")
        shutdown_endpoints[:] = [endpoint]
        client, vllm_config, _, metrics_folder, _ = self.setup_vllm_engine(
            config,
            StatLoggerFactory(endpoint=endpoint, embedding_worker=True),
            fpm_worker_id=str(endpoint.connection_id()),
        )
        task = client.model_config.get_pooling_task(await client.get_supported_tasks())
        embeds = pooled_type(task, scores=False) is ProbedType.EMBEDDING
        handler = _pooling_handler(
            client, embeds=embeds, runtime=runtime, config=config, shutdown_event=shutdown_event
        )
        self._engine.pools, self._engine.replays_probes = True, embeds
        self._engine.instance_id = str(endpoint.connection_id())
        self._engine.set_handler(handler)
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
                self._wrap(handler.generate),
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


def _pooling_handler(client: Any, *, embeds: bool, **kwargs: Any) -> Any:
    """Dynamo's handler for embeddings, or else for classes and scores. ``kwargs``: arguments of both."""
    if embeds:
        handler = EmbeddingWorkerHandler(engine=client, **kwargs)
    else:
        handler = ClassifyWorkerHandler(engine=client, model_config=client.model_config, **kwargs)
    handler.engine_client = RankedClient(client)
    return handler


class DeduplicatingPublisher:
    """Publishes the number of used KV blocks to Dynamo's routers only when it changes. Upstream publishes at
    every engine step, which wakes its threads each time.
    """

    def __init__(self, publisher: Any) -> None:
        self._publisher = publisher
        self._published: object = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._publisher, name)

    def publish(self, *args: Any, **kwargs: Any) -> None:
        if self._published != (args, kwargs):
            self._published = (args, kwargs)
            self._publisher.publish(*args, **kwargs)
