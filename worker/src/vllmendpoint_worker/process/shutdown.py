"""The end of the process, from wherever it is decided."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from vllmendpoint_worker.process.clock import Clock

__all__ = ["PROCESS_GROUPS", "terminate", "wait_for_drain", "write_termination_message"]

logger = logging.getLogger(__name__)

DRAIN_SECONDS: Final = 25.0
"""Bound on the requests in flight."""

PROCESS_GROUPS: Final[set[int]] = set()
"""Those that end with this process."""

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""Kubernetes shows what a container wrote here as the reason of its end."""


async def wait_for_drain(unfinished: Callable[[], int], give_up: Callable[[], bool], clock: Clock) -> None:
    """Return once no request is unfinished, or waiting is ``give_up`` (a stalled engine answers nobody), or
    after :data:`DRAIN_SECONDS`.
    """
    deadline = clock.monotonic() + DRAIN_SECONDS
    while left := unfinished():
        if give_up() or clock.monotonic() >= deadline:
            logger.warning("Requests in flight that are cut off: %d", left)
            return
        await asyncio.sleep(0.05)


def terminate(code: int, why: str = "") -> NoReturn:
    """End the children and the process, at once. ``why``: one sentence, where the end is not asked for."""
    if why:
        logger.critical("%s", why)
        write_termination_message(why)
    _end_children()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


def _end_children() -> None:
    """vLLM's engine core is a child of ours; it ends its own workers."""
    for group in PROCESS_GROUPS:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is None:
        return
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    for child in children:
        child.join(3.0)
        if child.is_alive():
            child.kill()
            child.join(1.0)


def write_termination_message(why: str) -> None:
    """Make ``why`` the container's termination message, where there is one."""
    if TERMINATION_LOG.exists():
        try:
            TERMINATION_LOG.write_text(why[:2048])
        except OSError as error:
            logger.debug("The termination log cannot be written: %s", error.strerror)
