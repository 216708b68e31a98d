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
from collections.abc import Coroutine, MutableMapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import uvloop

from vllmendpoint_api import (
    Mode,
    PayloadSource,
    ProbeReport,
    Stage,
    Verdict,
    VerdictReport,
)

from . import upstream
from .arguments import clear_environment
from .board import Board, Clock
from .config_sources import GUIDE_VARIABLES, Loaded
from .configuration import Configuration, translation_problem
from .errors import ConfigurationRefusedError, EngineStartError, TranslationError
from .http_app import Guard, HttpServer, bound
from .leaving import leave
from .merge import Resolved
from .metrics import Metrics
from .payload import Origin
from .prober import Prober, ProbeResult, ProbeSettings, ask
from .progress import PROGRESS
from .report_server import ReportServer
from .stages import ENV_STAGE_SOCKET, PLUGINS, StageReceiver
from .translate import Translated, Translator
from .verdict import Rules, fit_for_ping, ready, stalled_for

__all__ = ["Worker"]

logger = logging.getLogger(__name__)

BEAT_SECONDS: Final = 0.25
WARM_UP_SECONDS: Final = 600.0
"""Bound on one warm-up request: the first with a temperature compiles the sampler (14-30 s without a GPU)."""

SHUTDOWN_SECONDS: Final = 75.0
"""Bound on what follows the grace period: 30 s of clean-up, the HTTP server's 25 s, the engine's end."""

EXIT_DEAD: Final = 1
EXIT_STALLED: Final = 3

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
        board: Board,
        server: ReportServer,
        *,
        host: str,
        port: int,
    ) -> None:
        self._configuration = configuration
        self._environ = environ
        self._board = board
        self._server = server
        self._listener = bound(host, port)
        self._clock = Clock()
        self._tasks: list[asyncio.Task[None]] = []
        self._engine: upstream.WorkerEngine | None = None
        self._arguments: upstream.Arguments | None = None
        self._translator: Translator | None = None
        self._prober: Prober | None = None
        self._http: HttpServer | None = None
        self._metrics: Metrics | None = None
        self._shutdown: upstream.Shutdown | None = None
        self._ending: asyncio.Task[None] | None = None
        self._probe: tuple[ProbeResult, ProbeReport] | None = None
        self._since: tuple[float, Any] | None = None
        self._warmed = False
        self._serving = False
        self._stopping = False

    def run(self) -> tuple[int, str]:
        """Run to the end; the exit code, and one sentence where the end was not asked for."""
        return uvloop.run(self._run())

    async def _run(self) -> tuple[int, str]:
        self._board.stage(Stage.CONFIGURING)
        self._configuration.fields = upstream.request_fields()
        await self._configuration.accepted(self._check)
        if (arguments := self._arguments) is None:
            raise EngineStartError("the engine's arguments were not parsed")
        clear_environment(
            self._environ, GUIDE_VARIABLES, PLUGINS, canary=not arguments.dynamo.embedding_worker
        )
        if not await asyncio.to_thread(Path(arguments.dynamo.model).exists):
            self._board.stage(Stage.DOWNLOADING, arguments.dynamo.model)
        await upstream.prepare_engine(arguments)
        receiver = StageReceiver(self._engine_stage)
        receiver.start()
        self._environ[ENV_STAGE_SOCKET] = receiver.address
        self._board.stage(Stage.STARTING_ENGINE)
        try:
            await upstream.serve(arguments, self, self._healthy)
        finally:
            receiver.stop()
            await self._stop_tasks()
        if self._ending is not None:
            await asyncio.wait({self._ending}, timeout=30.0)
            return 0, ""
        return 1, "Dynamo's worker ended by itself."

    # --- configuration
    # -----------------------------------------------------------------------------------------

    async def _check(self, loaded: Loaded) -> None:
        """With vLLM's field names, and with the engine's arguments."""
        self._configuration.check(loaded)
        argv = [
            *upstream.config_arguments(loaded.engine_config),
            *self._configuration.engine_arguments,
        ]
        try:
            self._arguments = await upstream.parse_arguments(argv, self._configuration.model_type)
        except EngineStartError as error:
            origin = Origin(PayloadSource.SPEC, "engine.args")
            problem = origin.problem(
                f"are refused ({error})", "correct them", reason="InvalidEngineArguments"
            )
            raise ConfigurationRefusedError([problem]) from error

    async def _resolve(self, loaded: Loaded) -> tuple[Resolved, Translated]:
        """Merge and translate. Raises ConfigurationRefusedError."""
        resolved = self._configuration.merge(loaded)
        if self._translator is None:
            raise EngineStartError("the model's renderer is not there yet")
        try:
            return resolved, await self._translator.translate(resolved.payload)
        except TranslationError as error:
            raise ConfigurationRefusedError([translation_problem(resolved, error)]) from error

    async def _watch_configuration(self) -> None:
        """Hot reload. A refused change leaves the last good configuration in force."""
        while True:
            await self._configuration.changed()
            loaded = await self._configuration.load()
            try:
                resolved, translated = await self._resolve(loaded)
            except ConfigurationRefusedError as error:
                self._configuration.refuse(error.problems, loaded, first=False)
                continue
            self._configuration.accept(resolved, loaded, translated.notes)
            if self._prober is not None:
                self._prober.configure(_settings(resolved, translated))

    # --- upstream's hooks
    # --------------------------------------------------------------------------------------

    def runtime_made(self, shutdown: upstream.Shutdown) -> None:
        self._shutdown = shutdown

    def engine_loaded(self, engine: upstream.WorkerEngine) -> None:
        self._engine = engine

    async def before_register(self) -> None:
        """Engine and handler stand. Resolve, warm up, probe and serve HTTP before anyone is told of us."""
        engine, arguments = self._engine, self._arguments
        if engine is None or arguments is None:
            raise EngineStartError("the engine was not set up")
        if not PROGRESS.attached:
            raise EngineStartError(
                "vLLM did not load the plugin vllmendpoint_progress: install vllmendpoint-worker as a package"
            )
        self._board.stage(Stage.WARMING)
        http = await upstream.build_http_app(engine, arguments.frontend)
        self._translator = Translator(
            http.renderer,
            defaults=engine.default_sampling,
            max_model_len=engine.max_model_len,
            model_names=engine.model_names,
        )
        if self._configuration.model_type is None:
            self._configuration.model_type = await self._translator.model_type(await engine.tasks())
        self._board.update(model_type=str(self._configuration.model_type or ""))
        resolved, translated = await self._first_resolution()
        self._board.stage(Stage.WARMING)
        if resolved.mode is not Mode.DISABLED:
            await self._warm_up(engine, translated)
        self._metrics = Metrics(self._since_proof)
        self._server.metrics = self._metrics.text
        self._prober = Prober(
            engine, _settings(resolved, translated), progress=PROGRESS, publish=self._publish
        )
        self._begin(self._prober.run(), "prober")
        await self._first_probe(resolved)
        self._warmed = True
        guard = Guard(http.app, fit=self._fit, verdict=lambda: self._verdict)
        self._http = HttpServer(http, guard, self._listener)
        await self._http.start()
        self._begin(self._watch_configuration(), "configuration")
        self._board.stage(Stage.REGISTERING)

    async def _first_resolution(self) -> tuple[Resolved, Translated]:
        found: list[tuple[Resolved, Translated]] = []

        async def check(loaded: Loaded) -> None:
            found.append(await self._resolve(loaded))

        loaded = await self._configuration.accepted(check)
        resolved, translated = found[-1]
        self._configuration.accept(resolved, loaded, translated.notes)
        return resolved, translated

    async def _warm_up(self, engine: upstream.WorkerEngine, translated: Translated) -> None:
        """Once as asked and once with sampling the other way round, so that no user pays for the
        compilation.
        """
        for request in filter(None, (translated.request, translated.warm_up)):
            result = await ask(engine, request, WARM_UP_SECONDS, self._clock)
            logger.info("Warm-up: %s in %.2f s", result.outcome, result.latency)
        PROGRESS.forget_steps()

    async def _first_probe(self, resolved: Resolved) -> None:
        """Not ready, nor registered, before one probe has ended, well or not."""
        if resolved.mode is Mode.DISABLED or self._prober is None:
            return
        bound = 2 * resolved.timeout_seconds + 5.0
        with suppress(TimeoutError):
            async with asyncio.timeout(bound):
                await self._prober.probe_now()

    def registered(self) -> None:
        self._serving = True
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        self._server.probe = lambda: self._probe_from_thread(loop)
        self._server.blocked = self._blocked
        self._board.stage(Stage.SERVING)
        self._board.update(started=True)
        self._begin(self._beat(), "beat")
        self._publish()
        logger.info("Serving %s", ", ".join(self._engine.model_names) if self._engine else "")

    # --- while it serves
    # ---------------------------------------------------------------------------------------

    @property
    def _mode(self) -> Mode:
        return self._prober.settings.mode if self._prober is not None else Mode.ENFORCE

    @property
    def _verdict(self) -> Verdict:
        """As shown: a dead engine is dead, whatever the mode."""
        verdict = self._prober.state.verdict if self._prober is not None else Verdict.STARTING
        return Verdict.DISABLED if self._mode is Mode.DISABLED and verdict is not Verdict.DEAD else verdict

    def _fit(self) -> bool:
        return fit_for_ping(self._verdict, self._mode, serving=self._serving)

    def _healthy(self) -> bool:
        """For upstream's ``/health``: our verdict, from the moment there is one."""
        return not self._stopping and fit_for_ping(self._verdict, self._mode, serving=self._warmed)

    def _publish(self) -> None:
        """From the prober's state to the board."""
        prober = self._prober
        if prober is None:
            return
        state = prober.state
        new = prober.last is not None and (self._probe is None or self._probe[0] is not prober.last)
        if prober.last is not None and self._metrics is not None and new:
            self._metrics.probed(prober.last)
        if self._metrics is not None:
            self._metrics.verdict(self._verdict)
        if self._since is None or self._since[0] != state.since:
            self._since = (state.since, self._clock.wall_of(state.since))
        disabled = self._verdict is Verdict.DISABLED
        is_ready, why = ready(
            self._verdict,
            self._mode,
            serving=self._serving,
            resolved_once=self._configuration.resolved is not None,
            warmed=self._warmed,
            stopping=self._stopping,
        )
        proof = prober.last_proof
        self._board.update(
            verdict=VerdictReport(
                state=self._verdict,
                reason="ProbingDisabled" if disabled else state.reason,
                message="Probing is off." if disabled else state.message[:2048],
                since=self._since[1],
                last_proof_of_life=self._clock.wall_of(proof) if proof is not None else None,
            ),
            last_probe=self._probe_report(prober.last) if prober.last is not None else None,
            ready=is_ready,
            why_not_ready=why,
        )

    def _probe_report(self, result: ProbeResult) -> ProbeReport:
        """Made once a probe: the report must not change while nothing does."""
        if self._probe is None or self._probe[0] is not result:
            report = ProbeReport(
                time=self._clock.wall_of(result.ended),
                latency_milliseconds=round(result.latency * 1000, 1),
                tokens=result.tokens,
                outcome=result.outcome,
            )
            self._probe = (result, report)
        return self._probe[1]

    def _since_proof(self) -> float:
        proof = self._prober.last_proof if self._prober is not None else None
        return self._clock.monotonic() - proof if proof is not None else float("inf")

    async def _beat(self) -> None:
        """The main loop's sign of life for the report's thread, and the two ends that are liveness's."""
        while True:
            self._board.beat()
            if (prober := self._prober) is not None and not self._stopping:
                if prober.state.verdict is Verdict.DEAD:
                    await asyncio.sleep(0.1)  # the watchers hear of it
                    leave(EXIT_DEAD, "The engine is gone: vLLM reports EngineDeadError.")
                limit = (
                    self._configuration.resolved.restart_after_seconds
                    if self._configuration.resolved
                    else 0.0
                )
                stalled = stalled_for(prober.state, self._clock.monotonic())
                if 0 < limit <= stalled and self._mode is not Mode.DISABLED:
                    leave(
                        EXIT_STALLED,
                        f"The engine has been stalled for {stalled:.0f} s (restartAfterSeconds).",
                    )
            await asyncio.sleep(BEAT_SECONDS)

    def _blocked(self, seconds: float) -> None:
        """On the report's thread: the main loop cannot end the process, if it is blocked for too long."""
        resolved = self._configuration.resolved
        if resolved is not None and 0 < resolved.restart_after_seconds <= seconds:
            leave(EXIT_STALLED, f"The worker's event loop has been blocked for {seconds:.0f} s.")

    def _probe_from_thread(self, loop: asyncio.AbstractEventLoop) -> Future[dict[str, Any]]:
        return asyncio.run_coroutine_threadsafe(self._probe_once(), loop)

    async def _probe_once(self) -> dict[str, Any]:
        if self._prober is None:
            raise EngineStartError("the worker does not serve yet")
        result = await self._prober.probe_now()
        return self._probe_report(result).wire()

    def _engine_stage(self, stage: Stage) -> None:
        """From the engine's processes, in any order: a stage only moves forward."""
        current = self._board.facts.stage.name
        known = stage in _ENGINE_STAGES and current in _ENGINE_STAGES
        if known and _ENGINE_STAGES.index(stage) > _ENGINE_STAGES.index(Stage(current)):
            self._board.stage(stage)

    # --- the end
    # -----------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """SIGTERM or SIGINT: unready at once, then Dynamo's graceful shutdown. A second signal changes
        nothing.
        """
        if self._stopping or self._shutdown is None:
            return
        logger.info("Signal: the worker stops")
        self._stopping = True
        self._board.stage(Stage.STOPPING)
        self._publish()
        self._board.update(ready=False, why_not_ready="the worker is stopping")
        last_resort = threading.Timer(
            upstream.grace_seconds() + SHUTDOWN_SECONDS,
            leave,
            (EXIT_DEAD, "The worker did not stop in time."),
        )
        last_resort.daemon = True
        last_resort.start()
        self._ending = asyncio.get_running_loop().create_task(
            self._shutdown.run(self._cleanup), name="shutdown"
        )

    async def _cleanup(self) -> None:
        """After the grace period, before the runtime and the engine go."""
        self._board.rest()
        if self._http is not None:
            await self._http.stop()
        await self._stop_tasks()

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(_unexpected_end)
        self._tasks.append(task)

    async def _stop_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=10.0)


def _settings(resolved: Resolved, translated: Translated) -> ProbeSettings:
    rules = Rules(resolved.timeout_seconds, resolved.failure_threshold, resolved.success_threshold)
    return ProbeSettings(translated.request, resolved.mode, resolved.period_seconds, rules)


def _unexpected_end(task: "asyncio.Task[None]") -> None:
    """Prober, watcher and beat never end by themselves: without one of them the report would lie."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("The task %s failed", task.get_name(), exc_info=error)
        leave(EXIT_DEAD, f"The worker's task {task.get_name()} failed: {type(error).__name__}.")
