"""The payload of ``set_custom_health_check_payload()``: one a process, level 4 of the precedence.

Apart from :mod:`vllmendpoint_worker.compat`, which sets it: the worker reads it without importing the guide's
names.
"""

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from .merge import ABSENT

__all__ = ["CUSTOM_DEFAULT", "CustomDefault"]


class _Pending(threading.local):
    """What the script that this thread imports has set."""

    importing = False
    payload: Mapping[str, Any] | None = None


class CustomDefault:
    """Set by a handler script, on whatever thread imports it; read when the configuration is loaded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._payload: Mapping[str, Any] | None = None
        self._version = 0
        self._pending = _Pending()

    def set(self, payload: Mapping[str, Any] | None) -> None:
        """A checked payload, or None for none; copied, so that the caller's object stays the caller's."""
        payload = copy.deepcopy(payload)
        if self._pending.importing:
            self._pending.payload = payload
        else:
            self._put(payload)

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Around the import of a script, on the thread that imports it.

        What it sets (nothing counts too) is in force once the import has succeeded, in the place of what the
        script before it set; an import that fails changes nothing.
        """
        self._pending.importing, self._pending.payload = True, None
        try:
            yield
        finally:
            self._pending.importing = False
        self._put(self._pending.payload)

    @property
    def value(self) -> object:
        """The payload, or ``ABSENT``."""
        with self._lock:
            payload = self._pending.payload if self._pending.importing else self._payload
        return ABSENT if payload is None else copy.deepcopy(payload)

    @property
    def version(self) -> int:
        """Another one after every change: what a watcher compares. Setting the same again is none."""
        with self._lock:
            return self._version

    def _put(self, payload: Mapping[str, Any] | None) -> None:
        with self._lock:
            if payload != self._payload:
                self._payload = payload
                self._version += 1


CUSTOM_DEFAULT: Final = CustomDefault()
