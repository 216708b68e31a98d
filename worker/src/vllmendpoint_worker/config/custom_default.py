"""Stores the payload that ``set_custom_health_check_payload()`` sets for the process: level 4 of
``docs/guide/health-check-payloads.md`` ("Configuration priority").

:mod:`vllmendpoint_worker.compat` sets it. The worker reads it from here without importing that package.
"""

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from .payload_sources import ABSENT

__all__ = ["CUSTOM_DEFAULT", "CustomDefault", "ImportedDefault"]


@dataclass(slots=True)
class ImportedDefault:
    """The payload that a script sets during its import."""

    payload: Mapping[str, Any] | None = None


class _ThreadState(threading.local):
    imported: ImportedDefault | None = None
    """Not None while this thread imports a script."""


class CustomDefault:
    """A handler script sets it, on the thread that imports the script. The worker reads it at every load."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._payload: Mapping[str, Any] | None = None
        self._version = 0
        self._thread = _ThreadState()

    def set(self, payload: Mapping[str, Any] | None) -> None:
        """Set a copy of a checked payload; None removes it."""
        payload = copy.deepcopy(payload)
        if (imported := self._thread.imported) is not None:
            imported.payload = payload
            return
        with self._lock:
            if payload != self._payload:
                self._payload = payload
                self._version += 1

    @contextmanager
    def capture_import(self) -> Iterator[ImportedDefault]:
        """Capture the payload that a script sets while this thread imports it.

        The caller sets the captured payload, which may be None, when it activates the script. It replaces the
        payload of the previous script.
        """
        self._thread.imported = imported = ImportedDefault()
        try:
            yield imported
        finally:
            self._thread.imported = None

    @property
    def value(self) -> object:
        """The payload, or ``ABSENT``."""
        imported = self._thread.imported
        with self._lock:
            payload = imported.payload if imported is not None else self._payload
        return ABSENT if payload is None else copy.deepcopy(payload)

    @property
    def version(self) -> int:
        """Changes with the payload."""
        with self._lock:
            return self._version


CUSTOM_DEFAULT: Final = CustomDefault()
