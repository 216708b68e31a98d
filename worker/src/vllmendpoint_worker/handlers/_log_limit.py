"""Limits how often the same failure of the ping handler is logged: the worker probes it every two seconds."""

import logging
from typing import Final

from vllmendpoint_worker.config.handler_config import Route
from vllmendpoint_worker.process.clock import Clock

__all__ = ["REPEAT_SECONDS", "LogLimit"]

REPEAT_SECONDS: Final = 60.0
"""Time between two warnings about the same failure."""


class LogLimit:
    """The limit of one generation of handlers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = ""
        self._logged = 0.0

    def level(self, path: str, message: str) -> int:
        """WARNING, or DEBUG if the same failure of a ping was logged less than REPEAT_SECONDS ago."""
        if path != Route.PING:
            return logging.WARNING
        now = self._clock.monotonic()
        if message == self._last and now - self._logged < REPEAT_SECONDS:
            return logging.DEBUG
        self._last, self._logged = message, now
        return logging.WARNING
