"""Start-up stages and errors, told by vLLM's child processes: their log lines never reach the parent.

:func:`install` is vLLM's ``vllm.general_plugins`` entry point. vLLM runs it in every process it starts;
there a logging handler sends the stages it recognises, and errors, as datagrams to a unix socket, named in
the environment, on which :class:`StageReceiver` listens in the worker. Inert outside our worker.
"""

import ctypes
import logging
import multiprocessing
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from vllmendpoint_api import Stage

from .engine_errors import ENGINE_ERRORS, sentence

__all__ = ["ENV_STAGE_SOCKET", "PLUGINS", "StageReceiver", "install", "recognise"]

ENV_STAGE_SOCKET: Final = "VLLMENDPOINT_STAGE_SOCKET"
"""Set by the worker for its children: ``<parent's pid>:<path of the socket>``."""

PLUGINS: Final = ("vllmendpoint_stages", "vllmendpoint_progress")
"""Names of our entry points, for an allow-list in ``VLLM_PLUGINS``."""

_PATTERNS: Final = (
    (Stage.STARTING_ENGINE, re.compile(r"^Initializing a V1 LLM engine")),
    (Stage.LOADING_WEIGHTS, re.compile(r"^Starting to load model")),
    (
        Stage.COMPILING,
        re.compile(r"torch\.compile|^Compiling|Dynamo bytecode|[Cc]apturing (CUDA )?graph|^Warming up"),
    ),
    (Stage.ALLOCATING_CACHE, re.compile(r"KV cache size:|Available KV cache memory")),
)
_PR_SET_PDEATHSIG: Final = 1
_ERROR: Final = b"!"
"""First byte of a datagram that tells an error; a stage begins with a letter."""
_DATAGRAM: Final = 8192


def recognise(template: str) -> Stage | None:
    """The stage that a log line of vLLM announces. ``template`` is the unformatted message."""
    return next((stage for stage, pattern in _PATTERNS if pattern.search(template)), None)


def install() -> None:
    """In a child of our worker: send stages, and die with the parent, which vLLM's children would outlive."""
    parent, _, path = os.environ.get(ENV_STAGE_SOCKET, "").partition(":")
    if not path or parent == str(os.getpid()):
        return
    _die_with_parent()
    logger = logging.getLogger("vllm")
    if not any(isinstance(handler, _StageHandler) for handler in logger.handlers):
        logger.addHandler(_StageHandler(path))


def _die_with_parent() -> None:
    """Linux: SIGKILL when the parent dies; the end now where it is dead already, for a child imports for
    seconds before it comes here. Elsewhere nothing: the pod's end takes the children along.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():
        os._exit(1)


class _StageHandler(logging.Handler):
    """One datagram a stage or an exception; the worker may be gone or slow, and logging must not care."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.INFO)
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if record.levelno >= logging.ERROR and error is not None:
            self._send(_ERROR + sentence(error).encode(errors="replace"))
        elif (stage := recognise(str(record.msg))) is not None:
            self._send(stage.value.encode())

    def _send(self, data: bytes) -> None:
        with suppress(OSError):
            self._socket.sendto(data[:_DATAGRAM], self._path)


class StageReceiver:
    """Listens on a private unix socket, on a daemon thread; ``on_stage`` is called there.

    Errors go to :data:`vllmendpoint_worker.engine.engine_errors.ENGINE_ERRORS`.
    """

    def __init__(self, on_stage: Callable[[Stage], None]) -> None:
        self._on_stage = on_stage
        self._folder = tempfile.TemporaryDirectory(prefix="vllmendpoint-", ignore_cleanup_errors=True)
        self._path = str(Path(self._folder.name) / "stages")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._path)
        self._socket.settimeout(0.5)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stages", daemon=True)

    @property
    def address(self) -> str:
        """The value of :data:`ENV_STAGE_SOCKET`."""
        return f"{os.getpid()}:{self._path}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2.0)
        self._socket.setblocking(False)
        with suppress(OSError):  # what came last says why it ends
            while True:
                self._take(self._socket.recv(_DATAGRAM))
        self._socket.close()
        self._folder.cleanup()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                data = self._socket.recv(_DATAGRAM)
            except TimeoutError:
                continue
            except OSError:
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        text = data.decode(errors="replace")
        if data.startswith(_ERROR):
            ENGINE_ERRORS.record(text[1:])
            return
        with suppress(ValueError):  # not one of ours
            self._on_stage(Stage(text))
