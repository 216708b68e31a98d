"""Receives start-up stages and errors from vLLM's child processes, whose log lines do not reach the parent.

vLLM runs :func:`install`, an entry point of ``vllm.general_plugins``, in every process that it starts. There,
a logging handler sends recognized stages and errors as datagrams to a Unix socket, whose path is in the
environment. :class:`StageReceiver` reads the socket in the worker. Outside a worker, ``install`` does
nothing.
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

from .engine_errors import ENGINE_ERRORS, describe_error

__all__ = ["ENV_STAGE_SOCKET", "PLUGINS", "StageReceiver", "install", "stage_of"]

ENV_STAGE_SOCKET: Final = "VLLMENDPOINT_STAGE_SOCKET"
"""Set by the worker for its child processes: ``<parent's pid>:<path of the socket>``."""

PLUGINS: Final = ("vllmendpoint_stages", "vllmendpoint_progress")
"""Names of this package's entry points, for an allow list in ``VLLM_PLUGINS``."""

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
"""First byte of a datagram with an error. A stage starts with a letter."""
MAX_DATAGRAM_BYTES: Final = 8192


def stage_of(template: str) -> Stage | None:
    """The stage that starts with a log line of vLLM. ``template``: the message before formatting."""
    return next((stage for stage, pattern in _PATTERNS if pattern.search(template)), None)


def install() -> None:
    """In a child process of the worker: send stages and errors, and exit when the worker exits."""
    parent, _, path = os.environ.get(ENV_STAGE_SOCKET, "").partition(":")
    if not path or parent == str(os.getpid()):
        return
    _exit_with_parent()
    logger = logging.getLogger("vllm")
    if not any(isinstance(handler, _StageHandler) for handler in logger.handlers):
        logger.addHandler(_StageHandler(path))


def _exit_with_parent() -> None:
    """Linux: request SIGKILL for the parent's exit, and exit if it has exited already, because a child
    process imports for seconds before it gets here. Elsewhere the end of the pod ends the child processes.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():
        os._exit(1)


class _StageHandler(logging.Handler):
    """Sends one datagram per stage or exception. A slow or missing worker must not affect logging."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.INFO)
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if record.levelno >= logging.ERROR and error is not None:
            self._send(_ERROR + describe_error(error).encode(errors="replace"))
        elif (stage := stage_of(str(record.msg))) is not None:
            self._send(stage.value.encode())

    def _send(self, data: bytes) -> None:
        with suppress(OSError):
            self._socket.sendto(data[:MAX_DATAGRAM_BYTES], self._path)


class StageReceiver:
    """Listens on a private Unix socket, on a daemon thread, which calls ``on_stage``.

    Errors are recorded in :data:`.engine_errors.ENGINE_ERRORS`.
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
        with suppress(OSError):  # the last datagrams contain the error that ended the engine
            while True:
                self._receive(self._socket.recv(MAX_DATAGRAM_BYTES))
        self._socket.close()
        self._folder.cleanup()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                data = self._socket.recv(MAX_DATAGRAM_BYTES)
            except TimeoutError:
                continue
            except OSError:
                return
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        text = data.decode(errors="replace")
        if data.startswith(_ERROR):
            ENGINE_ERRORS.record(text[1:])
            return
        with suppress(ValueError):  # another process wrote to the socket
            self._on_stage(Stage(text))
