"""Drains requests, and exits the process with its child processes."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from .clock import Clock

__all__ = [
    "EXIT_FAILURE",
    "EXIT_STALLED",
    "PROCESS_GROUPS",
    "terminate",
    "wait_for_drain",
    "write_termination_message",
]

logger = logging.getLogger(__name__)

EXIT_FAILURE: Final = 1
EXIT_STALLED: Final = 3

DRAIN_SECONDS: Final = 25.0
"""Longest wait for the requests in flight."""

PROCESS_GROUPS: Final[set[int]] = set()
"""Process groups that are killed with this process."""

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""Kubernetes shows the content of this file as the termination message of the container."""

MAX_MESSAGE: Final = 2048

_TERMINATING: Final = threading.RLock()


async def wait_for_drain(unfinished: Callable[[], int], give_up: Callable[[], bool], clock: Clock) -> None:
    """Return when no request is unfinished, or ``give_up`` is true (a stalled engine answers no request), or
    :data:`DRAIN_SECONDS` have passed.
    """
    deadline = clock.monotonic() + DRAIN_SECONDS
    while count := unfinished():
        if give_up() or clock.monotonic() >= deadline:
            logger.warning("Requests in flight are not complete: count=%d", count)
            return
        await asyncio.sleep(0.05)


def terminate(code: int, message: str = "") -> NoReturn:
    """Exit immediately, with the child processes. ``message``: the cause, as a sentence, unless a signal is
    the cause.

    Of several threads, the first one decides: another one may only have noticed that a child has ended.
    """
    with _TERMINATING:
        if message:
            logger.critical("%s", message)
            write_termination_message(message)
        _end_children()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # the reader has gone
                stream.flush()
        os._exit(code)


def _end_children() -> None:
    """vLLM's engine core is a child process; it ends its own workers."""
    for group in tuple(PROCESS_GROUPS):  # a thread that waits for one of them removes it
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


def write_termination_message(message: str) -> None:
    """Set the container's termination message. Outside a container, nothing happens."""
    if TERMINATION_LOG.exists():
        try:
            TERMINATION_LOG.write_text(message[:MAX_MESSAGE])
        except OSError as error:
            logger.debug("The termination message cannot be written: error=%s", error.strerror)
