"""Interrupts customer code that blocks the worker's event loop, once the handlers have been changed.

While the loop is blocked, nothing on it can take up the changed script. So a thread compares the handlers
that are wanted with those in force, and sends the main thread a signal, whose handler raises in the
customer's code. That ends Python code, ``time.sleep()``, locks and sockets; a call into C that ignores
signals goes on.
"""

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final

from vllmendpoint_worker.config.handler_config import HandlerConfig
from vllmendpoint_worker.errors import HandlerAbortedError

from ._manager import HandlerManager
from .loading._script_loop import INTERRUPT

__all__ = ["HandlerInterrupter"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

_SECONDS: Final = 1.0
"""Time between two looks."""

PATIENCE_SECONDS: Final = 60.0
"""Once the worker serves, a handler that blocks the loop may be answering a request: it has this time."""


class HandlerInterrupter:
    """``blocked`` gives the seconds for which the loop has been blocked too long, else 0; ``wanted`` the
    handlers that are wanted by a change which the loop has not taken up, else None. All are called on a
    thread of its own.
    """

    def __init__(
        self,
        manager: HandlerManager,
        *,
        blocked: Callable[[], float],
        serving: Callable[[], bool],
        wanted: Callable[[], HandlerConfig | None],
    ) -> None:
        self._manager = manager
        self._blocked = blocked
        self._serving = serving
        self._wanted = wanted
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="unblocker", daemon=True)

    def start(self) -> None:
        """On the main thread, which alone may set a signal's handler."""
        signal.signal(INTERRUPT, self._interrupt)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(_SECONDS):
            seconds = self._blocked()
            if not seconds or (self._serving() and seconds < PATIENCE_SECONDS):
                continue
            if (where := self._manager.blocking_frame()) and self._changed():
                logger.warning("The handlers that block the event loop at %s are interrupted", where)
                self._manager.give_up()
                signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)

    def _changed(self) -> bool:
        try:
            wanted = self._wanted()
            return wanted is not None and self._manager.differs(wanted)
        except Exception:  # else nobody would look again
            logger.exception("The wanted handlers cannot be read")
            return False

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        del number
        if self._manager.given_up and self._manager.in_customer_code(frame):
            raise HandlerAbortedError
