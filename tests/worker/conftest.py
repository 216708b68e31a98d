"""Real worker processes on loopback: Dynamo's runtime, a real vLLM engine on CPU, the toy model.

Every process started here is ended by pid, with its children, also after a failure.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.free_port import free_port
from tests.project_cache import CACHE
from vllmendpoint_api import Verdict, WorkerReport

ROOT = Path(__file__).parents[2]
START_SECONDS = 240.0
PERIOD = 3
PATIENT = {"periodSeconds": PERIOD, "timeoutSeconds": 30, "restartAfterSeconds": 0}
"""Health check of tests that stall no engine. Beside other engines on two cores a probe takes
seconds, and with a short timeout the worker would correctly be unready."""
TIMEOUT = 4
QUICK = PATIENT | {"timeoutSeconds": TIMEOUT}
"""Health check of tests that stall an engine, in seconds."""
HEALTH_LAG = 15.0
"""Maximum delay in seconds of Dynamo's ``/health`` after a stall: its canary checks every second ("one to two
seconds" in docs/concepts/verdict.md), and the machine may be busy."""
ENGINE_ARGUMENTS = [
    "--served-model-name", "toy", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "8",
    "--kv-cache-memory-bytes", "67108864", "--distributed-executor-backend", "uni",
]  # fmt: skip
SEPARATE = ["--distributed-executor-backend", "mp"]
"""The model in a separate process, vLLM's default on CPUs and for several GPUs. ENGINE_ARGUMENTS run it in
the engine core's process, as on one GPU, which starts in two thirds of the time."""
LOOPBACK = {
    "DYN_DISCOVERY_BACKEND": "file",
    "DYN_EVENT_PLANE": "zmq",
    "DYN_EVENT_PLANE_HOST": "127.0.0.1",
    "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "1",
    "DYN_HTTP_RPC_HOST": "127.0.0.1",
    "DYN_REQUEST_PLANE": "tcp",
    "DYN_SDK_DISABLE_ANSI_LOGGING": "1",
    "DYN_SYSTEM_HOST": "127.0.0.1",
    "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
    "DYN_TCP_RPC_HOST": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLMENDPOINT_REPORT_HOST": "127.0.0.1",
    "VLLMENDPOINT_SAGEMAKER_HOST": "127.0.0.1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # without it vLLM replaces "uni" by "mp" on CPUs
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
}


class Process(NamedTuple):
    """A process. ``began``, in clock ticks since boot, distinguishes it from a later one with the same
    PID."""

    pid: int
    began: int


def descendants(pid: int) -> list[Process]:
    """All live processes below ``pid``."""
    below: dict[int, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))) and fields[0] != "Z":
            below.setdefault(int(fields[1]), []).append(Process(int(entry.name), int(fields[19])))
    found: list[Process] = []
    queue = [pid]
    while queue:
        children = below.get(queue.pop(), [])
        found += children
        queue += [child.pid for child in children]
    return found


def alive(process: Process) -> bool:
    fields = _stat(process.pid)
    return bool(fields) and fields[0] != "Z" and int(fields[19]) == process.began


def _stat(pid: int) -> list[str]:
    """State, parent, ... of ``/proc/PID/stat``; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class WorkerProcess:
    """One worker. ``environ`` extends LOOPBACK, and ``arguments`` extends ENGINE_ARGUMENTS."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        environ: dict[str, str] | None = None,
        arguments: list[str] | None = None,
        inside: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.inside = inside
        """Prefix of the command, which runs it in a network namespace."""
        self.settings_file = folder / "settings" / "settings.json"
        self.settings_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file = folder / "worker.log"
        # A short path, since the path of a socket has at most 107 characters; stop() removes the sockets.
        self.sockets = Path(tempfile.mkdtemp(prefix="worker-"))
        self.ports = {name: free_port() for name in ("report", "http", "system", "rpc")}
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DYN_", "VLLM", "SAGEMAKER"))
        }
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        self.environ = kept | LOOPBACK | {
            "DYN_FILE_KV": str(folder / "discovery"),
            "DYN_SYSTEM_PORT": str(self.ports["system"]),
            "DYN_TCP_RPC_PORT": str(self.ports["rpc"]),
            "VLLMENDPOINT_REPORT_PORT": str(self.ports["report"]),
            "VLLMENDPOINT_SAGEMAKER_PORT": str(self.ports["http"]),
            "VLLMENDPOINT_SETTINGS_DIR": str(self.settings_file.parent),
            "VLLM_RPC_BASE_PATH": str(self.sockets),
        } | (environ or {})  # fmt: skip
        self.arguments = ["--model", str(model), *ENGINE_ARGUMENTS, *(arguments or [])]
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self._seen: set[Process] = set()

    def settings(self, health_check: dict[str, Any], digest: str = "", **more: Any) -> str:
        """Replace ``settings.json`` atomically; returns the hash that the report will contain."""
        digest = digest or f"h{time.monotonic_ns()}"
        text = json.dumps({"healthCheck": health_check, "hash": digest, **more})
        temporary = self.settings_file.with_suffix(".new")
        temporary.write_text(text)
        temporary.replace(self.settings_file)
        return digest

    def apply(self, health_check: dict[str, Any]) -> None:
        """Replace the settings and wait until the worker has read them."""
        digest = self.settings(health_check)
        self.until(lambda report: report.configuration.settings_hash == digest, 30.0)

    def start(self) -> None:
        self.sockets.mkdir(exist_ok=True)
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.inside, sys.executable, "-m", "vllmendpoint_worker", *self.arguments],
                env=self.environ, stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip
        self.started_at = time.monotonic()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def engine_core(self) -> int:
        """PID of vLLM's engine core, found by its process title."""
        for child in self.children():
            with contextlib.suppress(OSError):
                if b"EngineCore" in Path(f"/proc/{child.pid}/cmdline").read_bytes():
                    return child.pid
        raise AssertionError("no engine core among the children")

    def children(self) -> list[Process]:
        found = descendants(self.pid)
        self._seen |= set(found)
        return found

    def exit_code(self, seconds: float) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def log_lines(self) -> list[str]:
        """The log lines of the worker's package, without upstream's."""
        return [line for line in self.log().splitlines() if " vllmendpoint_worker." in line]

    def request(
        self, port: str, path: str, body: Any = None, *, method: str = "", seconds: float = 30.0
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[port], timeout=seconds)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            headers = {"content-type": "application/json"} if data else {}
            connection.request(method or ("POST" if data else "GET"), path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def status(self, port: str, path: str) -> int:
        return self.request(port, path)[0]

    def report(self) -> WorkerReport:
        return WorkerReport.model_validate_json(self.request("report", "/status")[1])

    def until(self, condition: Callable[[WorkerReport], Any], seconds: float) -> float:
        """Seconds until the report fulfils ``condition``."""
        began = time.monotonic()
        last: WorkerReport | str = "no answer"
        while time.monotonic() - began < seconds:
            assert self.process is not None
            assert self.process.poll() is None, f"the worker ended: {self.log_lines()[-5:]}"
            with contextlib.suppress(OSError):
                last = self.report()
                if condition(last):
                    return time.monotonic() - began
            time.sleep(0.05)
        raise AssertionError(f"not fulfilled within {seconds} s: {last!r} {self.log_lines()[-5:]}")

    def until_ready(self) -> float:
        return self.until(lambda report: report.ready, START_SECONDS)

    def stop(self) -> None:
        """Kill the worker, then its remaining children, by PID."""
        if self.process is not None and self.process.poll() is None:
            self.children()
            self.process.kill()
            self.process.wait(20)
        for child in self._seen:
            if alive(child):
                with contextlib.suppress(OSError):
                    os.kill(child.pid, signal.SIGKILL)
        shutil.rmtree(self.sockets, ignore_errors=True)


def wait(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    """Poll until ``condition`` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not fulfilled within {seconds} s"
        time.sleep(0.05)


def wait_until_gone(processes: Sequence[Process], seconds: float) -> None:
    """Poll until none of the processes is alive."""
    deadline = time.monotonic() + seconds
    while left := [process for process in processes if alive(process)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[float]:
    """Freeze a process (SIGSTOP) for the duration of the ``with``; yields the start in monotonic seconds."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield time.monotonic()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def assert_health_follows(worker: WorkerProcess) -> None:
    """Dynamo's ``/health`` returns 503 for as long as the engine is frozen, and 200 afterwards."""
    worker.apply(QUICK)
    wait(lambda: worker.status("system", "/health") == 200)
    with stopped(worker.engine_core()) as began:
        wait(lambda: worker.status("system", "/health") == 503)
        took = time.monotonic() - began
        report = worker.report()
        assert report.verdict.state == Verdict.STALLED
        lag = (report.time - report.verdict.since).total_seconds()
        print(f"SIGSTOP -> /health 503 in {took:.1f} s, {lag:.1f} s after the verdict")
        assert lag < HEALTH_LAG
        until = time.monotonic() + 4.0
        while time.monotonic() < until:
            assert worker.status("system", "/health") == 503
            time.sleep(0.2)
    wait(lambda: worker.status("system", "/health") == 200)
    assert "dynamo_runtime::health_check: Health check got no response" not in worker.log()
    worker.until(lambda report: report.ready, 30.0)


class Load:
    """User traffic on the SageMaker port from threads, for the duration of the ``with``."""

    def __init__(
        self, worker: WorkerProcess, clients: int, body: dict[str, Any], path: str = "/v1/completions"
    ) -> None:
        self._worker = worker
        self._body = body
        self._path = path
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        self.answers = 0

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                status, _ = self._worker.request("http", self._path, self._body, seconds=60.0)
            except OSError:
                status = 0
            self.answers += status == 200
            if status != 200:  # a stalled worker rejects requests immediately
                time.sleep(0.1)


@pytest.fixture(scope="session")
def toy_model() -> Path:
    """The toy model of hack/model.py, created on first use."""
    return _model("toy", "toy-llama")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The embedding model all-MiniLM-L6-v2, downloaded on first use."""
    return _model("embedding", "all-MiniLM-L6-v2")


def _model(kind: str, folder: str) -> Path:
    subprocess.run([sys.executable, str(ROOT / "hack" / "model.py"), kind], timeout=300, check=True)
    return CACHE / "models" / folder


@pytest.fixture(scope="module")
def make_worker(
    tmp_path_factory: pytest.TempPathFactory, toy_model: Path
) -> Iterator[Callable[..., WorkerProcess]]:
    workers: list[WorkerProcess] = []

    def make(
        environ: dict[str, str] | None = None,
        arguments: list[str] | None = None,
        inside: Sequence[str] = (),
    ) -> WorkerProcess:
        worker = WorkerProcess(tmp_path_factory.mktemp("worker"), toy_model, environ, arguments, inside)
        workers.append(worker)
        return worker

    try:
        yield make
    finally:
        for worker in workers:
            worker.stop()
