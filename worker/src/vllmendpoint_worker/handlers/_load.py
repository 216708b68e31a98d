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
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from vllmendpoint_api import HandlerSource, Problem, Reason
from vllmendpoint_worker.aside import aside
from vllmendpoint_worker.custom_default import CUSTOM_DEFAULT
from vllmendpoint_worker.errors import ConfigurationRefusedError, HandlerTimeoutError
from vllmendpoint_worker.handler_path import HandlerPath
from vllmendpoint_worker.handler_sources import Route, Wanted

from ._signature import Binding, UnfitHandlerError, binding_of
from ._standards import (
    HandlerFileNotFoundError,
    HandlerNotCallableError,
    HandlerNotFoundError,
    LoadFailedError,
    MiddlewareError,
    ModuleLoadError,
    Resolution,
    Scripts,
    emptied_registries,
    keeping_log_levels,
    resolve,
)

__all__ = ["IMPORT_SECONDS", "Handler", "Loaded", "Loader", "failed_at"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

IMPORT_SECONDS: Final = 120.0
"""Bound on the import of the script and all that it imports."""

_SHOWN: Final = (ImportError, SyntaxError, NameError, AttributeError, TypeError, MiddlewareError)
"""Errors whose own text names code; that of others may hold data, and is in the worker's log only."""


class _GivenUpError(BaseException):
    """Raised in the thread of an import that takes too long; no Exception, which code that tries again for
    ever would catch.
    """


_TIMEOUTS: Final = (HandlerTimeoutError, _GivenUpError)


@dataclass(frozen=True, slots=True)
class Handler:
    """A custom handler: ``name`` as the report shows it."""

    source: HandlerSource
    name: str
    function: Callable[..., Any]
    binding: Binding


@dataclass(frozen=True, slots=True)
class Loaded:
    """What answers, once it is bound. ``files``: all of the customer's code that was imported;
    ``custom_default``: the health check's payload that it has set.
    """

    wanted: Wanted
    handlers: Mapping[Route, Handler] = field(default_factory=dict)
    middleware: Mapping[str, Any] = field(default_factory=dict)
    files: frozenset[Path] = frozenset()
    custom_default: Mapping[str, Any] | None = None


class Loader:
    """Loads one generation after another; one at a time. ``seconds``: the bound on an import."""

    def __init__(self, seconds: float = IMPORT_SECONDS) -> None:
        self._seconds = seconds
        self._generation = 0
        self._before = frozenset(sys.modules)

    async def load(self, wanted: Wanted) -> Loaded:
        """Raises ConfigurationRefusedError."""
        self._generation += 1
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Loaded] = loop.create_future()
        changes = _Changes(wanted, self._generation, self._before)

        def work() -> None:
            outcome: Loaded | ConfigurationRefusedError
            try:
                outcome = _load(wanted, changes)
            except LoadFailedError as error:
                outcome = ConfigurationRefusedError([_problem(error, wanted, self._seconds)])
            except (Exception, _GivenUpError) as error:  # the standards package itself, or it came late
                logger.exception("Handlers cannot be loaded")
                failed = LoadFailedError(HandlerSource.DEFAULT, "handlers")
                failed.__cause__ = error
                outcome = ConfigurationRefusedError([_problem(failed, wanted, self._seconds)])
            loop.call_soon_threadsafe(_settle, done, outcome)

        thread = threading.Thread(target=work, name="handlers", daemon=True)
        thread.start()
        await asyncio.wait({done}, timeout=self._seconds)
        if not done.done():
            at = _stands_at(thread, wanted)
            _interrupt(thread)
            await asyncio.wait({done}, timeout=1.0)
        if not done.done():
            done.cancel()
            await aside(changes.end, failed=True)
            hung = LoadFailedError(HandlerSource.DEFAULT, "handlers")
            hung.__cause__ = HandlerTimeoutError(at)
            raise ConfigurationRefusedError([_problem(hung, wanted, self._seconds)])
        return done.result()


class _Changes:
    """What a load changes in the process; put back once, by the load itself or by who gives it up."""

    def __init__(self, wanted: Wanted, generation: int, before: frozenset[str]) -> None:
        self.folders = _folders(wanted)
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
            self._stack.callback(setattr, sys, "dont_write_bytecode", sys.dont_write_bytecode)
            sys.dont_write_bytecode = True  # a .pyc goes by the second; a swap may be quicker
            self._stack.enter_context(keeping_log_levels())
            self._stack.enter_context(emptied_registries())

    def end(self, *, failed: bool) -> bool:
        """False where the load was given up: it must touch nothing any more, a newer one may have begun."""
        with self._lock:
            if self._over:
                return False
            self._over = True
            self._stack.close()
            if failed:
                _prune(self.folders, self.before)
                for name in list(self.scripts.modules):
                    sys.modules.pop(name, None)
                sys.modules.update(self._pruned)
        return True


def _load(wanted: Wanted, changes: _Changes) -> Loaded:
    changes.begin()
    for folder in changes.folders:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # last: a neighbour's name must not hide a library's
    importlib.invalidate_caches()
    scripts = changes.scripts
    try:
        with CUSTOM_DEFAULT.importing() as imported:
            resolution = resolve(wanted, scripts)
            loaded = Loaded(
                wanted,
                _handlers(wanted, resolution),
                resolution.middleware,
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


def _settle(done: "asyncio.Future[Loaded]", outcome: Loaded | ConfigurationRefusedError) -> None:
    if done.done():
        return
    if isinstance(outcome, ConfigurationRefusedError):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)


def _interrupt(thread: threading.Thread) -> None:
    """Raise in the thread, so that an endless loop ends and import locks are given back; a call into C that
    never returns stays.
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_GivenUpError)
    )


def _stands_at(thread: threading.Thread, wanted: Wanted) -> str:
    """``model.py line 3``: the line of the customer's code that a thread is in, or ``""``."""
    frame = sys._current_frames().get(thread.ident or 0)
    return _line(traceback.extract_stack(frame), wanted) if frame is not None else ""


def _folders(wanted: Wanted) -> tuple[Path, ...]:
    script = wanted.script
    return tuple(dict.fromkeys([wanted.folder, *([script.path.parent] if script is not None else [])]))


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
    if name in before or not isinstance(file, str) or name.startswith("vllmendpoint_handlers_"):
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


def _set_level(wanted: Wanted) -> None:
    """``SAGEMAKER_CONTAINER_LOG_LEVEL`` is that of the standards package and of our own lines on handlers."""
    if wanted.log_level:
        level = wanted.log_level
        logger.setLevel(int(level) if level.isdecimal() else level)


def _handlers(wanted: Wanted, resolution: Resolution) -> dict[Route, Handler]:
    handlers = {}
    for route, (source, function) in resolution.handlers.items():
        choice = wanted.choices.get(route)
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


def _tell(loaded: Loaded, resolution: Resolution) -> None:
    """The guide's troubleshooting: which handler was selected, and at DEBUG why."""
    for route, lines in resolution.considered.items():
        logger.debug("Handler of %s: %s", route, "; ".join(lines))
    for route in Route:
        handler = loaded.handlers.get(route)
        what = f"{handler.name} ({handler.source})" if handler else "vLLM's own (Default)"
        logger.info("Handler of %s: %s", route, what)
    if loaded.middleware:
        logger.info("Middleware: %s", ", ".join(loaded.middleware))


# --- what went wrong ---


def _problem(failed: LoadFailedError, wanted: Wanted, seconds: float) -> Problem:
    error = failed.__cause__ or failed
    named = next((choice.path for choice in wanted.choices.values() if choice.field == failed.field), None)
    reason, what, fix = _said(error, wanted, named, seconds)
    if reason is Reason.HANDLER_IMPORT_FAILED and not isinstance(error, _TIMEOUTS):
        logger.error("The handlers' code failed", exc_info=error)
    source = "Script" if failed.source is HandlerSource.DEFAULT else failed.source.value
    # What the environment says may be secret, what the spec says is not.
    text = f" ({named.text[:256]})" if named is not None and failed.source is HandlerSource.SPEC else ""
    return Problem(
        reason=reason,
        source=source,
        field=failed.field[:128],
        message=f"{failed.field}{text} {what}: {fix}."[:2048],
    )


def _lacks(error: BaseException, path: HandlerPath) -> bool:
    """The module that the path names, or a package that it would be in, is not there."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return False
    return f"{path.where}.".startswith(f"{error.name}.")


def _said(
    error: BaseException, wanted: Wanted, named: HandlerPath | None, seconds: float
) -> tuple[Reason, str, str]:
    where = failed_at(error, wanted)
    if isinstance(error, UnfitHandlerError):
        return Reason.INVALID_HANDLER, error.what, error.fix
    if isinstance(error, _TIMEOUTS):
        where = where or str(error)
        line = f" ({where})" if where else ""
        what = f"were not imported within {seconds:.0f} s{line}"
        return Reason.HANDLER_IMPORT_FAILED, what, "keep long work out of the module's level"
    if isinstance(error, SystemExit):
        return Reason.HANDLER_IMPORT_FAILED, f"calls sys.exit() while it is imported ({where})", "remove that"
    if not where:
        if isinstance(error, HandlerFileNotFoundError):
            fix = "put it there" if Path(error.file_path).is_absolute() else f"put it in {wanted.folder}"
            return Reason.SCRIPT_NOT_FOUND, "names a file that does not exist", fix
        if isinstance(error, HandlerNotFoundError | AttributeError):
            return (
                Reason.HANDLER_NOT_FOUND,
                "names a function that is not there",
                "define it or correct the name",
            )
        if isinstance(error, HandlerNotCallableError):
            what = f"is not callable (a {error.handler_type})"
            return Reason.INVALID_HANDLER, what, "name a function"
    if isinstance(error, ModuleLoadError) and error.__context__ is not None:
        error = error.__context__
    if not where and named is not None and _lacks(error, named):
        fix = "correct the name, or install the module in the worker's image"
        return Reason.HANDLER_NOT_FOUND, "names a module that is not there", fix
    kind = type(error).__name__
    text = (
        f"{kind}: {error.msg if isinstance(error, SyntaxError) else error}"
        if isinstance(error, _SHOWN)
        else kind
    )
    at = f" at {where}" if where else ""
    return (
        Reason.HANDLER_IMPORT_FAILED,
        f"failed{at}: {text[:300]}",
        "mend the code; the worker's log has the traceback",
    )


def failed_at(error: BaseException, wanted: Wanted) -> str:
    """``model.py line 3``: where in the customer's code ``error`` came from, or ``""``."""
    chain = error.__context__ if isinstance(error, ModuleLoadError) and error.__context__ else error
    folders = _folders(wanted)
    if isinstance(chain, SyntaxError) and chain.filename and _inside(chain.filename, folders):
        return f"{Path(chain.filename).name} line {chain.lineno}"
    return _line(traceback.extract_tb(chain.__traceback__), wanted)


def _line(stack: Iterable[traceback.FrameSummary], wanted: Wanted) -> str:
    """The innermost frame of the customer's code, or ``""``."""
    folders = _folders(wanted)
    frames = [frame for frame in stack if _inside(frame.filename, folders)]
    return f"{Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""


def _inside(file: str, folders: tuple[Path, ...]) -> bool:
    return any(Path(file).is_relative_to(folder) for folder in folders)
