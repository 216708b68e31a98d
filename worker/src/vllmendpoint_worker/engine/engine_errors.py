"""Describes why the worker exits, as one sentence for the container's termination message."""

import re
import threading
from typing import Final

from pydantic import ValidationError

from vllmendpoint_api import Reason
from vllmendpoint_worker.errors import WorkerError

__all__ = ["ENGINE_ERRORS", "EngineErrors", "describe_error", "download_failure"]

MAX_LENGTH: Final = 1000
_REFERENCES: Final = re.compile(
    r"[Ss]ee (the )?(root cause|stack trace|error|logs?)|EngineDeadError|initialization failed due to"
)
"""Matches an error that only refers to another one."""
_HTTP_ERROR: Final = re.compile(r"\((\d{3}) ([A-Za-z ]+)\) for url \(([^)]*)\)")
"""Matches the response of a hub in an error of Dynamo's downloader (``dynamo_llm::hub``)."""
_NO_CONNECTION: Final = re.compile(r"error sending request for url \(([^)]*)\)")


def describe_error(error: BaseException) -> str:
    """Type and message on one line. Without the input of a pydantic error, which may be confidential."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        location = ".".join(str(part) for part in first["loc"])
        return ": ".join(part for part in (error.title, location, first["msg"]) if part)[:MAX_LENGTH]
    text = " ".join(str(error).split())
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:MAX_LENGTH]


def download_failure(model: str, error: BaseException) -> str | None:
    """``ModelDownloadFailed: ...``, which the operator parses. None for an error of the worker itself."""
    if isinstance(error, WorkerError):
        return None
    text = " ".join(str(error).split())
    if response := _HTTP_ERROR.search(text):
        status, phrase, url = response.groups()
        cause = f"{url} answered {status} {phrase}. {_remedy(int(status))}"
    elif unreachable := _NO_CONNECTION.search(text):
        cause = (
            f"{unreachable[1]} cannot be reached. Check DNS, proxy and network policies, or set HF_ENDPOINT "
            "to a hub that the pod can reach."
        )
    else:
        cause = describe_error(error)
    return f"{Reason.MODEL_DOWNLOAD_FAILED}: the model {model!r} cannot be downloaded: {cause}"[:MAX_LENGTH]


def _remedy(status: int) -> str:
    if status in (401, 403):
        return (
            "The model is gated or private, or does not exist: accept its terms on the hub with the token's "
            "account, and set that token as HF_TOKEN in the worker's environment."
        )
    if status == 404:
        return "Check model.uri and model.revision."
    if status == 429:
        return "The hub limits the requests of this address. HF_TOKEN raises the limit. The worker retries."
    return "The hub failed. The worker retries."


class EngineErrors:
    """The latest error that the engine's processes logged. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest = ""

    def record(self, line: str) -> None:
        """Keep the line, unless it only refers to an error that is recorded already."""
        with self._lock:
            if not self._latest or not _REFERENCES.search(line):
                self._latest = line

    def root_cause(self, error: BaseException) -> str:
        """The description of ``error``, or the engine's error if ``error`` only refers to it."""
        description = describe_error(error)
        with self._lock:
            latest = self._latest
        return f"The engine failed: {latest}" if latest and _REFERENCES.search(description) else description

    def latest(self) -> str:
        """A sentence to append to a message; empty if no error was logged."""
        with self._lock:
            return f" The last error in its log: {self._latest}" if self._latest else ""


ENGINE_ERRORS: Final = EngineErrors()
"""The process-wide instance. :class:`.stages.StageReceiver` records the errors of the child processes."""
