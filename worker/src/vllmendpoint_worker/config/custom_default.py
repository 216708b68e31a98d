"""The payload of ``set_custom_health_check_payload()``: one a process, level 4 of the precedence.

Apart from :mod:`vllmendpoint_worker.compat`, which sets it: the worker reads it without importing the guide's
names.
"""

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from .merge import ABSENT

__all__ = ["CUSTOM_DEFAULT", "CustomDefault", "ImportedDefault"]


@dataclass(slots=True)
class ImportedDefault:
    """What a script has set while it was imported."""

    payload: Mapping[str, Any] | None = None


class _ThreadState(threading.local):
    imported: ImportedDefault | None = None
    """Where this thread imports a script."""


class CustomDefault:
    """Set by a handler script, on whatever thread imports it; read when the configuration is loaded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._payload: Mapping[str, Any] | None = None
        self._version = 0
        self._here = _ThreadState()

    def set(self, payload: Mapping[str, Any] | None) -> None:
        """A checked payload, or None for none; copied, so that the caller's object stays the caller's."""
        payload = copy.deepcopy(payload)
        if (imported := self._here.imported) is not None:
            imported.payload = payload
            return
        with self._lock:
            if payload != self._payload:
                self._payload = payload
                self._version += 1

    @contextmanager
    def capture_import(self) -> Iterator[ImportedDefault]:
        """Around the import of a script, on the thread that imports it.

        What it sets (nothing counts too) is held back: whoever puts the script in force sets it, in the place
        of what the script before it set.
        """
        self._here.imported = imported = ImportedDefault()
        try:
            yield imported
        finally:
            self._here.imported = None

    @property
    def value(self) -> object:
        """The payload, or ``ABSENT``."""
        imported = self._here.imported
        with self._lock:
            payload = imported.payload if imported is not None else self._payload
        return ABSENT if payload is None else copy.deepcopy(payload)

    @property
    def version(self) -> int:
        """Another one after every change: what a watcher compares. Setting the same again is none."""
        with self._lock:
            return self._version


CUSTOM_DEFAULT: Final = CustomDefault()
