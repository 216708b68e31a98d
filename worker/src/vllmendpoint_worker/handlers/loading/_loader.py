"""Runs the customer's code: imports the script and the named functions, on a thread, within a bound.

A load that fails changes nothing: registries, modules and log levels are put back. A load that hangs is
given up after :data:`IMPORT_SECONDS`; its thread is asked to end and then left alone. What it changed is put
back at once, and not when its thread wakes, perhaps in the middle of a newer load.
"""

import asyncio
import ctypes
import functools
import importlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from vllmendpoint_api import HandlerSource
from vllmendpoint_worker.config.custom_default import CUSTOM_DEFAULT
from vllmendpoint_worker.config.handler_config import HandlerConfig, Route
from vllmendpoint_worker.errors import ConfigurationRejectedError, HandlerAbortedError, HandlerTimeoutError
from vllmendpoint_worker.process.file_fingerprint import file_fingerprint
from vllmendpoint_worker.process.run_blocking import run_blocking

from ._load_problems import folders_of, line_of, problem_of, stands_at, unnamed_problem
from ._modules import PREFIX, others
from ._process_state import Lasting, kept
from ._script_loop import ScriptLoop, ScriptTasks
from ._signature import Binding, UnfitHandlerError, binding_of
from ._standards import LoadFailedError, Resolution, Scripts, emptied_registries, resolve

__all__ = ["IMPORT_SECONDS", "Handler", "LoadedHandlers", "Loader"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

IMPORT_SECONDS: Final = 120.0
"""Bound on the import of the script and all that it imports."""


CHANGE_SECONDS: Final = 5.0
"""How often it is compared, during an import, whether what is imported has been replaced."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A custom handler: ``name`` as the report shows it."""

    source: HandlerSource
    name: str
    function: Callable[..., Any]
    binding: Binding


@dataclass(frozen=True, slots=True)
class LoadedHandlers:
    """What answers, once it is bound. ``files``: all of the customer's code that was imported;
    ``custom_default``: the health check's payload that it has set.
    """

    wanted: HandlerConfig
    handlers: Mapping[Route, Handler] = field(default_factory=dict)
    middleware: Mapping[str, Any] = field(default_factory=dict)
    registered: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Handlers of sessions and adapters, by the standards package's names."""
    files: frozenset[Path] = frozenset()
    custom_default: Mapping[str, Any] | None = None
    tasks: ScriptTasks | None = None


class Loader:
    """Loads one generation after another; one at a time. ``seconds``: the bound on an import."""

    def __init__(self, seconds: float = IMPORT_SECONDS) -> None:
        self._seconds = seconds
        self._generation = 0
        self._before = others()
        self._lasting = Lasting()
        """What the import of the handlers in force has changed."""

    async def load(self, wanted: HandlerConfig) -> LoadedHandlers:
        """Raises ConfigurationRejectedError."""
        self._generation += 1
        loop = asyncio.get_running_loop()
        done: asyncio.Future[LoadedHandlers] = loop.create_future()
        changes = _Changes(wanted, self._generation, self._before, self._lasting)
        shared = ScriptLoop(lambda: line_of(traceback.extract_stack(), wanted))

        began = time.monotonic()

        def waited() -> float:
            return min(time.monotonic() - began, self._seconds)

        def work() -> None:
            outcome: LoadedHandlers | ConfigurationRejectedError
            try:
                with shared.entered():
                    outcome = _load(wanted, changes)
            except LoadFailedError as error:
                outcome = ConfigurationRejectedError([problem_of(error, wanted, waited())])
            except (
                Exception,
                HandlerAbortedError,
            ) as error:  # our own, the standards package's, or it came late
                logger.exception("Handlers cannot be loaded")
                outcome = ConfigurationRejectedError([unnamed_problem(error, wanted, waited())])
            loop.call_soon_threadsafe(_settle, done, outcome)

        thread = threading.Thread(target=work, name="handlers", daemon=True)
        shared.open()
        try:
            thread.start()
            loaded = replace(await self._finished(done, thread, changes), tasks=shared.tasks)
        except BaseException:
            shared.tasks.cancel()
            raise
        finally:
            shared.close(running=done.cancelled() or not done.done())
        self._lasting = changes.lasting
        return loaded

    async def _finished(
        self, done: "asyncio.Future[LoadedHandlers]", thread: threading.Thread, changes: "_Changes"
    ) -> LoadedHandlers:
        """What the thread has loaded, or why not; given up where it takes too long."""
        wanted, began = changes.wanted, time.monotonic()
        await self._whether_done(done, wanted)
        if not done.done():
            waited = min(time.monotonic() - began, self._seconds)
            at = stands_at(thread, wanted)
            _interrupt(thread)
            await asyncio.wait({done}, timeout=1.0)
        if not done.done():
            done.cancel()
            await run_blocking(changes.end, failed=True)
            hung = LoadFailedError(HandlerSource.DEFAULT, "handlers")
            hung.__cause__ = HandlerTimeoutError(at)
            raise ConfigurationRejectedError([problem_of(hung, wanted, waited)])
        return done.result()

    async def _whether_done(self, done: "asyncio.Future[LoadedHandlers]", wanted: HandlerConfig) -> None:
        """Wait until the import has ended, takes too long, or imports what has been replaced."""
        files = wanted.files
        before = await run_blocking(_stamps, files)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                while not done.done():
                    await asyncio.wait({done}, timeout=CHANGE_SECONDS)
                    if not done.done() and await run_blocking(_stamps, files) != before:
                        return


class _Changes:
    """What a load changes in the process; put back once, by the load itself or by who gives it up."""

    def __init__(self, wanted: HandlerConfig, generation: int, before: frozenset[str], last: Lasting) -> None:
        self.wanted = wanted
        self.lasting = Lasting()
        self._last = last
        self.folders = folders_of(wanted)
        self.before = before
        self.scripts = Scripts(wanted, generation)
        self._pruned: dict[str, ModuleType] = {}
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._over = False

    def begin(self) -> None:
        """Raises HandlerTimeoutError where the load was given up before that."""
        with self._lock:
            if self._over:
                raise HandlerTimeoutError
            self._pruned = _prune(self.folders, self.before)
            self._last.back()
            for folder in self.folders:
                if str(folder) not in sys.path:
                    sys.path.append(str(folder))  # last: a neighbour's name must not hide a library's
            self._stack.callback(setattr, sys, "dont_write_bytecode", sys.dont_write_bytecode)
            sys.dont_write_bytecode = True  # a .pyc goes by the second; a swap may be quicker
            self._stack.enter_context(kept())
            self._stack.enter_context(emptied_registries())
            self.lasting.begin()

    def end(self, *, failed: bool) -> bool:
        """False where the load was given up: it must touch nothing any more, a newer one may have begun."""
        with self._lock:
            if self._over:
                return False
            self._over = True
            self.lasting.end()
            self._stack.close()
            if failed:
                self.lasting.back()
                self._last.again()
                _prune(self.folders, self.before)
                for name in list(self.scripts.modules):
                    sys.modules.pop(name, None)
                sys.modules.update(self._pruned)
        return True


def _load(wanted: HandlerConfig, changes: _Changes) -> LoadedHandlers:
    changes.begin()
    importlib.invalidate_caches()
    scripts = changes.scripts
    try:
        with CUSTOM_DEFAULT.capture_import() as imported:
            resolution = resolve(wanted, scripts)
            loaded = LoadedHandlers(
                wanted,
                _handlers(wanted, resolution),
                resolution.middleware,
                resolution.registered,
                frozenset(_files(changes.folders, changes.before)) | frozenset(_own(scripts)),
                imported.payload,
            )
    except BaseException:
        changes.end(failed=True)
        raise
    if not changes.end(failed=False):
        raise HandlerTimeoutError
    _set_level(wanted)
    _tell(loaded, resolution)
    return loaded


def _stamps(files: tuple[Path, ...]) -> list[object]:
    return [file_fingerprint(path) for path in files]


def _settle(
    done: "asyncio.Future[LoadedHandlers]", outcome: LoadedHandlers | ConfigurationRejectedError
) -> None:
    if done.done():
        return
    if isinstance(outcome, ConfigurationRejectedError):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)


def _interrupt(thread: threading.Thread) -> None:
    """Raise in the thread, so that an endless loop ends and import locks are given back; a call into C that
    never returns stays.
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(HandlerAbortedError)
    )


def _prune(folders: tuple[Path, ...], before: frozenset[str]) -> dict[str, ModuleType]:
    """Forget the customer's modules, so that the next import sees what is in the files now."""
    found = {
        name: module for name, module in list(sys.modules.items()) if _theirs(name, module, folders, before)
    }
    for name in found:
        del sys.modules[name]
    return found


def _theirs(
    name: str, module: ModuleType | None, folders: tuple[Path, ...], before: frozenset[str]
) -> Path | None:
    """The file of a module that was imported from one of the folders, and is no installed library."""
    file = getattr(module, "__file__", None)
    if name in before or not isinstance(file, str) or name.startswith(PREFIX):
        return None
    path = Path(file)
    if "site-packages" in path.parts or "dist-packages" in path.parts:
        return None
    return path if any(path.is_relative_to(folder) for folder in folders) else None


def _files(folders: tuple[Path, ...], before: frozenset[str]) -> list[Path]:
    modules = list(sys.modules.items())
    return [path for name, module in modules if (path := _theirs(name, module, folders, before))]


def _own(scripts: Scripts) -> list[Path]:
    return [Path(str(module.__file__)) for module in scripts.modules.values() if module.__file__]


def _set_level(wanted: HandlerConfig) -> None:
    """``SAGEMAKER_CONTAINER_LOG_LEVEL`` is that of the standards package and of our own lines on handlers."""
    if wanted.log_level:
        level = wanted.log_level
        logger.setLevel(int(level) if level.isdecimal() else level)


def _handlers(wanted: HandlerConfig, resolution: Resolution) -> dict[Route, Handler]:
    handlers = {}
    for route, (source, function) in resolution.handlers.items():
        choice = wanted.references.get(route)
        named = source in (HandlerSource.SPEC, HandlerSource.ENVIRONMENT) and choice is not None
        plain = function.func if isinstance(function, functools.partial) else function
        name = getattr(plain, "__qualname__", type(plain).__qualname__)
        field_ = choice.field if named and choice is not None else f"the {source.value.lower()} {name}"
        try:
            binding = binding_of(function, route)
        except UnfitHandlerError as error:
            raise LoadFailedError(source, field_) from error
        shown = choice.path.text if named and choice is not None else f"model:{name}"
        handlers[route] = Handler(source, shown[:512], function, binding)
    return handlers


def _tell(loaded: LoadedHandlers, resolution: Resolution) -> None:
    """The guide's troubleshooting: which handler was selected, and at DEBUG why."""
    for route, lines in resolution.considered.items():
        logger.debug("Handler of %s: %s", route, "; ".join(lines))
    for route in Route:
        handler = loaded.handlers.get(route)
        what = f"{handler.name} ({handler.source})" if handler else "vLLM's own (Default)"
        logger.info("Handler of %s: %s", route, what)
    if loaded.middleware:
        logger.info("Middleware: %s", ", ".join(loaded.middleware))
    if loaded.registered:
        logger.info("Registered by the script: %s", ", ".join(loaded.registered))
