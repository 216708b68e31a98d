"""Requests through Dynamo's frontend: the worker registers, serves, and unregisters at SIGTERM."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.free_port import free_port
from tests.worker.conftest import WorkerProcess

pytestmark = pytest.mark.timeout(300)


class Frontend:
    def __init__(self, worker: WorkerProcess) -> None:
        self.port = free_port()
        environ = worker.environ | {"DYN_SYSTEM_PORT": "-1", "DYN_TCP_RPC_PORT": str(free_port())}
        with (worker.folder / "frontend.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dynamo.frontend", "--http-port", str(self.port)]
                + ["--http-host", "127.0.0.1"],
                env=environ,
                stdout=log,
                stderr=log,
            )

    def chat(self, **more: object) -> tuple[int, bytes]:
        body = {"model": "toy", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4} | more
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(
                "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"}
            )
            answer = connection.getresponse()
            return answer.status, answer.read()

    def until(self, status: int, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        last: object = None
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                last, answer = self.chat()
                if last == status:
                    return answer
            time.sleep(0.2)
        raise AssertionError(f"no {status} in {seconds} s, but {last}")


@pytest.fixture
def frontend(make_worker: Callable[..., WorkerProcess]) -> Iterator[tuple[WorkerProcess, Frontend]]:
    worker = make_worker()
    worker.settings({"periodSeconds": 60, "timeoutSeconds": 2})
    worker.start()
    frontend = Frontend(worker)
    try:
        yield worker, frontend
    finally:
        frontend.process.kill()
        frontend.process.wait(20)


def test_requests_through_the_frontend_succeed_and_count_as_proof_of_life(
    frontend: tuple[WorkerProcess, Frontend],
) -> None:
    worker, users = frontend
    worker.until_ready()
    answer = json.loads(users.until(200, 60.0))
    assert answer["choices"][0]["finish_reason"] == "length"
    proof = worker.report().verdict.last_proof_of_life
    assert proof is not None
    time.sleep(1.0)
    assert users.chat()[0] == 200
    worker.until(lambda report: report.verdict.last_proof_of_life > proof, 3.0)

    core = worker.engine_core()
    os.kill(core, signal.SIGSTOP)  # a request through Dynamo counts as traffic, too
    with contextlib.suppress(OSError):
        connection = http.client.HTTPConnection("127.0.0.1", users.port, timeout=0.5)
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps({"model": "toy", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}),
            {"content-type": "application/json"},
        )
        stalled = worker.until(lambda report: report.verdict.state == "Stalled", 15.0)
        assert stalled < 2.0 + 1.0 + 3.0
        connection.close()
    os.kill(core, signal.SIGCONT)
    worker.until(lambda report: report.ready, 30.0)
    users.until(200, 30.0)

    os.kill(worker.pid, signal.SIGTERM)
    assert worker.exit_code(30.0) == 0
    users.until(404, 20.0)
