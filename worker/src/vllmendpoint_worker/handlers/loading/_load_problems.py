"""Builds the problem that is reported for handlers that cannot be loaded, with file, line and fix."""

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

from ._signature import UnsupportedSignatureError
from ._standards import (
    HandlerFileNotFoundError,
    HandlerNotCallableError,
    HandlerNotFoundError,
    LoadFailedError,
    MiddlewareError,
    ModuleLoadError,
)

__all__ = [
    "code_folders",
    "error_location",
    "load_problem",
    "stack_location",
    "thread_location",
    "unexpected_problem",
]

logger = logging.getLogger("vllmendpoint_worker.handlers")

_PUBLIC_ERRORS: Final = (ImportError, SyntaxError, NameError, AttributeError, TypeError, MiddlewareError)
"""Errors whose text contains only code. The text of other errors may contain data, so only the log has it."""

_TIMEOUT_ERRORS: Final = (HandlerTimeoutError, HandlerAbortedError)


def load_problem(failed: LoadFailedError, config: HandlerConfig, seconds: float) -> Problem:
    """The problem of a setting that cannot be loaded. ``seconds``: how long the load took."""
    error = failed.__cause__ or failed
    references = config.references.values()
    path = next((reference.path for reference in references if reference.field == failed.field), None)
    reason, fault, fix = _describe(error, config, path, seconds)
    if reason is Reason.HANDLER_IMPORT_FAILED and not isinstance(error, _TIMEOUT_ERRORS):
        logger.error("The code of the handlers failed", exc_info=error)
    source = SCRIPT_SOURCE if failed.source is HandlerSource.DEFAULT else failed.source.value
    # The value of an environment variable may be secret; the spec is not.
    text = f" ({path.text[:256]})" if path is not None and failed.source is HandlerSource.SPEC else ""
    subject = f"The {failed.field[4:]}" if failed.field.startswith("the ") else failed.field
    return Problem(
        reason=reason,
        source=source,
        field=failed.field[:128],
        message=f"{subject}{text} {fault}. {fix}"[:2048],
    )


def unexpected_problem(error: BaseException, config: HandlerConfig, seconds: float) -> Problem:
    """The problem of an error that no setting caused. If it did not pass through the customer's code, the
    customer cannot correct it.
    """
    if isinstance(error, _TIMEOUT_ERRORS) or error_location(error, config):
        failed = LoadFailedError(HandlerSource.DEFAULT, "handlers")
        failed.__cause__ = error
        return load_problem(failed, config, seconds)
    return Problem(
        reason=Reason.HANDLER_IMPORT_FAILED,
        source=SCRIPT_SOURCE,
        field="handlers",
        message=f"The worker failed while it loaded the handlers ({type(error).__name__}). Its log has the "
        "traceback. Restart the worker, and report the error if it happens again.",
    )


def _describe(
    error: BaseException, config: HandlerConfig, path: HandlerPath | None, seconds: float
) -> tuple[Reason, str, str]:
    """Reason, fault and fix. The setting and the fault are one sentence, the fix is another."""
    location = error_location(error, config)
    if isinstance(error, UnsupportedSignatureError):
        return Reason.INVALID_HANDLER, error.fault, error.fix
    if (unsupported := _unsupported_at_import(error, location, seconds)) is not None:
        return Reason.HANDLER_IMPORT_FAILED, *unsupported
    if not location and (missing := _missing_target(error, config)) is not None:
        return missing
    if isinstance(error, ModuleLoadError) and error.__context__ is not None:
        error = error.__context__
    if not location and path is not None and _is_module_missing(error, path):
        fix = f"Correct the name, or {MISSING_MODULE[0].lower()}{MISSING_MODULE[1:]}"
        return Reason.HANDLER_NOT_FOUND, "names a module that does not exist", fix
    kind = type(error).__name__
    fix = MISSING_MODULE if isinstance(error, ModuleNotFoundError) else "Correct the code."
    text = (
        f"{kind}: {error.msg if isinstance(error, SyntaxError) else error}"
        if isinstance(error, _PUBLIC_ERRORS)
        else kind
    )
    at = f" at {location}" if location else ""
    return (
        Reason.HANDLER_IMPORT_FAILED,
        f"failed{at}: {text[:300]}",
        f"{fix} The worker's log has the traceback.",
    )


def _unsupported_at_import(error: BaseException, location: str, seconds: float) -> tuple[str, str] | None:
    """Fault and fix if a script does something at module level that only works elsewhere."""
    if isinstance(error, _TIMEOUT_ERRORS):
        location = location or str(error)
        line = f" ({location})" if location else ""
        return f"were not imported within {seconds:.0f} s{line}", "Move long work out of the module level."
    if isinstance(error, SystemExit):
        return f"calls sys.exit() while it is imported ({location})", "Remove the call."
    text = str(error)
    if isinstance(error, RuntimeError) and "event loop" in text and "running" in text:
        fault = f"runs an event loop while the worker's is running ({location})"
        return fault, "Use asyncio.create_task(), or move the call to the handler."
    if isinstance(error, ValueError) and "main thread" in text:
        fault = f"calls a function that needs the main thread, but is imported on another thread ({location})"
        return fault, "Move the call to a handler that is a coroutine function."
    return None


def _missing_target(error: BaseException, config: HandlerConfig) -> tuple[Reason, str, str] | None:
    """Reason, fault and fix if a path does not lead to a function."""
    if isinstance(error, HandlerFileNotFoundError):
        absolute = Path(error.file_path).is_absolute()
        fix = "Create the file." if absolute else f"Put the file in {config.folder}."
        return Reason.SCRIPT_NOT_FOUND, "names a file that does not exist", fix
    if isinstance(error, HandlerNotFoundError | AttributeError):
        fix = "Define it or correct the name."
        return Reason.HANDLER_NOT_FOUND, "names a function that does not exist", fix
    if isinstance(error, HandlerNotCallableError):
        return Reason.INVALID_HANDLER, f"is not callable (a {error.handler_type})", "Name a function."
    return None


def _is_module_missing(error: BaseException, path: HandlerPath) -> bool:
    """Whether the module that the path names, or a package around it, does not exist."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return False
    return f"{path.location}.".startswith(f"{error.name}.")


def error_location(error: BaseException, config: HandlerConfig) -> str:
    """``model.py line 3``: the customer's code that raised ``error``; ``""`` if other code did."""
    chain = error.__context__ if isinstance(error, ModuleLoadError) and error.__context__ else error
    folders = code_folders(config)
    if isinstance(chain, SyntaxError) and chain.filename and _is_inside(chain.filename, folders):
        return f"{Path(chain.filename).name} line {chain.lineno}"
    return stack_location(traceback.extract_tb(chain.__traceback__), config)


def stack_location(stack: Iterable[traceback.FrameSummary], config: HandlerConfig) -> str:
    """``model.py line 3``: the innermost frame of the customer's code; ``""`` if there is none."""
    folders = code_folders(config)
    frames = [frame for frame in stack if _is_inside(frame.filename, folders)]
    return f"{Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""


def thread_location(thread: threading.Thread, config: HandlerConfig) -> str:
    """``model.py line 3``: the customer's code that ``thread`` runs; ``""`` if it runs other code."""
    frame = sys._current_frames().get(thread.ident or 0)
    return stack_location(traceback.extract_stack(frame), config) if frame is not None else ""


def code_folders(config: HandlerConfig) -> tuple[Path, ...]:
    """Folders of the customer's code."""
    script = config.script
    return tuple(dict.fromkeys([config.folder, *([script.path.parent] if script is not None else [])]))


def _is_inside(file: str, folders: tuple[Path, ...]) -> bool:
    return any(Path(file).is_relative_to(folder) for folder in folders)
