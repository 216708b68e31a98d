"""How loudly a failure is logged: the worker asks for a ping every two seconds, which may fail each time."""

import logging
from typing import Final

from vllmendpoint_worker.config.handler_config import Route
from vllmendpoint_worker.process.clock import Clock

__all__ = ["REPEAT_SECONDS", "LogLimit"]

REPEAT_SECONDS: Final = 60.0
"""A ping that fails in the same way again is logged this often."""


class LogLimit:
    """Of one generation of handlers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = ""
        self._logged = 0.0

    def level(self, path: str, sentence: str) -> int:
        """WARNING, and DEBUG for a ping that has failed so a moment ago."""
        if path != Route.PING:
            return logging.WARNING
        now = self._clock.monotonic()
        if sentence == self._last and now - self._logged < REPEAT_SECONDS:
            return logging.DEBUG
        self._last, self._logged = sentence, now
        return logging.WARNING
