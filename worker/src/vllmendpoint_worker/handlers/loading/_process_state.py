"""Restores the process state that a script changes while it is imported.

State that the worker itself needs is restored as soon as the import ends (:func:`preserve_process_state`).
Other changes may be intended for the handlers, so they last as long as the handlers are active.
:class:`ScriptChanges` reverts them before the next script is imported, and reapplies them if that script is
refused. docs/tasks/handlers.md, "What a script changes in the process", has the table.
"""

import asyncio
import gc
import locale
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

from prometheus_client import REGISTRY

__all__ = ["ScriptChanges", "preserve_logging", "preserve_process_state"]

_HOOKS: Final = (
    (sys, "excepthook"),
    (sys, "unraisablehook"),
    (sys, "displayhook"),
    (sys, "stdin"),
    (sys, "stdout"),
    (sys, "stderr"),
    (threading, "excepthook"),
    (warnings, "showwarning"),
)


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Restore warning filters, logging, hooks, standard streams, the event loop policy and the sockets'
    default timeout.
    """
    with ExitStack() as stack:
        for owner, name in _HOOKS:
            stack.callback(setattr, owner, name, getattr(owner, name))
        stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
        stack.callback(asyncio.set_event_loop_policy, asyncio.get_event_loop_policy())
        stack.enter_context(_preserve_warning_filters())
        stack.enter_context(preserve_logging())
        yield


@contextmanager
def _preserve_warning_filters() -> Iterator[None]:
    """Restore the filters in their list. ``warnings.catch_warnings`` would restore the list itself, possibly
    one that another thread had installed only temporarily.
    """
    filters, content = warnings.filters, list(warnings.filters)
    try:
        yield
    finally:
        current: Any = warnings.filters
        current[:] = content if current is filters else [item for item in current if item in content]
        with warnings.catch_warnings():
            pass  # invalidates the results that Python cached with the former filters


@contextmanager
def preserve_logging() -> Iterator[None]:
    """Restore the loggers and their handlers: a customer's import must not change the worker's logging.

    New loggers keep their settings: they belong to the script or to a library.
    """
    root = logging.getLogger()
    loggers = [root, *(item for item in root.manager.loggerDict.values() if isinstance(item, logging.Logger))]
    states = [
        (it, it.level, it.propagate, it.disabled, list(it.handlers), list(it.filters)) for it in loggers
    ]
    handlers = {handler for logger in loggers for handler in logger.handlers}
    outputs = [(it, it.level, it.formatter, list(it.filters)) for it in handlers]
    disabled, kind, factory = root.manager.disable, logging.getLoggerClass(), logging.getLogRecordFactory()
    try:
        yield
    finally:
        for logger, level, propagate, off, its_handlers, filters in states:
            logger.setLevel(level)
            logger.propagate, logger.disabled = propagate, off
            logger.handlers[:] = its_handlers
            logger.filters[:] = filters
        for handler, level, formatter, filters in outputs:
            handler.setLevel(level)
            handler.setFormatter(formatter)
            handler.filters[:] = filters
        root.manager.disable = disabled
        logging.setLoggerClass(kind)
        logging.setLogRecordFactory(factory)


class _StateValue:
    """One value of the process state: how to read and to write it, and its value before and after an
    import.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self._read = read
        self._write = write
        self.before: Any = None
        self.after: Any = None

    def begin(self) -> None:
        self.before = self.after = self._read()

    def end(self) -> None:
        self.after = self._read()

    def revert(self) -> None:
        self._change(self.after, self.before)

    def reapply(self) -> None:
        self._change(self.before, self.after)

    def _change(self, old: Any, new: Any) -> None:
        """Write ``new``, unless other code has changed the value since."""
        if old != new and self._read() == old:
            with suppress(OSError, ValueError, RuntimeError, locale.Error):
                self._write(new)


class _MappingEntries(_StateValue):
    """The entries of a mapping, each by itself, because other code may change other entries meanwhile.

    ``is_script_change`` decides from an entry's value before and after whether the script has changed it.
    """

    def __init__(
        self, mapping: Any, is_script_change: Callable[[Any, Any], bool] = lambda old, new: True
    ) -> None:
        super().__init__(lambda: dict(mapping), lambda value: None)
        self._mapping = mapping
        self._is_script_change = is_script_change
        self.before = self.after = {}

    def _change(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        for name in old.keys() | new.keys():
            was, value = old.get(name), new.get(name)
            changed = not _same(was, value) and self._is_script_change(
                self.before.get(name), self.after.get(name)
            )
            if not changed or not _same(self._mapping.get(name), was):
                continue
            if value is None:
                self._mapping.pop(name, None)
            else:
                self._mapping[name] = value


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, str) and bool(one == other))


class _SearchPath(_StateValue):
    """``sys.path``: the handlers import from the entries that a script adds."""

    def __init__(self) -> None:
        super().__init__(lambda: list(sys.path), lambda value: sys.path.__setitem__(slice(None), value))


class _PrometheusCollectors(_StateValue):
    """Metrics that a script creates: Prometheus refuses to register them twice."""

    def __init__(self) -> None:
        super().__init__(list, lambda value: None)
        self._created: list[Any] = []

    def begin(self) -> None:
        register = REGISTRY.register
        thread = threading.get_ident()

        def register_and_record(collector: Any) -> None:
            register(collector)
            if threading.get_ident() == thread:
                self._created.append(collector)

        REGISTRY.register = register_and_record  # type: ignore[method-assign]

    def end(self) -> None:
        REGISTRY.__dict__.pop("register", None)

    def revert(self) -> None:
        for collector in self._created:
            with suppress(KeyError):
                REGISTRY.unregister(collector)

    def reapply(self) -> None:
        for collector in self._created:
            with suppress(ValueError):
                REGISTRY.register(collector)


class _SignalHandlers(_StateValue):
    """Signal handlers. The script calls ``signal.signal``, which the main thread runs during the import."""

    def __init__(self) -> None:
        super().__init__(_signal_handlers, lambda value: None)
        self.before = self.after = {}

    def _change(self, old: Mapping[int, Any], new: Mapping[int, Any]) -> None:
        for number in old.keys() & new.keys():
            was, handler = old[number], new[number]
            if was is not handler and handler is not None and signal.getsignal(number) is was:
                with suppress(OSError, ValueError, RuntimeError):
                    signal.signal(number, handler)


def _signal_handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _is_module_replaced(old: Any, new: Any) -> bool:
    """Whether an entry of ``sys.modules`` replaces a module or is not an imported module. Imported modules
    remain.
    """
    return old is not None or getattr(new, "__spec__", None) is None


class ScriptChanges:
    """The changes of one import that last as long as its handlers are active.

    ``begin`` and ``end`` are called on the thread of the import.
    """

    def __init__(self) -> None:
        self._begun = False
        self._values: list[_StateValue] = [
            _MappingEntries(os.environ),
            _StateValue(_working_directory, lambda value: os.chdir(value) if value else None),
            _SearchPath(),
            _MappingEntries(sys.modules, _is_module_replaced),
            _StateValue(lambda: locale.setlocale(locale.LC_ALL), _set_locale),
            _StateValue(lambda: multiprocessing.get_start_method(allow_none=True), _set_start_method),
            _StateValue(sys.getrecursionlimit, sys.setrecursionlimit),
            _StateValue(gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
            _StateValue(gc.get_threshold, lambda value: gc.set_threshold(*value)),
            _SignalHandlers(),
            _PrometheusCollectors(),
        ]

    def begin(self) -> None:
        self._begun = True
        for value in self._values:
            value.begin()

    def end(self) -> None:
        for value in self._values if self._begun else ():
            value.end()

    def revert(self) -> None:
        """Restore the values from before the import, except those that other code has changed since."""
        for value in reversed(self._values):
            value.revert()
        time.tzset()

    def reapply(self) -> None:
        """Restore the values from after the import, with the same exception."""
        for value in self._values:
            value.reapply()
        time.tzset()


def _working_directory() -> str:
    try:
        return os.getcwd()  # noqa: PTH109  (Path.cwd() is no shorter)
    except FileNotFoundError:  # it was removed
        return ""


def _set_locale(value: str) -> None:
    locale.setlocale(locale.LC_ALL, value)


def _set_start_method(method: str | None) -> None:
    multiprocessing.set_start_method(method, force=True)
