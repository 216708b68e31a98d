"""Puts Dynamo's own building blocks and ours together, in order: configuration, engine, warm-up,
registration.

The worker is one object on one event loop; every task it starts is in ``_tasks`` and is cancelled and
awaited when it stops. Until the worker is registered a signal ends it at once (nobody uses it); from then on
a signal starts Dynamo's graceful shutdown.
"""

import asyncio
import logging
import signal
import threading
from collections.abc import Coroutine, Mapping, MutableMapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import uvloop

from vllmendpoint_api import Level, Mode, Stage, Verdict, payload_for
from vllmendpoint_worker import upstream
from vllmendpoint_worker.config.configuration import Configuration, rejected_by_vllm
from vllmendpoint_worker.config.merge import Resolved
from vllmendpoint_worker.config.sources import GUIDE_VARIABLES, LoadedConfiguration
from vllmendpoint_worker.errors import ConfigurationRejectedError, EngineStartError
from vllmendpoint_worker.handlers import (
    HandlerInterrupter,
    HandlerManager,
    PingProber,
    install_sagemaker_routes,
)
from vllmendpoint_worker.options.arguments import clear_environment
from vllmendpoint_worker.payload.model_type import RUNNER_GENERATE, reject_after_start
from vllmendpoint_worker.probing.progress import PROGRESS
from vllmendpoint_worker.probing.publisher import HealthPublisher
from vllmendpoint_worker.probing.ranks import RankProbers
from vllmendpoint_worker.probing.trial import warm_up
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.process.shutdown import terminate, wait_for_drain
from vllmendpoint_worker.serving.health_route import reaches_health
from vllmendpoint_worker.serving.report_server import ReportServer
from vllmendpoint_worker.serving.state import WorkerState

from .http_app import HttpServer, ReadinessMiddleware, bind_port
from .liveness import EXIT_DEAD, Liveness
from .resolution import AcceptedConfiguration, Resolver, probe_settings
from .stages import ENV_STAGE_SOCKET, PLUGINS, StageReceiver
from .translate import Translator

__all__ = ["Worker"]

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS: Final = 50.0
"""Bound on what follows the grace period: with its 5 s, less than the 60 s after which the kubelet kills."""

_ENGINE_STAGES: Final = [
    Stage.STARTING_ENGINE,
    Stage.LOADING_WEIGHTS,
    Stage.COMPILING,
    Stage.ALLOCATING_CACHE,
]


class Worker:
    """``argv``: the engine's arguments; ``environ`` is changed: what upstream must not see is taken out."""

    def __init__(
        self,
        configuration: Configuration,
        environ: MutableMapping[str, str],
        state: WorkerState,
        server: ReportServer,
        *,
        host: str,
        port: int,
    ) -> None:
        self._configuration = configuration
        self._environ = environ
        self._state = state
        self._server = server
        self._listeners = bind_port(host, port)
        self._clock = Clock()
        self._tasks: list[asyncio.Task[None]] = []
        self._engine: upstream.WorkerEngine | None = None
        self._arguments: upstream.Arguments | None = None
        self._shown = HealthPublisher(state, self._clock)
        server.metrics = self._shown.metrics.text
        self._liveness = Liveness(state, self._shown, self._restart_after, self._clock)
        self._manager = HandlerManager(self._handlers_changed, self._clock)
        self._resolver = Resolver(configuration, self._manager, state, self._shown)
        self._ping = PingProber(
            self._manager,
            address=lambda: self._listeners[0].getsockname()[:2],
            timeout=lambda: self._resolver.resolved.timeout_seconds,
            thresholds=lambda: (
                self._resolver.resolved.failure_threshold,
                self._resolver.resolved.success_threshold,
            ),
            changed=self._shown.publish_ping,
            clock=self._clock,
        )
        self._interrupter = HandlerInterrupter(
            self._manager,
            blocked=state.blocked_for,
            serving=lambda: state.is_registered,
            wanted=configuration.pending_handlers,
        )
        self._http: HttpServer | None = None
        self._shutdown: upstream.Shutdown | None = None
        self._ending: asyncio.Task[None] | None = None

    def run(self) -> tuple[int, str]:
        """Run to the end; the exit code, and one sentence where the end was not asked for."""
        return uvloop.run(self._run())

    async def _run(self) -> tuple[int, str]:
        self._state.enter_stage(Stage.CONFIGURING)
        self._configuration.fields = upstream.request_fields()
        self._configuration.option_names = upstream.option_names()
        self._configuration.parsers = upstream.parsers()
        await self._configuration.wait_until_accepted(self._resolver.check)
        if (arguments := self._resolver.arguments) is None:
            raise EngineStartError("the engine's arguments were not parsed")
        clear_environment(self._environ, GUIDE_VARIABLES, PLUGINS)
        if not await asyncio.to_thread(Path(arguments.dynamo.model).exists):
            self._state.enter_stage(Stage.DOWNLOADING, arguments.dynamo.model)
        try:
            arguments = await upstream.prepare_engine(
                arguments, lambda: self._state.enter_stage(Stage.STARTING_ENGINE), self._resolver.check_model
            )
        except ConfigurationRejectedError as error:
            await self._configuration.stay_rejected(error.problems)
        self._arguments = arguments
        receiver = StageReceiver(self._engine_stage)
        receiver.start()
        self._environ[ENV_STAGE_SOCKET] = receiver.address
        try:
            await upstream.serve(
                arguments, self, self._shown.is_healthy_for_dynamo, self._shown.metrics.registry
            )
        finally:
            receiver.stop()
            await self._stop_tasks()
        if self._ending is not None:
            await asyncio.wait({self._ending}, timeout=30.0)
            return 0, ""
        return 1, "Dynamo's worker ended by itself."

    def _handlers_changed(self) -> None:
        self._state.update(handlers=self._manager.report())

    # --- upstream's hooks
    # --------------------------------------------------------------------------------------

    def runtime_made(self, shutdown: upstream.Shutdown) -> None:
        self._shutdown = shutdown

    def engine_loaded(self, engine: upstream.WorkerEngine) -> None:
        self._engine = engine
        engine.died = self._liveness.engine_died

    async def before_register(self) -> None:
        """Engine and handler stand. Resolve, warm up, probe and serve HTTP before anyone is told of us."""
        engine, arguments = self._engine, self._arguments
        if engine is None or arguments is None:
            raise EngineStartError("the engine was not set up")
        if not PROGRESS.ranks:
            raise EngineStartError(
                "vLLM did not load the plugin vllmendpoint_progress: install vllmendpoint-worker as a package"
            )
        self._state.enter_stage(Stage.WARMING)
        http = await upstream.build_http_app(
            engine, arguments.frontend, self._shown.metrics.registry, self._shown.is_healthy
        )
        tasks = await engine.tasks()
        pooled = None if RUNNER_GENERATE in tasks else await engine.pooled_type()
        self._resolver.translator = translator = Translator(
            http.renderer,
            defaults=engine.default_sampling,
            max_model_len=engine.max_model_len,
            model_names=engine.model_names,
            pooled=pooled,
            scores=engine.scores,
        )
        declared = self._configuration.model_type
        told = await translator.model_type() if RUNNER_GENERATE in tasks else pooled
        if (problem := reject_after_start(declared, told, tasks)) is not None:
            await self._configuration.stay_rejected([problem])
        self._configuration.model_type = declared or told
        self._state.update(model_type=str(self._configuration.model_type or ""))
        install_sagemaker_routes(http.app, loading=http.loads_adapters)
        self._manager.attach(http.app)
        self._state.blocking_frame = self._manager.blocking_frame
        self._begin(self._liveness.run(), "liveness")
        self._interrupter.start()
        self._manager.report_thread_errors()
        accepted = await self._first_resolution(engine)
        resolved, translated = accepted.resolved, accepted.translated
        shown = self._shown
        shown.prober = RankProbers(
            engine,
            probe_settings(resolved, translated),
            progress=PROGRESS,
            publish=shown.publish,
            on_result=shown.metrics.record_probe,
        )
        self._begin(shown.prober.run(), "prober")
        await self._first_probe(shown.prober, resolved)
        self._state.enter_stage(Stage.REGISTERING)
        await self._ping.ask()
        middleware = ReadinessMiddleware(
            self._manager,
            is_healthy=shown.is_healthy,
            is_health_check=lambda scope: reaches_health(self._manager.app, scope),
            verdict=lambda: shown.verdict,
        )
        self._http = HttpServer(http, middleware, self._listeners)
        await self._http.start()
        self._begin(self._resolver.watch(), "configuration")
        self._begin(self._ping.run(), "ping")

    async def _first_resolution(self, engine: upstream.WorkerEngine) -> AcceptedConfiguration:
        """The first configuration that the engine answers, or gives no answer to: the prober then says so."""
        found: list[AcceptedConfiguration] = []

        async def check(loaded: LoadedConfiguration) -> None:
            accepted = await self._resolver.resolve(loaded)
            if accepted.resolved.mode is not Mode.DISABLED:
                self._state.enter_stage(Stage.WARMING)
                await self._warm_up(engine, accepted)
            found.append(accepted)

        await self._configuration.wait_until_accepted(check)
        self._state.enter_stage(Stage.WARMING)
        self._resolver.apply(found[-1])
        return found[-1]

    async def _warm_up(self, engine: upstream.WorkerEngine, accepted: AcceptedConfiguration) -> None:
        """Raises ConfigurationRejectedError where vLLM refuses the question."""

        async def minimal() -> Mapping[str, Any]:
            payload = payload_for(Level.MINIMAL, self._configuration.model_type)
            return (await self._resolver.translate(payload)).request

        translated = accepted.translated
        engines = [engine.rank(rank) for rank in PROGRESS.request_ranks]
        refusal = await warm_up(
            engines,
            translated.request,
            translated.warm_up,
            minimal=minimal,
            read_rejection=upstream.rejection_of,
            clock=self._clock,
        )
        if refusal is not None:
            raise ConfigurationRejectedError([rejected_by_vllm(accepted.resolved, refusal)])
        PROGRESS.forget_steps()

    async def _first_probe(self, prober: RankProbers, resolved: Resolved) -> None:
        """Not ready, nor registered, before one probe has ended, well or not."""
        if resolved.mode is Mode.DISABLED:
            return
        bound = 2 * resolved.timeout_seconds + 5.0
        with suppress(TimeoutError):
            async with asyncio.timeout(bound):
                await prober.probe_now()

    def registered(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        self._server.probe = lambda: self._probe_from_thread(loop)
        self._server.blocked = self._liveness.blocked
        self._state.enter_stage(Stage.SERVING)
        self._state.update(started=True)
        self._shown.publish()
        logger.info("Serving %s", ", ".join(self._engine.model_names) if self._engine else "")

    # --- while it serves
    # ---------------------------------------------------------------------------------------

    def _probe_from_thread(self, loop: asyncio.AbstractEventLoop) -> Future[dict[str, Any]]:
        return asyncio.run_coroutine_threadsafe(self._probe_once(), loop)

    async def _probe_once(self) -> dict[str, Any]:
        if self._shown.prober is None:
            raise EngineStartError("the worker does not serve yet")
        result = await self._shown.prober.probe_now()
        return self._shown.probe_report(result).wire()

    def _restart_after(self) -> float:
        resolved = self._configuration.resolved
        return resolved.restart_after_seconds if resolved is not None else 0.0

    def _engine_stage(self, stage: Stage) -> None:
        """From the engine's processes, in any order: a stage only moves forward."""
        current = self._state.snapshot.stage.name
        known = stage in _ENGINE_STAGES and current in _ENGINE_STAGES
        if known and _ENGINE_STAGES.index(stage) > _ENGINE_STAGES.index(Stage(current)):
            self._state.enter_stage(stage)

    # --- the end
    # -----------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """SIGTERM or SIGINT: unready at once, then Dynamo's graceful shutdown. A second signal changes
        nothing.
        """
        if self._state.stage is Stage.STOPPING or self._shutdown is None:
            return
        logger.info("Signal: the worker stops")
        self._state.enter_stage(Stage.STOPPING)
        self._shown.publish()
        last_resort = threading.Timer(
            upstream.grace_seconds() + SHUTDOWN_SECONDS,
            terminate,
            (EXIT_DEAD, "The worker did not stop in time."),
        )
        last_resort.daemon = True
        last_resort.start()
        self._ending = asyncio.get_running_loop().create_task(
            self._shutdown.run(self._drain, self._cleanup), name="shutdown"
        )

    async def _drain(self) -> None:
        """After the grace period, before upstream aborts what is in flight: users are answered."""
        if self._engine is not None and self._http is not None:
            shown = self._shown
            drain = wait_for_drain(
                self._engine.unfinished, lambda: shown.verdict is Verdict.STALLED, self._clock
            )
            await asyncio.gather(self._http.stop(), drain)

    async def _cleanup(self) -> None:
        """After the requests in flight, before the runtime and the engine go."""
        self._state.stop_heartbeat()
        self._interrupter.stop()
        if self._http is not None:
            await self._http.stop()
        await self._stop_tasks()

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    @staticmethod
    def _ended(task: "asyncio.Task[None]") -> None:
        """Prober, watcher and liveness never end by themselves: without one of them the report would lie."""
        if task.cancelled():
            return  # it was stopped
        error = task.exception()
        logger.critical("The task %s ended", task.get_name(), exc_info=error)
        how = "ended" if error is None else f"failed: {type(error).__name__}"
        terminate(EXIT_DEAD, f"The worker's task {task.get_name()} {how}.")

    async def _stop_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=10.0)
