"""Why the worker ends, as one sentence for the container's termination message."""

import re
import threading
from typing import Final

from pydantic import ValidationError

from vllmendpoint_api import Reason
from vllmendpoint_worker.errors import WorkerError

__all__ = ["ENGINE_ERRORS", "EngineErrors", "download_failed", "sentence"]

_LONGEST: Final = 1000
_POINTERS: Final = re.compile(
    r"[Ss]ee (the )?(root cause|stack trace|error|logs?)|EngineDeadError|initialization failed due to"
)
"""An error that only says that there was another one."""
_STATUS: Final = re.compile(r"\((\d{3}) ([A-Za-z ]+)\) for url \(([^)]*)\)")
"""As Dynamo's downloader tells a hub's answer (``dynamo_llm::hub``)."""
_UNREACHABLE: Final = re.compile(r"error sending request for url \(([^)]*)\)")


def sentence(error: BaseException) -> str:
    """Type and message on one line; of a pydantic error only what is wrong, not the value it was given."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return ": ".join(part for part in (error.title, where, first["msg"]) if part)[:_LONGEST]
    text = " ".join(str(error).split())
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:_LONGEST]


def download_failed(model: str, error: BaseException) -> str | None:
    """``ModelDownloadFailed: ...``, which the operator reads; None where the worker itself is at fault."""
    if isinstance(error, WorkerError):
        return None
    text = " ".join(str(error).split())
    if answer := _STATUS.search(text):
        status, phrase, url = answer.groups()
        said = f"{url} answered {status} {phrase}. {_advice(int(status))}"
    elif silent := _UNREACHABLE.search(text):
        said = (
            f"{silent[1]} cannot be reached. Check DNS, proxy and network policies, or set HF_ENDPOINT to a "
            "hub that the pod can reach."
        )
    else:
        said = sentence(error)
    return f"{Reason.MODEL_DOWNLOAD_FAILED}: the model {model!r} cannot be downloaded: {said}"[:_LONGEST]


def _advice(status: int) -> str:
    if status in (401, 403):
        return (
            "The model is gated or private, or does not exist: accept its terms on the hub with the token's "
            "account, and give the worker that token as HF_TOKEN."
        )
    if status == 404:
        return "Check model.uri, and model.revision."
    if status == 429:
        return "The hub limits this address: a token (HF_TOKEN) raises the limit; it is tried again."
    return "The hub has a problem of its own; it is tried again."


class EngineErrors:
    """The latest error that the engine's own processes logged; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest = ""

    def record(self, line: str) -> None:
        """Kept, unless it only points at one that is known already."""
        with self._lock:
            if not self._latest or not _POINTERS.search(line):
                self._latest = line

    def root_cause(self, error: BaseException) -> str:
        """What really happened: ``error`` itself, or the engine's error where it only points at that."""
        said = sentence(error)
        with self._lock:
            latest = self._latest
        return f"The engine failed: {latest}" if latest and _POINTERS.search(said) else said

    def latest(self) -> str:
        """A sentence to go after another; empty where none was logged."""
        with self._lock:
            return f" The last error in its log: {self._latest}" if self._latest else ""


ENGINE_ERRORS: Final = EngineErrors()
"""The process's own: errors reach it through the stage socket."""
