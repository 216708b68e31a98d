"""Imports the script and the named functions, on a thread and within a time limit.

A load that fails changes nothing: registries, modules and log levels are restored. A load that hangs is given
up after :data:`IMPORT_SECONDS`. Its thread is asked to end and is not waited for. Its changes are reverted
immediately, not when the thread continues, which may be during a newer load.
"""

import asyncio
import ctypes
import functools
import importlib
import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from vllmendpoint_api import HandlerSource
from vllmendpoint_worker.config.custom_default import CUSTOM_DEFAULT
from vllmendpoint_worker.config.handler_config import HandlerConfig, Route
from vllmendpoint_worker.errors import ConfigurationRejectedError, HandlerAbortedError, HandlerTimeoutError
from vllmendpoint_worker.process.file_fingerprint import file_fingerprint
from vllmendpoint_worker.process.run_blocking import run_blocking

from ._import_transaction import ImportTransaction
from ._load_problems import load_problem, stack_location, thread_location, unexpected_problem
from ._modules import imported_module_names
from ._process_state import ScriptChanges
from ._script_loop import ScriptLoop, ScriptTasks
from ._signature import Binding, UnsupportedSignatureError, bind_signature
from ._standards import LoadFailedError, Resolution, resolve

__all__ = ["IMPORT_SECONDS", "Handler", "LoadedHandlers", "Loader"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

IMPORT_SECONDS: Final = 120.0
"""Limit of the import of the script and everything that it imports."""

CHANGE_SECONDS: Final = 5.0
"""Time between checks, during an import, of whether the imported files have been replaced."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A custom handler. ``name``: as the report shows it."""

    source: HandlerSource
    name: str
    function: Callable[..., Any]
    binding: Binding


@dataclass(frozen=True, slots=True)
class LoadedHandlers:
    """Handlers that are loaded, but not yet bound to the application.

    ``files``: all files of the customer's code that were imported; ``custom_default``: the health check's
    payload that the script has set.
    """

    config: HandlerConfig
    handlers: Mapping[Route, Handler] = field(default_factory=dict)
    middleware: Mapping[str, Any] = field(default_factory=dict)
    registered: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Handlers of sessions and adapters, by the names of SageMaker's package."""
    files: frozenset[Path] = frozenset()
    custom_default: Mapping[str, Any] | None = None
    tasks: ScriptTasks | None = None


class Loader:
    """Loads one generation after another, one at a time. ``seconds``: limit of an import."""

    def __init__(self, seconds: float = IMPORT_SECONDS) -> None:
        self._seconds = seconds
        self._generation = 0
        self._other_modules = imported_module_names()
        self._script_changes = ScriptChanges()
        """Changes by the import of the active handlers."""

    async def load(self, config: HandlerConfig) -> LoadedHandlers:
        """Raises ConfigurationRejectedError."""
        self._generation += 1
        loop = asyncio.get_running_loop()
        done: asyncio.Future[LoadedHandlers] = loop.create_future()
        transaction = ImportTransaction(config, self._generation, self._other_modules, self._script_changes)
        script_loop = ScriptLoop(lambda: stack_location(traceback.extract_stack(), config))
        began = time.monotonic()

        def work() -> None:
            outcome: LoadedHandlers | ConfigurationRejectedError
            try:
                with script_loop.use_as_running_loop():
                    outcome = _load(transaction)
            except LoadFailedError as error:
                outcome = ConfigurationRejectedError([load_problem(error, config, self._elapsed(began))])
            except (
                Exception,
                HandlerAbortedError,
            ) as error:  # ours, SageMaker's, or an interrupt after the end
                logger.exception("Cannot load the handlers")
                problem = unexpected_problem(error, config, self._elapsed(began))
                outcome = ConfigurationRejectedError([problem])
            loop.call_soon_threadsafe(_set_outcome, done, outcome)

        thread = threading.Thread(target=work, name="handlers", daemon=True)
        script_loop.open()
        try:
            thread.start()
            loaded = await self._wait(done, thread, transaction)
            loaded = replace(loaded, tasks=script_loop.tasks)
        except BaseException:
            script_loop.tasks.cancel()
            raise
        finally:
            script_loop.close(running=done.cancelled() or not done.done())
        self._script_changes = transaction.script_changes
        return loaded

    def _elapsed(self, began: float) -> float:
        return min(time.monotonic() - began, self._seconds)

    async def _wait(
        self, done: "asyncio.Future[LoadedHandlers]", thread: threading.Thread, transaction: ImportTransaction
    ) -> LoadedHandlers:
        """Wait for the thread's result. Give the import up if it takes too long."""
        config, began = transaction.config, time.monotonic()
        await self._wait_for_import(done, config)
        if not done.done():
            seconds = self._elapsed(began)
            location = thread_location(thread, config)
            _interrupt(thread)
            await asyncio.wait({done}, timeout=1.0)
        if not done.done():
            done.cancel()
            await run_blocking(transaction.end, failed=True)
            failed = LoadFailedError(HandlerSource.DEFAULT, "handlers")
            failed.__cause__ = HandlerTimeoutError(location)
            raise ConfigurationRejectedError([load_problem(failed, config, seconds)])
        return done.result()

    async def _wait_for_import(self, done: "asyncio.Future[LoadedHandlers]", config: HandlerConfig) -> None:
        """Return when the import has ended, takes too long, or imports files that have been replaced."""
        files = config.files
        before = await run_blocking(_fingerprints, files)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                while not done.done():
                    await asyncio.wait({done}, timeout=CHANGE_SECONDS)
                    if not done.done() and await run_blocking(_fingerprints, files) != before:
                        return


def _load(transaction: ImportTransaction) -> LoadedHandlers:
    transaction.begin()
    importlib.invalidate_caches()
    config = transaction.config
    try:
        with CUSTOM_DEFAULT.capture_import() as imported:
            resolution = resolve(config, transaction.scripts)
            loaded = LoadedHandlers(
                config,
                _handlers(config, resolution),
                resolution.middleware,
                resolution.registered,
                transaction.imported_files(),
                imported.payload,
            )
    except BaseException:
        transaction.end(failed=True)
        raise
    if not transaction.end(failed=False):
        raise HandlerTimeoutError
    _set_log_level(config)
    _log_selection(loaded, resolution)
    return loaded


def _handlers(config: HandlerConfig, resolution: Resolution) -> dict[Route, Handler]:
    handlers = {}
    for route, (source, function) in resolution.handlers.items():
        reference = config.references.get(route)
        if source not in (HandlerSource.SPEC, HandlerSource.ENVIRONMENT):
            reference = None
        plain = function.func if isinstance(function, functools.partial) else function
        name = getattr(plain, "__qualname__", type(plain).__qualname__)
        field_ = reference.field if reference is not None else f"the {source.value.lower()} {name}"
        try:
            binding = bind_signature(function, route)
        except UnsupportedSignatureError as error:
            raise LoadFailedError(source, field_) from error
        shown = reference.path.text if reference is not None else f"model:{name}"
        handlers[route] = Handler(source, shown[:512], function, binding)
    return handlers


def _fingerprints(files: tuple[Path, ...]) -> list[object]:
    return [file_fingerprint(path) for path in files]


def _set_outcome(
    done: "asyncio.Future[LoadedHandlers]", outcome: LoadedHandlers | ConfigurationRejectedError
) -> None:
    if done.done():
        return
    if isinstance(outcome, ConfigurationRejectedError):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)


def _interrupt(thread: threading.Thread) -> None:
    """Raise in the thread, so that an endless loop ends and import locks are released. A call into C that
    never returns is not interrupted.
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(HandlerAbortedError)
    )


def _set_log_level(config: HandlerConfig) -> None:
    """``SAGEMAKER_CONTAINER_LOG_LEVEL`` applies to SageMaker's package and to the worker's lines on
    handlers.
    """
    if config.log_level:
        level = config.log_level
        logger.setLevel(int(level) if level.isdecimal() else level)


def _log_selection(loaded: LoadedHandlers, resolution: Resolution) -> None:
    """Log the selected handlers, and at DEBUG the reason (docs/guide/custom-handlers.md,
    "Troubleshooting").
    """
    for route, steps in resolution.steps.items():
        logger.debug("Handler of %s: %s", route, "; ".join(steps))
    for route in Route:
        handler = loaded.handlers.get(route)
        shown = f"{handler.name} ({handler.source})" if handler else "vLLM's own (Default)"
        logger.info("Handler of %s: %s", route, shown)
    if loaded.middleware:
        logger.info("Middleware: %s", ", ".join(loaded.middleware))
    if loaded.registered:
        logger.info("Registered by the script: %s", ", ".join(loaded.registered))
