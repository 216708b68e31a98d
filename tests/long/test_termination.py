"""Termination of a worker at any moment: within its grace period, after open requests, without orphans."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.worker.conftest import (
    LOOPBACK,
    SEPARATE,
    START_SECONDS,
    Process,
    WorkerProcess,
    alive,
    descendants,
    stopped,
    wait,
)
from tests.worker.report_watch import ReportWatch
from vllmendpoint_api import Stage, WorkerReport, names

from .test_frontend import Frontend

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
GRACE_SECONDS = 60.0
"""``terminationGracePeriodSeconds`` of a worker's pod."""
KILL_SECONDS = 20.0
"""Maximum seconds until a killed process is reaped."""
GRACE_PERIOD = float(LOOPBACK["DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS"])
CHECK = {"periodSeconds": 4, "timeoutSeconds": 2, "restartAfterSeconds": 0}
STAGES = [
    Stage.IMPORTING,
    Stage.STARTING_ENGINE,
    Stage.LOADING_WEIGHTS,
    Stage.ALLOCATING_CACHE,
    Stage.WARMING,
    Stage.REGISTERING,
]
"""In the order of a start, without stages that are too short for a signal. The stage ``Compiling`` exists
only without ``--enforce-eager``."""


@pytest.fixture
def worker(make_worker: Callable[..., WorkerProcess]) -> Iterator[WorkerProcess]:
    worker = make_worker(arguments=SEPARATE)
    worker.settings(CHECK)
    yield worker
    worker.stop()


def signal_at(worker: WorkerProcess, stage: Stage, number: signal.Signals) -> tuple[str, list[Process]]:
    """Start the worker and send the signal when it reports the stage, or the next one if it skips the stage.
    Returns the reported stage and the worker's children at that moment.
    """
    sent = threading.Event()
    children: list[Process] = []
    name = ""

    def on_report(report: WorkerReport) -> None:
        nonlocal name
        if not sent.is_set() and _reached(report.stage.name, stage):
            name = report.stage.name
            children.extend(worker.children())
            os.kill(worker.pid, number)
            sent.set()

    worker.start()
    wait(lambda: _is_live(worker))
    with ReportWatch(worker, on_report):
        assert sent.wait(START_SECONDS), worker.report().stage
    return name, children


def _reached(now: str, stage: Stage) -> bool:
    order = [*map(str, STAGES), str(Stage.SERVING)]
    return now in order and order.index(now) >= order.index(stage)


def _is_live(worker: WorkerProcess) -> bool:
    with contextlib.suppress(OSError):
        return worker.status("report", "/live") == 200
    return False


def seconds_until_gone(children: list[Process], seconds: float = 60.0) -> float:
    """Seconds until these processes, and the ones that they start meanwhile, are gone."""

    def left() -> list[Process]:
        for child in filter(alive, tuple(children)):
            children.extend(found for found in descendants(child.pid) if found not in children)
        return [child for child in children if alive(child)]

    began = time.monotonic()
    try:
        wait(lambda: not left(), seconds)
    finally:
        for child in left():
            os.kill(child.pid, signal.SIGKILL)
    return time.monotonic() - began


@pytest.mark.parametrize("stage", STAGES)
def test_sigterm_at_any_start_stage_ends_the_worker(worker: WorkerProcess, stage: Stage) -> None:
    name, children = signal_at(worker, stage, signal.SIGTERM)
    began = time.monotonic()
    code = worker.exit_code(GRACE_SECONDS)
    ended = time.monotonic() - began
    left = seconds_until_gone(children)
    print(
        f"\nSIGTERM at {name}: exit {code} after {ended:.2f} s, "
        f"its {len(children)} children gone {left:.2f} s later"
    )
    assert code == 0
    assert name == stage


def test_sigkill_of_a_worker_that_has_just_started_a_process_leaves_no_orphan(worker: WorkerProcess) -> None:
    """vLLM's processes end with their parent, even if the parent ends before they watch it. Only an engine
    core that imports waits five minutes for its parent (vLLM's timeout); in a pod it ends with PID 1."""
    worker.start()
    wait(lambda: any("VLLM::Worker" in command(child) for child in worker.children()), START_SECONDS)
    children = worker.children()
    os.kill(worker.pid, signal.SIGKILL)
    worker.exit_code(KILL_SECONDS)
    left = seconds_until_gone(children)
    print(f"\nSIGKILL at the first VLLM::Worker: its {len(children)} children gone {left:.2f} s later")


def command(process: Process) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/cmdline").read_text()
    return ""


@pytest.mark.parametrize("stage", [Stage.LOADING_WEIGHTS, Stage.WARMING])
def test_sigkill_of_a_starting_worker_leaves_no_orphan(worker: WorkerProcess, stage: Stage) -> None:
    name, children = signal_at(worker, stage, signal.SIGKILL)
    worker.exit_code(KILL_SECONDS)
    left = seconds_until_gone(children)
    print(f"\nSIGKILL at {name}: its {len(children)} children gone {left:.2f} s later")


class UserRequest(threading.Thread):
    """One request of a user to the worker or a frontend, and its result."""

    def __init__(self, worker: WorkerProcess, tokens: int, frontend: Frontend | None = None) -> None:
        super().__init__(daemon=True)
        self.status: int | str = "no answer"
        self.tokens = 0
        self._port = frontend.port if frontend else worker.ports["http"]
        self._body = {"model": "toy", "prompt": "a", "max_tokens": tokens, "ignore_eos": True}
        self.start()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=GRACE_SECONDS)
        try:
            headers = {"content-type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(self._body), headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.status = type(error).__name__
        else:
            self.status = answer.status
            self.tokens = json.loads(body)["usage"]["completion_tokens"] if answer.status == 200 else 0
        finally:
            connection.close()


def running(worker: WorkerProcess) -> float:
    """Number of requests in the engine, according to vLLM's metrics."""
    text = worker.request("system", "/metrics")[1].decode()
    return sum(
        float(value)
        for value in re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", text, re.MULTILINE)
    )


def test_sigterm_under_load_drains_and_exits_with_zero(worker: WorkerProcess) -> None:
    worker.start()
    worker.until_ready()
    children = worker.children()
    requests = [UserRequest(worker, 400) for _ in range(16)]
    wait(lambda: running(worker) >= 8)
    began = time.monotonic()
    os.kill(worker.pid, signal.SIGTERM)
    wait(lambda: worker.status("report", "/ready") == 503, 5.0)
    code = worker.exit_code(GRACE_SECONDS)
    ended = time.monotonic() - began
    left = seconds_until_gone(children)
    for request in requests:
        request.join(10)
    statuses = [request.status for request in requests]
    print(
        f"\nSIGTERM under load: exit {code} after {ended:.2f} s, "
        f"children gone {left:.2f} s later; answers {statuses}"
    )
    assert code == 0
    assert statuses == [200] * 16


def test_sigterm_drains_requests_from_the_frontend(make_worker: Callable[..., WorkerProcess]) -> None:
    """Requests longer than Dynamo's grace period, after which upstream aborts open requests."""
    worker = make_worker(arguments=["--max-model-len", "8192"])
    worker.settings(CHECK)
    worker.start()
    frontend = Frontend(worker)
    try:
        worker.until_ready()
        frontend.until(200, 60.0)
        tokens = 3000
        requests = [UserRequest(worker, tokens, frontend) for _ in range(4)]
        wait(lambda: running(worker) >= 4)
        began = time.monotonic()
        os.kill(worker.pid, signal.SIGTERM)
        code = worker.exit_code(GRACE_SECONDS)
        ended = time.monotonic() - began
        for request in requests:
            request.join(10)
    finally:
        frontend.process.kill()
        frontend.process.wait(20)
    answers = [(request.status, request.tokens) for request in requests]
    print(f"\nSIGTERM, requests from the frontend: exit {code} after {ended:.2f} s; answers {answers}")
    assert code == 0
    assert answers == [(200, tokens)] * 4
    assert ended > GRACE_PERIOD + 1.0, "the requests were too short to show anything"


def test_sigterm_ends_a_worker_within_its_grace_period_despite_longer_requests(
    make_worker: Callable[..., WorkerProcess],
) -> None:
    worker = make_worker(arguments=["--max-model-len", "8192"])
    worker.settings(CHECK)
    worker.start()
    worker.until_ready()
    children = worker.children()
    requests = [UserRequest(worker, 8000) for _ in range(8)]
    wait(lambda: running(worker) >= 8)
    began = time.monotonic()
    os.kill(worker.pid, signal.SIGTERM)
    code = worker.exit_code(GRACE_SECONDS)
    ended = time.monotonic() - began
    seconds_until_gone(children)
    for request in requests:
        request.join(10)
    statuses = {request.status for request in requests}
    print(f"\nSIGTERM while requests decode for minutes: exit {code} after {ended:.2f} s; answers {statuses}")
    assert code == 0


def test_sigterm_ends_a_worker_whose_engine_is_frozen(worker: WorkerProcess) -> None:
    worker.start()
    worker.until_ready()
    children = worker.children()
    request = UserRequest(worker, 400)
    with stopped(worker.engine_core()):
        began = time.monotonic()
        os.kill(worker.pid, signal.SIGTERM)
        code = worker.exit_code(GRACE_SECONDS)
        ended = time.monotonic() - began
        left = seconds_until_gone(children)
    request.join(10)
    print(
        f"\nSIGTERM with a frozen engine: exit {code} after {ended:.2f} s, children gone {left:.2f} s later"
    )
    assert code == 0


def test_sigkill_of_a_worker_under_load_leaves_no_orphan(worker: WorkerProcess) -> None:
    worker.start()
    worker.until_ready()
    children = worker.children()
    requests = [UserRequest(worker, 900) for _ in range(8)]
    wait(lambda: running(worker) >= 8)
    os.kill(worker.pid, signal.SIGKILL)
    left = seconds_until_gone(children)
    for request in requests:
        request.join(10)
    print(f"\nSIGKILL under load: its {len(children)} children gone {left:.2f} s later")


def test_sigterm_ends_a_worker_that_downloads_model_data(
    make_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "AWS_REGION": "us-east-1"}
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "SAGEMAKER_MODEL_PATH": str(tmp_path)}
        worker = make_worker(store | keys | {names.ENV_ARTIFACTS_URI: "s3://bucket/model/"})
        worker.start()
        worker.until(lambda report: report.stage.name == Stage.DOWNLOADING, 30.0)
        began = time.monotonic()
        os.kill(worker.pid, signal.SIGTERM)
        code = worker.exit_code(GRACE_SECONDS)
    print(f"\nSIGTERM at Downloading: exit {code} after {time.monotonic() - began:.2f} s")
    assert code == 0
