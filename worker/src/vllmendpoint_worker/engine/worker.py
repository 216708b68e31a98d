"""Runs the worker on one event loop: prepare, start the engine, serve, shut down.

The stage in the worker state is the one phase of this lifecycle. See decision 36 in docs/decisions.
"""

from collections.abc import MutableMapping, Sequence

import uvloop

from vllmendpoint_worker import upstream
from vllmendpoint_worker.config.configuration import Configuration
from vllmendpoint_worker.handlers import HandlerManager
from vllmendpoint_worker.probing.frontend_probes import FrontendProbes
from vllmendpoint_worker.probing.publisher import HealthPublisher
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.process.shutdown import EXIT_FAILURE
from vllmendpoint_worker.process.task_supervisor import TaskSupervisor
from vllmendpoint_worker.serving.report_server import ReportServer
from vllmendpoint_worker.serving.state import WorkerState

from .http_app import bind_port
from .liveness import Liveness
from .preparation import Preparation
from .resolution import HandlerLoader
from .stages import ENV_STAGE_SOCKET, StageReceiver
from .startup import Startup

__all__ = ["Worker"]


class Worker:
    """``environ`` is changed. ``host`` and ``port``: the address of the SageMaker port."""

    def __init__(
        self,
        configuration: Configuration,
        environ: MutableMapping[str, str],
        state: WorkerState,
        report_server: ReportServer,
        *,
        host: str,
        port: int,
    ) -> None:
        self._configuration = configuration
        self._environ = environ
        self._state = state
        self._report_server = report_server
        self._listeners = bind_port(host, port)
        self._clock = Clock()
        self._tasks = TaskSupervisor()
        self._publisher = HealthPublisher(state, self._clock)
        report_server.metrics = self._publisher.metrics.text
        self._handlers = HandlerManager(self._publish_handlers, self._clock)
        self._loader = HandlerLoader(configuration, self._handlers, state)

    def run(self) -> tuple[int, str]:
        """Returns the exit code, and the cause as a sentence unless a signal ended the worker."""
        return uvloop.run(self._run())

    async def _run(self) -> tuple[int, str]:
        preparation = Preparation(self._configuration, self._loader, self._environ, self._state)
        arguments = await preparation.run()
        startup = self._create_startup(arguments.frontend)
        stages = StageReceiver(self._state.advance_load)
        stages.start()
        self._environ[ENV_STAGE_SOCKET] = stages.address
        try:
            await upstream.serve(arguments, startup, self._health(), self._publisher.metrics.registry)
        finally:
            stages.stop()
            await self._tasks.stop()
            if startup.http is not None:
                await startup.http.abort()
        if startup.shutdown is not None and await startup.shutdown.wait():
            return 0, ""
        return EXIT_FAILURE, "Dynamo's worker ended without a signal."

    def _create_startup(self, frontend: Sequence[str]) -> Startup:
        return Startup(
            frontend=frontend,
            listeners=self._listeners,
            configuration=self._configuration,
            handlers=self._handlers,
            loader=self._loader,
            state=self._state,
            publisher=self._publisher,
            liveness=Liveness(self._state, self._publisher, self._restart_after, self._clock),
            report_server=self._report_server,
            tasks=self._tasks,
            clock=self._clock,
        )

    def _health(self) -> upstream.HealthSource:
        return upstream.HealthSource(
            is_healthy=self._publisher.is_healthy_for_dynamo,
            is_stopped=self._publisher.is_stopped,
            answer_probe=FrontendProbes(self._publisher, self._clock).answer,
        )

    def _publish_handlers(self) -> None:
        self._state.update(handlers=self._handlers.report())

    def _restart_after(self) -> float:
        resolved = self._configuration.resolved
        return resolved.restart_after_seconds if resolved is not None else 0.0
