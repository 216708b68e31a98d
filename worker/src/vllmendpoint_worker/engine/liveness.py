"""Exits the process when the engine is dead, or stalled for ``restartAfterSeconds``; sends heartbeats."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

from vllmendpoint_api import Mode, Stage, Verdict
from vllmendpoint_worker.probing.publisher import HealthPublisher
from vllmendpoint_worker.probing.verdict import stalled_seconds
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.process.shutdown import EXIT_FAILURE, EXIT_STALLED, terminate
from vllmendpoint_worker.serving.state import WorkerState

from .engine_errors import ENGINE_ERRORS

__all__ = ["Liveness"]

HEARTBEAT_SECONDS: Final = 0.25

PUBLISH_SECONDS: Final = 0.1
"""Time for the report streams to deliver the verdict ``Dead``."""


class Liveness:
    """``restart_after``: seconds of stall after which the process exits; 0 for never.

    ``move_requests`` ends the requests in flight before the process exits over a dead engine.
    """

    def __init__(
        self, state: WorkerState, publisher: HealthPublisher, restart_after: Callable[[], float], clock: Clock
    ) -> None:
        self.move_requests: Callable[[], Awaitable[None]] | None = None
        self._engine_died = False
        self._state = state
        self._publisher = publisher
        self._restart_after = restart_after
        self._clock = clock

    async def run(self) -> None:
        """Send heartbeats of the main loop and check the engine, until cancelled."""
        while True:
            self._state.heartbeat(starting=not self._state.is_registered)
            if self._engine_died:
                await self._exit_over_dead_engine()
            if self._state.stage is Stage.SERVING:
                await self._check()
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _check(self) -> None:
        if (prober := self._publisher.prober) is None:
            return
        if prober.state.verdict is Verdict.DEAD:
            await self._exit_over_dead_engine()
        stalled = stalled_seconds(prober.state, self._clock.monotonic())
        if 0 < self._restart_after() <= stalled and self._publisher.mode is not Mode.DISABLED:
            terminate(EXIT_STALLED, f"The engine has been stalled for {stalled:.0f} s (restartAfterSeconds).")

    async def _exit_over_dead_engine(self) -> None:
        if self.move_requests is not None:
            await self.move_requests()
        await asyncio.sleep(PUBLISH_SECONDS)
        _terminate_over_dead_engine()

    def on_engine_died(self) -> None:
        """Called when upstream has found a dead engine. The next check exits the process. Before registration
        there are no requests to move, so the process exits immediately.
        """
        if not self._state.is_registered:
            _terminate_over_dead_engine()
        self._engine_died = True

    def on_blocked(self, seconds: float) -> None:
        """Called on the report server's thread, because a blocked main loop cannot exit the process."""
        if 0 < self._restart_after() <= seconds:
            terminate(EXIT_STALLED, f"The worker's event loop has been blocked for {seconds:.0f} s.")


def _terminate_over_dead_engine() -> NoReturn:
    terminate(EXIT_FAILURE, f"The engine is dead: vLLM reports EngineDeadError.{ENGINE_ERRORS.latest()}")
