"""The main loop's sign of life, and the two ends of the process that are liveness's: a dead engine, and a
certain stall of ``restartAfterSeconds``.
"""

import asyncio
from collections.abc import Callable
from typing import Final, NoReturn

from vllmendpoint_api import Mode, Stage, Verdict
from vllmendpoint_worker.probing.publisher import HealthPublisher
from vllmendpoint_worker.probing.verdict import stalled_seconds
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.process.shutdown import terminate
from vllmendpoint_worker.serving.state import WorkerState

from .engine_errors import ENGINE_ERRORS

__all__ = ["EXIT_DEAD", "EXIT_STALLED", "Liveness"]

HEARTBEAT_SECONDS: Final = 0.25
EXIT_DEAD: Final = 1
EXIT_STALLED: Final = 3


class Liveness:
    """``restart_after`` gives the seconds of stall that end the process, 0 for never."""

    def __init__(
        self, state: WorkerState, shown: HealthPublisher, restart_after: Callable[[], float], clock: Clock
    ) -> None:
        self._state = state
        self._shown = shown
        self._restart_after = restart_after
        self._clock = clock

    async def run(self) -> None:
        """Beat until cancelled, or until the process must end."""
        while True:
            self._state.heartbeat(starting=not self._state.is_registered)
            prober = self._shown.prober
            if prober is not None and self._state.stage is Stage.SERVING:
                if prober.state.verdict is Verdict.DEAD:
                    await asyncio.sleep(0.1)  # the watchers hear of it
                    self.engine_died()
                stalled = stalled_seconds(prober.state, self._clock.monotonic())
                if 0 < self._restart_after() <= stalled and self._shown.mode is not Mode.DISABLED:
                    terminate(
                        EXIT_STALLED,
                        f"The engine has been stalled for {stalled:.0f} s (restartAfterSeconds).",
                    )
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def engine_died(self) -> NoReturn:
        terminate(EXIT_DEAD, f"The engine is dead: vLLM reports EngineDeadError.{ENGINE_ERRORS.latest()}")

    def blocked(self, seconds: float) -> None:
        """On the report's thread: the main loop cannot end the process, if it is blocked for too long."""
        if 0 < self._restart_after() <= seconds:
            terminate(EXIT_STALLED, f"The worker's event loop has been blocked for {seconds:.0f} s.")
