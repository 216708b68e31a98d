"""Owns the background tasks of an event loop."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from .shutdown import EXIT_FAILURE, terminate

__all__ = ["TaskSupervisor"]

logger = logging.getLogger(__name__)

STOP_SECONDS: Final = 10.0
"""Longest wait for cancelled tasks."""


class TaskSupervisor:
    """Starts tasks that run until they are cancelled. If one ends early, the process exits.

    Without the prober, for example, the report would no longer be true.
    """

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(_terminate_unless_cancelled)
        self._tasks.append(task)

    async def stop(self) -> None:
        """Cancel all tasks and wait for them. May be called more than once."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_SECONDS)


def _terminate_unless_cancelled(task: "asyncio.Task[None]") -> None:
    if task.cancelled():
        return
    error = task.exception()
    logger.critical("A background task ended: task=%s", task.get_name(), exc_info=error)
    how = "ended" if error is None else f"failed: {type(error).__name__}"
    terminate(EXIT_FAILURE, f"The worker's task {task.get_name()} {how}.")
