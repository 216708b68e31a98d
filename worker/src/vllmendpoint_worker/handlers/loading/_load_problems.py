"""What is wrong with handlers that cannot be loaded, as a sentence with file, line and fix."""

import logging
import sys
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vllmendpoint_api import SCRIPT_SOURCE, HandlerSource, Problem, Reason
from vllmendpoint_worker.config.handler_config import HandlerConfig
from vllmendpoint_worker.config.handler_path import HandlerPath
from vllmendpoint_worker.errors import HandlerAbortedError, HandlerTimeoutError
from vllmendpoint_worker.packages.requirements import MISSING_MODULE

from ._signature import UnfitHandlerError
from ._standards import (
    HandlerFileNotFoundError,
    HandlerNotCallableError,
    HandlerNotFoundError,
    LoadFailedError,
    MiddlewareError,
    ModuleLoadError,
)

__all__ = ["failed_at", "folders_of", "line_of", "problem_of", "stands_at", "unnamed_problem"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

_SHOWN: Final = (ImportError, SyntaxError, NameError, AttributeError, TypeError, MiddlewareError)
"""Errors whose own text names code; that of others may hold data, and is in the worker's log only."""


_TIMEOUTS: Final = (HandlerTimeoutError, HandlerAbortedError)


def problem_of(failed: LoadFailedError, wanted: HandlerConfig, seconds: float) -> Problem:
    error = failed.__cause__ or failed
    named = next((choice.path for choice in wanted.references.values() if choice.field == failed.field), None)
    reason, what, fix = _said(error, wanted, named, seconds)
    if reason is Reason.HANDLER_IMPORT_FAILED and not isinstance(error, _TIMEOUTS):
        logger.error("The handlers' code failed", exc_info=error)
    source = SCRIPT_SOURCE if failed.source is HandlerSource.DEFAULT else failed.source.value
    # What the environment says may be secret, what the spec says is not.
    text = f" ({named.text[:256]})" if named is not None and failed.source is HandlerSource.SPEC else ""
    return Problem(
        reason=reason,
        source=source,
        field=failed.field[:128],
        message=f"{failed.field}{text} {what}: {fix}."[:2048],
    )


def unnamed_problem(error: BaseException, wanted: HandlerConfig, seconds: float) -> Problem:
    """Of an error that no setting named. Where no code of the customer's was in it, they can mend nothing."""
    if isinstance(error, _TIMEOUTS) or failed_at(error, wanted):
        failed = LoadFailedError(HandlerSource.DEFAULT, "handlers")
        failed.__cause__ = error
        return problem_of(failed, wanted, seconds)
    return Problem(
        reason=Reason.HANDLER_IMPORT_FAILED,
        source=SCRIPT_SOURCE,
        field="handlers",
        message=f"The worker failed while it loaded the handlers ({type(error).__name__}). Its log has the "
        "traceback; restart the worker, and report it if it happens again.",
    )


def _lacks(error: BaseException, path: HandlerPath) -> bool:
    """The module that the path names, or a package that it would be in, is not there."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return False
    return f"{path.where}.".startswith(f"{error.name}.")


def _said(
    error: BaseException, wanted: HandlerConfig, named: HandlerPath | None, seconds: float
) -> tuple[Reason, str, str]:
    where = failed_at(error, wanted)
    if isinstance(error, UnfitHandlerError):
        return Reason.INVALID_HANDLER, error.what, error.fix
    if (misplaced := _misplaced(error, where, seconds)) is not None:
        return Reason.HANDLER_IMPORT_FAILED, *misplaced
    if not where and (absent := _absent(error, wanted)) is not None:
        return absent
    if isinstance(error, ModuleLoadError) and error.__context__ is not None:
        error = error.__context__
    if not where and named is not None and _lacks(error, named):
        fix = f"correct the name, or {MISSING_MODULE}"
        return Reason.HANDLER_NOT_FOUND, "names a module that is not there", fix
    kind = type(error).__name__
    fix = MISSING_MODULE if isinstance(error, ModuleNotFoundError) else "mend the code"
    text = (
        f"{kind}: {error.msg if isinstance(error, SyntaxError) else error}"
        if isinstance(error, _SHOWN)
        else kind
    )
    at = f" at {where}" if where else ""
    return (
        Reason.HANDLER_IMPORT_FAILED,
        f"failed{at}: {text[:300]}",
        f"{fix}; the worker's log has the traceback",
    )


def _misplaced(error: BaseException, where: str, seconds: float) -> tuple[str, str] | None:
    """Of code that does not belong on the module's level: what is wrong, and the way to write it."""
    if isinstance(error, _TIMEOUTS):
        where = where or str(error)
        line = f" ({where})" if where else ""
        return f"were not imported within {seconds:.0f} s{line}", "keep long work out of the module's level"
    if isinstance(error, SystemExit):
        return f"calls sys.exit() while it is imported ({where})", "remove that"
    text = str(error)
    if isinstance(error, RuntimeError) and "event loop" in text and "running" in text:
        what = f"runs an event loop while the worker's is running ({where})"
        return what, "use asyncio.create_task(), or do it in the handler"
    if isinstance(error, ValueError) and "main thread" in text:
        what = f"calls what only the main thread may call, and scripts are imported on another ({where})"
        return what, "do it in a handler that is a coroutine"
    return None


def _absent(error: BaseException, wanted: HandlerConfig) -> tuple[Reason, str, str] | None:
    """Of a path that leads to nothing that can be called."""
    if isinstance(error, HandlerFileNotFoundError):
        fix = "put it there" if Path(error.file_path).is_absolute() else f"put it in {wanted.folder}"
        return Reason.SCRIPT_NOT_FOUND, "names a file that does not exist", fix
    if isinstance(error, HandlerNotFoundError | AttributeError):
        fix = "define it or correct the name"
        return Reason.HANDLER_NOT_FOUND, "names a function that is not there", fix
    if isinstance(error, HandlerNotCallableError):
        return Reason.INVALID_HANDLER, f"is not callable (a {error.handler_type})", "name a function"
    return None


def failed_at(error: BaseException, wanted: HandlerConfig) -> str:
    """``model.py line 3``: where in the customer's code ``error`` came from, or ``""``."""
    chain = error.__context__ if isinstance(error, ModuleLoadError) and error.__context__ else error
    folders = folders_of(wanted)
    if isinstance(chain, SyntaxError) and chain.filename and _inside(chain.filename, folders):
        return f"{Path(chain.filename).name} line {chain.lineno}"
    return line_of(traceback.extract_tb(chain.__traceback__), wanted)


def line_of(stack: Iterable[traceback.FrameSummary], wanted: HandlerConfig) -> str:
    """The innermost frame of the customer's code, or ``""``."""
    folders = folders_of(wanted)
    frames = [frame for frame in stack if _inside(frame.filename, folders)]
    return f"{Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""


def _inside(file: str, folders: tuple[Path, ...]) -> bool:
    return any(Path(file).is_relative_to(folder) for folder in folders)


def stands_at(thread: threading.Thread, wanted: HandlerConfig) -> str:
    """``model.py line 3``: the line of the customer's code that a thread is in, or ``""``."""
    frame = sys._current_frames().get(thread.ident or 0)
    return line_of(traceback.extract_stack(frame), wanted) if frame is not None else ""


def folders_of(wanted: HandlerConfig) -> tuple[Path, ...]:
    script = wanted.script
    return tuple(dict.fromkeys([wanted.folder, *([script.path.parent] if script is not None else [])]))
