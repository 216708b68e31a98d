"""State of the process that a script changes while it is imported.

What the worker itself depends on is put back as soon as the import ends (:func:`kept`). The rest may be meant
for the handlers and lasts as long as they are in force: :class:`Lasting` takes it back before the next script
is imported, and puts it in place again where that one is refused. docs/handlers.md has the table.
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

__all__ = ["Lasting", "kept", "logging_kept"]

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
def kept() -> Iterator[None]:
    """Warning filters, logging, hooks, standard streams, the event loop policy and the sockets' default
    timeout are the same afterwards.
    """
    with ExitStack() as stack:
        for owner, name in _HOOKS:
            stack.callback(setattr, owner, name, getattr(owner, name))
        stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
        stack.callback(asyncio.set_event_loop_policy, asyncio.get_event_loop_policy())
        stack.enter_context(_filters_kept())
        stack.enter_context(logging_kept())
        yield


@contextmanager
def _filters_kept() -> Iterator[None]:
    """Not ``warnings.catch_warnings``: it would put back another list, perhaps one that another thread has
    put in place meanwhile, for the time of its own.
    """
    filters, content = warnings.filters, list(warnings.filters)
    try:
        yield
    finally:
        current: Any = warnings.filters
        current[:] = content if current is filters else [item for item in current if item in content]
        with warnings.catch_warnings():
            pass  # Python forgets what it has looked up by the filters of before


@contextmanager
def logging_kept() -> Iterator[None]:
    """Loggers and their handlers are as they were: a customer's import must not silence or flood the rest.

    Loggers that are new keep what they were given: they are the script's own, or a library's.
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


class _Value:
    """One thing of the process: how to read it, and how to set it."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self._read = read
        self._write = write
        self.before: Any = None
        self.after: Any = None

    def begin(self) -> None:
        self.before = self.after = self._read()

    def end(self) -> None:
        self.after = self._read()

    def back(self) -> None:
        self._change(self.after, self.before)

    def again(self) -> None:
        self._change(self.before, self.after)

    def _change(self, old: Any, new: Any) -> None:
        """Not where somebody else has changed it since."""
        if old != new and self._read() == old:
            with suppress(OSError, ValueError, RuntimeError, locale.Error):
                self._write(new)


class _Entries(_Value):
    """A mapping, entry by entry: others may change theirs meanwhile. ``scripts`` says of an entry's value
    before and after whether the script has changed it.
    """

    def __init__(self, mapping: Any, scripts: Callable[[Any, Any], bool] = lambda old, new: True) -> None:
        super().__init__(lambda: dict(mapping), lambda value: None)
        self._mapping = mapping
        self._scripts = scripts
        self.before = self.after = {}

    def _change(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        for name in old.keys() | new.keys():
            was, value = old.get(name), new.get(name)
            changed = not _same(was, value) and self._scripts(self.before.get(name), self.after.get(name))
            if not changed or not _same(self._mapping.get(name), was):
                continue
            if value is None:
                self._mapping.pop(name, None)
            else:
                self._mapping[name] = value


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, str) and bool(one == other))


class _SearchPath(_Value):
    """``sys.path``: what a script has put there is looked for by its handlers too."""

    def __init__(self) -> None:
        super().__init__(lambda: list(sys.path), lambda value: sys.path.__setitem__(slice(None), value))


class _Collectors(_Value):
    """Metrics that a script has made: Prometheus refuses to make them twice."""

    def __init__(self) -> None:
        super().__init__(list, lambda value: None)
        self._made: list[Any] = []

    def begin(self) -> None:
        register = REGISTRY.register
        thread = threading.get_ident()

        def noting(collector: Any) -> None:
            register(collector)
            if threading.get_ident() == thread:
                self._made.append(collector)

        REGISTRY.register = noting  # type: ignore[method-assign]

    def end(self) -> None:
        REGISTRY.__dict__.pop("register", None)

    def back(self) -> None:
        for collector in self._made:
            with suppress(KeyError):
                REGISTRY.unregister(collector)

    def again(self) -> None:
        for collector in self._made:
            with suppress(ValueError):
                REGISTRY.register(collector)


class _Signals(_Value):
    """Signal handlers, set through ``signal.signal``, which the main thread carries out meanwhile."""

    def __init__(self) -> None:
        super().__init__(_signals, lambda value: None)
        self.before = self.after = {}

    def _change(self, old: Mapping[int, Any], new: Mapping[int, Any]) -> None:
        for number in old.keys() & new.keys():
            was, handler = old[number], new[number]
            if was is not handler and handler is not None and signal.getsignal(number) is was:
                with suppress(OSError, ValueError, RuntimeError):
                    signal.signal(number, handler)


def _signals() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _replaced(old: Any, new: Any) -> bool:
    """Of ``sys.modules``: what stands for another module, or was imported from nowhere. What Python has
    imported stays.
    """
    return old is not None or getattr(new, "__spec__", None) is None


class Lasting:
    """What one import has changed, to be taken back and put in place again.

    ``begin`` and ``end`` are called on the thread of the import.
    """

    def __init__(self) -> None:
        self._begun = False
        self._values: list[_Value] = [
            _Entries(os.environ),
            _Value(_folder, lambda value: os.chdir(value) if value else None),
            _SearchPath(),
            _Entries(sys.modules, _replaced),
            _Value(lambda: locale.setlocale(locale.LC_ALL), _set_locale),
            _Value(lambda: multiprocessing.get_start_method(allow_none=True), _set_start_method),
            _Value(sys.getrecursionlimit, sys.setrecursionlimit),
            _Value(gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
            _Value(gc.get_threshold, lambda value: gc.set_threshold(*value)),
            _Signals(),
            _Collectors(),
        ]

    def begin(self) -> None:
        self._begun = True
        for value in self._values:
            value.begin()

    def end(self) -> None:
        for value in self._values if self._begun else ():
            value.end()

    def back(self) -> None:
        """As before the import, but for what somebody else has changed since."""
        for value in reversed(self._values):
            value.back()
        time.tzset()

    def again(self) -> None:
        for value in self._values:
            value.again()
        time.tzset()


def _folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109  (Path.cwd() is no shorter)
    except FileNotFoundError:  # it was removed
        return ""


def _set_locale(value: str) -> None:
    locale.setlocale(locale.LC_ALL, value)


def _set_start_method(method: str | None) -> None:
    multiprocessing.set_start_method(method, force=True)
