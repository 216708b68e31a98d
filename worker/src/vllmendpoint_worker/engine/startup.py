"""From the loaded engine to a registered worker: the hooks of Dynamo's composition."""

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from vllmendpoint_api import Mode, Stage
from vllmendpoint_worker import upstream
from vllmendpoint_worker.config.configuration import Configuration
from vllmendpoint_worker.errors import EngineStartError
from vllmendpoint_worker.handlers import (
    HandlerInterrupter,
    HandlerManager,
    PingProber,
    install_sagemaker_routes,
)
from vllmendpoint_worker.payload.model_type import RUNNER_GENERATE, reject_after_start
from vllmendpoint_worker.probing.progress import PROGRESS
from vllmendpoint_worker.probing.publisher import HealthPublisher
from vllmendpoint_worker.probing.ranks import RankProbers
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.process.task_supervisor import TaskSupervisor
from vllmendpoint_worker.serving.health_route import needs_engine, reaches_health
from vllmendpoint_worker.serving.report_server import ReportServer
from vllmendpoint_worker.serving.state import WorkerState

from .graceful_shutdown import GracefulShutdown
from .hot_reload import HotReload
from .http_app import HttpServer, ReadinessMiddleware
from .liveness import Liveness
from .resolution import AcceptedConfiguration, HandlerLoader, Resolver
from .stall_middleware import StallMiddleware
from .translate import Translator
from .warm_up import WarmUp

__all__ = ["Startup"]

logger = logging.getLogger(__name__)

FIRST_PROBE_SLACK_SECONDS: Final = 5.0
"""The first probe may take twice its timeout and this."""


@dataclass(slots=True, kw_only=True)
class Startup:
    """Implements :class:`vllmendpoint_worker.upstream.Hooks`.

    ``frontend``: the arguments of vLLM's HTTP server. ``listeners``: the sockets that it serves.
    """

    frontend: Sequence[str]
    listeners: Sequence[socket.socket]
    configuration: Configuration
    handlers: HandlerManager
    loader: HandlerLoader
    state: WorkerState
    publisher: HealthPublisher
    liveness: Liveness
    report_server: ReportServer
    tasks: TaskSupervisor
    clock: Clock
    http: HttpServer | None = None
    """Set once it listens."""
    shutdown: GracefulShutdown | None = None
    """Set when the worker may be registered."""

    def after_engine_load(self, engine: upstream.WorkerEngine) -> None:
        engine.on_died = self.liveness.on_engine_died
        self.liveness.move_requests = engine.requests.drain
        self.publisher.on_stopped.append(engine.requests.move_all)

    async def before_registration(self, engine: upstream.WorkerEngine, shutdown: upstream.Shutdown) -> None:
        """Resolve the configuration, warm up, probe and serve HTTP: the router sends no requests yet."""
        if not PROGRESS.ranks:
            raise EngineStartError(
                "vLLM did not load the plugin vllmendpoint_progress: install vllmendpoint-worker as a package"
            )
        self.state.enter_stage(Stage.WARMING)
        app = await upstream.build_http_app(
            engine, self.frontend, self.publisher.metrics.registry, self.publisher.is_healthy
        )
        translator = await self._create_translator(engine, app)
        resolver = Resolver(self.configuration, self.handlers, self.loader, translator)
        interrupter = self._attach_handlers(app)
        accepted = await WarmUp(engine, self.configuration, resolver, self.state, self.clock).run()
        prober = await self._start_prober(engine, accepted)
        self.state.enter_stage(Stage.REGISTERING)
        ping = self._create_ping(resolver)
        await ping.run_probe()
        stall = StallMiddleware(
            self.handlers,
            verdict=lambda: self.publisher.verdict,
            needs_engine=lambda scope: needs_engine(self.handlers.app, scope),
        )
        self.publisher.on_stopped.append(stall.end_requests)
        self.http = HttpServer(app, self._readiness_middleware(stall), self.listeners)
        await self.http.start()
        self.tasks.start("configuration", HotReload(self.configuration, resolver, prober).run())
        self.tasks.start("ping", ping.run())
        self.shutdown = GracefulShutdown(
            shutdown,
            engine,
            self.http,
            state=self.state,
            publisher=self.publisher,
            interrupter=interrupter,
            tasks=self.tasks,
            clock=self.clock,
        )

    def after_registration(self, engine: upstream.WorkerEngine) -> None:
        """Handle signals, accept probes on demand, and become ready."""
        assert self.shutdown is not None, "before_registration sets it"
        self.shutdown.handle_signals()
        loop = asyncio.get_running_loop()
        self.report_server.probe = lambda: asyncio.run_coroutine_threadsafe(self._probe_on_demand(), loop)
        self.report_server.on_blocked = self.liveness.on_blocked
        self.state.enter_stage(Stage.SERVING)
        self.state.update(started=True, instance_id=engine.instance_id)
        self.publisher.publish()
        logger.info("The worker serves: models=%s", ",".join(engine.model_names))

    async def _create_translator(self, engine: upstream.WorkerEngine, app: upstream.HttpApp) -> Translator:
        """Also determines the model's type; the worker stays unready if the declared type differs."""
        tasks = await engine.tasks()
        pooled = None if RUNNER_GENERATE in tasks else await engine.pooled_type()
        translator = Translator(
            app.renderer,
            defaults=engine.default_sampling,
            max_model_len=engine.max_model_len,
            model_names=engine.model_names,
            pooled=pooled,
            scores=engine.scores,
        )
        declared = self.configuration.model_type
        detected = await translator.model_type() if RUNNER_GENERATE in tasks else pooled
        if (problem := reject_after_start(declared, detected, tasks)) is not None:
            await self.configuration.stay_rejected([problem])
        self.configuration.model_type = declared or detected
        self.state.update(model_type=str(self.configuration.model_type or ""))
        return translator

    def _attach_handlers(self, app: upstream.HttpApp) -> HandlerInterrupter:
        """From here on, code of the user may run on the main loop and block it."""
        install_sagemaker_routes(app.app, loading=app.loads_adapters)
        self.handlers.attach(app.app)
        self.state.blocking_frame = self.handlers.blocking_frame
        self.tasks.start("liveness", self.liveness.run())
        interrupter = HandlerInterrupter(
            self.handlers,
            blocked_for=self.state.blocked_for,
            is_serving=lambda: self.state.is_registered,
            pending_config=self.configuration.pending_handlers,
        )
        interrupter.start()
        self.handlers.report_thread_errors()
        return interrupter

    async def _start_prober(
        self, engine: upstream.WorkerEngine, accepted: AcceptedConfiguration
    ) -> RankProbers:
        """Returns after the first probe has ended, with any outcome."""
        prober = self.publisher.prober = RankProbers(
            engine,
            accepted.probe,
            progress=PROGRESS,
            publish=self.publisher.publish,
            on_result=self.publisher.metrics.record_probe,
        )
        self.tasks.start("prober", prober.run())
        if accepted.resolved.mode is not Mode.DISABLED:
            timeout = 2 * accepted.resolved.timeout_seconds + FIRST_PROBE_SLACK_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await prober.probe_now()
        return prober

    def _create_ping(self, resolver: Resolver) -> PingProber:
        return PingProber(
            self.handlers,
            address=lambda: self.listeners[0].getsockname()[:2],
            timeout=lambda: resolver.resolved.timeout_seconds,
            thresholds=lambda: (resolver.resolved.failure_threshold, resolver.resolved.success_threshold),
            on_change=self.publisher.publish_ping,
            clock=self.clock,
        )

    def _readiness_middleware(self, stall: StallMiddleware) -> ReadinessMiddleware:
        return ReadinessMiddleware(
            stall,
            is_healthy=self.publisher.is_healthy,
            is_health_check=lambda scope: reaches_health(self.handlers.app, scope),
            verdict=lambda: self.publisher.verdict,
        )

    async def _probe_on_demand(self) -> dict[str, Any]:
        prober = self.publisher.prober
        assert prober is not None, "before_registration sets it"
        return self.publisher.probe_report(await prober.probe_now()).wire()
