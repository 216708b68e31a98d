"""The payload of ``set_custom_health_check_payload()``: one a process, level 4 of the precedence.

Apart from :mod:`vllmendpoint_worker.compat`, which sets it: the worker reads it without importing the guide's
names.
"""

import copy
import threading
from collections.abc import Mapping
from typing import Any, Final

from .merge import ABSENT

__all__ = ["CUSTOM_DEFAULT", "CustomDefault"]


class CustomDefault:
    """Set by a handler script, on whatever thread imports it; read when the configuration is loaded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._payload: Mapping[str, Any] | None = None
        self._version = 0

    def set(self, payload: Mapping[str, Any] | None) -> None:
        """A checked payload, or None for none; copied, so that the caller's object stays the caller's."""
        payload = copy.deepcopy(payload)
        with self._lock:
            self._payload = payload
            self._version += 1

    @property
    def value(self) -> object:
        """The payload, or ``ABSENT``."""
        with self._lock:
            return ABSENT if self._payload is None else copy.deepcopy(self._payload)

    @property
    def version(self) -> int:
        """Another one after every ``set``: what a watcher compares."""
        with self._lock:
            return self._version


CUSTOM_DEFAULT: Final = CustomDefault()
