"""Two workers behind Dynamo's frontend, and clients that read complete answers."""

import contextlib
import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.free_port import free_port

from .conftest import WorkerProcess, wait

__all__ = ["Answer", "Client", "Frontend", "slow_worker"]

SLOW = Path(__file__).parent / "slow_engine"


def slow_worker(
    folder: Path, model: Path, discovery: Path, step_seconds: float, *arguments: str
) -> WorkerProcess:
    """A worker whose engine waits ``step_seconds`` before each step."""
    environ = {
        "DYN_FILE_KV": str(discovery),
        "ENGINE_STEP_SECONDS": str(step_seconds),
        "PYTHONPATH": str(SLOW),
    }
    scheduler = ["--scheduler-cls", "slow_engine.SlowScheduler", "--dtype", "float32"]
    return WorkerProcess(folder, model, environ, [*scheduler, *arguments])


@dataclass(slots=True)
class Answer:
    """One answer. ``error`` is the exception of the connection, or the error in the stream."""

    status: int = 0
    text: str = ""
    finish_reason: str | None = None
    error: str = ""
    chunks: int = 0

    @property
    def is_complete(self) -> bool:
        return (self.status, self.error) == (200, "") and self.finish_reason is not None


class Frontend:
    """Dynamo's frontend with the discovery of a worker, for the duration of the ``with``."""

    def __init__(self, folder: Path, worker: WorkerProcess, environ: dict[str, str]) -> None:
        self.port = free_port()
        self.log_file = folder / "frontend.log"
        own = {"DYN_SYSTEM_PORT": "-1", "DYN_TCP_RPC_PORT": str(free_port())}
        self._environ = worker.environ | own | environ
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "dynamo.frontend", "--http-host", "127.0.0.1"]
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--http-port", str(self.port)], env=self._environ, stdout=log, stderr=log
            )
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(20)

    def get(self, path: str) -> Any:
        """The JSON of a path; None if there is no answer with status 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            return json.loads(body) if response.status == 200 else None
        return None

    def workers(self) -> int:
        """Number of workers that the frontend sends requests to."""
        ready = self.get("/v1/models/toy/ready") or {"namespaces": {}}
        return sum(
            kind["workers"]
            for namespace in ready["namespaces"].values()
            for kind in namespace["worker_types"].values()
        )

    def wait_for_workers(self, count: int) -> None:
        wait(lambda: self.workers() == count, 60.0)


@dataclass(slots=True)
class Client:
    """Sends one request in a thread and reads the whole answer."""

    port: int
    body: dict[str, Any]
    path: str = "/v1/completions"
    headers: dict[str, str] = field(default_factory=dict)
    answer: Answer = field(default_factory=Answer)
    raw: bytes = b""
    closed_early: bool = False
    """Whether the connection was closed without the end of the response."""
    _thread: threading.Thread | None = None

    def start(self) -> "Client":
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def wait(self, seconds: float = 90.0) -> Answer:
        assert self._thread is not None
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"no answer within {seconds} s: {self.answer}"
        return self.answer

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=90.0)
        headers = {"content-type": "application/json"} | self.headers
        with contextlib.closing(connection):
            try:
                connection.request("POST", self.path, json.dumps(self.body), headers)
                response = connection.getresponse()
                self.answer.status = response.status
                self._read(response)
            except (OSError, http.client.HTTPException) as error:
                self.answer.error = type(error).__name__

    def _read(self, response: http.client.HTTPResponse) -> None:
        if not self.body.get("stream") or response.status != 200:
            self.raw = response.read()
            if response.status == 200:
                self._add(json.loads(self.raw))
            return
        for line in self._lines(response):
            self.raw += line + b"\n"
            if line.startswith(b"event: error"):
                self.answer.error = "event"
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                self._add(json.loads(line[6:]))
        if b"data: [DONE]" not in self.raw:
            self.answer.error = self.answer.error or "no end"

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """The lines of a stream. ``readline`` of http.client does not report a missing end."""
        rest = b""
        try:
            while data := response.read1(65536):
                *lines, rest = (rest + data).split(b"\n")
                yield from lines
        except (http.client.IncompleteRead, ConnectionError):
            self.closed_early = True

    def _add(self, data: dict[str, Any]) -> None:
        if "error" in data:
            self.answer.error = str(data["error"])
        for choice in data.get("choices", []):
            message = choice.get("delta") or choice.get("message") or {}
            self.answer.chunks += 1
            self.answer.text += choice.get("text") or message.get("content") or ""
            self.answer.finish_reason = choice.get("finish_reason") or self.answer.finish_reason
