"""Shuts a registered worker down on SIGTERM or SIGINT."""

import asyncio
import logging
import signal
import threading
from typing import Final

from vllmendpoint_api import Stage
from vllmendpoint_worker import upstream
from vllmendpoint_worker.handlers import HandlerInterrupter
from vllmendpoint_worker.probing.publisher import HealthPublisher
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.process.shutdown import EXIT_FAILURE, terminate, wait_for_drain
from vllmendpoint_worker.process.task_supervisor import TaskSupervisor
from vllmendpoint_worker.serving.state import WorkerState

from .http_app import HttpServer

__all__ = ["GracefulShutdown"]

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS: Final = 50.0
"""Longest shutdown after Dynamo's grace period. Together with its 5 s this is less than the pod's 60 s."""

FINISH_SECONDS: Final = 30.0
"""Longest wait for Dynamo's shutdown after its worker has returned."""


class GracefulShutdown:
    """Runs Dynamo's graceful shutdown: unregister, grace period, drain, clean up, end the engine.

    Before registration, ``start`` handles the signals: no client uses the worker, so it exits immediately.
    """

    def __init__(
        self,
        shutdown: upstream.Shutdown,
        engine: upstream.WorkerEngine,
        http: HttpServer,
        *,
        state: WorkerState,
        publisher: HealthPublisher,
        interrupter: HandlerInterrupter,
        tasks: TaskSupervisor,
        clock: Clock,
    ) -> None:
        self._shutdown = shutdown
        self._engine = engine
        self._http = http
        self._state = state
        self._publisher = publisher
        self._interrupter = interrupter
        self._tasks = tasks
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._start)

    async def wait(self) -> bool:
        """Wait for a shutdown that has started; False if none has."""
        if self._task is None:
            return False
        _, running = await asyncio.wait({self._task}, timeout=FINISH_SECONDS)
        for task in running:
            task.cancel()
        return True

    def _start(self) -> None:
        """Become unready, then shut down. A second signal has no effect."""
        if self._task is not None:
            return
        logger.info("A signal stops the worker")
        self._state.enter_stage(Stage.STOPPING)
        self._publisher.publish()
        deadline = threading.Timer(
            upstream.grace_seconds() + SHUTDOWN_SECONDS,
            terminate,
            (EXIT_FAILURE, "The worker did not stop in time."),
        )
        deadline.daemon = True
        deadline.start()
        run = self._shutdown.run(self._drain, self._clean_up)
        self._task = asyncio.get_running_loop().create_task(run, name="shutdown")

    async def _drain(self) -> None:
        """Called after the grace period, before Dynamo aborts the requests in flight."""

        await asyncio.gather(self._http.stop(), self._drain_requests())

    async def _drain_requests(self) -> None:
        """Requests of frontends that are not complete in time move to other workers."""
        await wait_for_drain(self._engine.unfinished, self._publisher.is_stopped, self._clock)
        await self._engine.requests.drain()

    async def _clean_up(self) -> None:
        """Called after the drain, before the runtime and the engine shut down."""
        self._state.stop_heartbeat()
        self._interrupter.stop()
        await self._http.stop()
        await self._tasks.stop()
