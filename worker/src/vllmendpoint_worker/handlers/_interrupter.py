"""Interrupts customer code that blocks the worker's event loop, once the handlers have been changed.

While the event loop is blocked, no task on it can load the changed script. Therefore a thread compares the
desired handlers with the loaded ones and sends a signal to the main thread, whose signal handler raises in
the customer's code. This ends Python code, ``time.sleep()``, locks and sockets. It does not end a call into C
that ignores signals. See docs/troubleshooting/README.md, "Handlers".
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
from .loading._script_loop import INTERRUPT_SIGNAL

__all__ = ["HandlerInterrupter"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

_POLL_SECONDS: Final = 1.0

PATIENCE_SECONDS: Final = 60.0
"""Time that a handler may block the event loop of a serving worker: it may be answering a request."""


class HandlerInterrupter:
    """The thread that interrupts, and its signal handler. The thread calls all three functions.

    ``blocked_for`` returns the seconds that the event loop has been blocked beyond its limit, otherwise 0.
    ``pending_config`` returns the desired handlers, or None if they are invalid or already loaded.
    """

    def __init__(
        self,
        manager: HandlerManager,
        *,
        blocked_for: Callable[[], float],
        is_serving: Callable[[], bool],
        pending_config: Callable[[], HandlerConfig | None],
    ) -> None:
        self._manager = manager
        self._blocked_for = blocked_for
        self._is_serving = is_serving
        self._pending_config = pending_config
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="handler-interrupter", daemon=True)

    def start(self) -> None:
        """Call on the main thread, because Python sets signal handlers only there."""
        signal.signal(INTERRUPT_SIGNAL, self._interrupt)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            seconds = self._blocked_for()
            if not seconds or (self._is_serving() and seconds < PATIENCE_SECONDS):
                continue
            if (location := self._manager.blocking_frame()) and self._is_replaced():
                logger.warning("Interrupting handlers that block the event loop: location=%s", location)
                self._manager.mark_interrupted()
                signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT_SIGNAL)

    def _is_replaced(self) -> bool:
        try:
            config = self._pending_config()
            return config is not None and self._manager.has_changed(config)
        except Exception:  # the thread must continue
            logger.exception("Cannot read the desired handlers")
            return False

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        del number
        if self._manager.is_interrupted and self._manager.in_customer_code(frame):
            raise HandlerAbortedError
