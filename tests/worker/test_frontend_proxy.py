"""HAProxy before Dynamo's HTTP server: repeated requests, kept connections in a drain, clients that leave,
TLS.
"""

import contextlib
import http.client
import json
import os
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from vllmendpoint_api import Stage
from vllmendpoint_worker.frontend.probing.probe import WORKER_HEADER
from vllmendpoint_worker.frontend.proxy.configuration import RETRIES, RETRY_BYTES

from .conftest import wait
from .frontend_process import FrontendProcess, PlainWorker
from .plain_worker import MODEL

HEALTH_CHECK = {"periodSeconds": 1, "timeoutSeconds": 1}
START_SECONDS = 30.0
BODY = {"model": MODEL, "prompt": "hi"}


@pytest.fixture
def frontend(tmp_path: Path) -> Iterator[FrontendProcess]:
    process = FrontendProcess(tmp_path, HEALTH_CHECK)
    yield process
    process.stop()


@pytest.fixture
def worker(tmp_path: Path, toy_model: Path) -> Iterator[PlainWorker]:
    process = PlainWorker(tmp_path, "worker", toy_model, "team_r1")
    yield process
    process.stop()


@pytest.fixture
def serving(frontend: FrontendProcess, worker: PlainWorker) -> FrontendProcess:
    """The frontend, in front of one worker."""
    worker.start()
    frontend.start()
    frontend.until(lambda report: report.ready, START_SECONDS)
    return frontend


def retries(frontend: FrontendProcess) -> int:
    lines = frontend.get("/metrics")[1].decode().splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith("vllmendpoint_frontend_retries_total ")]
    return int(float(value))


def send(connection: http.client.HTTPConnection, **body: Any) -> None:
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(BODY | body), headers)


def haproxy(frontend: FrontendProcess) -> int:
    """The process ID of the frontend's HAProxy."""
    children = Path(f"/proc/{frontend.pid}/task/{frontend.pid}/children").read_text().split()
    (found,) = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "haproxy\n"]
    return found


def test_a_request_that_dynamo_cannot_move_is_repeated_at_another_worker(
    tmp_path: Path, worker: PlainWorker, toy_model: Path
) -> None:
    """Dynamo does not move a request with several choices: it answers with 503, and avoids the
    worker for 5 s.
    The period is long, because a probe of the worker would prolong that.
    """
    frontend = FrontendProcess(tmp_path, {"periodSeconds": 600})
    stalled = PlainWorker(tmp_path, "stalled", toy_model, "team_r2", PLAIN_SHUTDOWN_AFTER="0")
    try:
        for process in (worker, stalled, frontend):
            process.start()
        frontend.until(lambda report: sum(row.workers for row in report.accepted) == 2, START_SECONDS)
        deadline = time.monotonic() + 60.0
        while retries(frontend) < 2:
            assert time.monotonic() < deadline, "the worker is never selected"
            status, text = frontend.request("/v1/completions", BODY | {"n": 2, "max_tokens": 3})
            assert status == 200, text
    finally:
        for process in (frontend, stalled):
            process.stop()


def test_repetitions_are_limited_and_never_of_a_request_for_one_worker(
    serving: FrontendProcess, worker: PlainWorker, tmp_path: Path, toy_model: Path
) -> None:
    """No worker can answer it."""
    several = BODY | {"n": 2, "max_tokens": 3}
    stalled = PlainWorker(tmp_path, "stalled", toy_model, "team_r2", PLAIN_SHUTDOWN_AFTER="0")
    try:
        stalled.start()
        serving.until(lambda report: sum(row.workers for row in report.accepted) == 2, START_SECONDS)
        worker.stop()
        serving.until(lambda report: not report.ready, START_SECONDS)
        before = retries(serving)
        status, text = serving.request("/v1/completions", several)
        repeated = retries(serving) - before
        assert status == 503, text
        assert 0 < repeated <= 2 * RETRIES, "HAProxy 2.6 counts a repetition twice"
        pinned = {WORKER_HEADER: stalled.instance_id}
        status, text = serving.request("/v1/completions", several, pinned)
        assert (status, retries(serving) - before) == (503, repeated), text
    finally:
        stalled.stop()


def test_a_request_that_does_not_fit_into_a_buffer_is_forwarded(serving: FrontendProcess) -> None:
    body = BODY | {"max_tokens": 2, "metadata": {"padding": "x" * (3 * RETRY_BYTES)}}
    assert serving.request("/v1/completions", body)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_ends_when_its_client_leaves(
    serving: FrontendProcess, worker: PlainWorker, stream: bool
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=20)
    with contextlib.closing(connection):
        send(connection, max_tokens=3000, stream=stream)
        time.sleep(1.0)
    wait(lambda: "cancelled" in worker.log(), 5.0)


def test_kept_connections_end_with_their_next_response_while_the_frontend_drains(
    serving: FrontendProcess,
) -> None:
    """A client that keeps its connection and always has a request is answered until the end of the drain."""
    kept = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=20)
    statuses: list[int] = []

    def complete() -> bool:
        """Whether the connection is kept."""
        send(kept, max_tokens=2)
        answer = kept.getresponse()
        answer.read()
        statuses.append(answer.status)
        return answer.getheader("connection") != "close"

    assert complete()
    assert complete()
    serving.process.send_signal(signal.SIGTERM)
    wait(lambda: serving.report().stage.name == Stage.STOPPING, 5.0)
    time.sleep(0.2)
    assert not complete(), "the connection that was idle"
    assert not complete(), "a new connection, from a node that does not know the shutdown yet"
    assert statuses == [200] * 4
    assert serving.process.wait(20) == 0
    with pytest.raises(ConnectionRefusedError):
        complete()


def test_a_busy_frontend_answers_all_requests_on_kept_connections_during_a_drain(
    tmp_path: Path, toy_model: Path
) -> None:
    """It is never idle. Dynamo alone would answer the last requests with 503."""
    workers = PlainWorker(tmp_path, "worker", toy_model, "team_r1")
    frontend = FrontendProcess(tmp_path, HEALTH_CHECK, VLLMENDPOINT_DRAIN_SECONDS="12")
    answered, failed = [], []
    ending = threading.Event()

    def client() -> None:
        """Leaves for another frontend when its connection ends, as the Service would direct it."""
        connection = http.client.HTTPConnection("127.0.0.1", frontend.port, timeout=20)
        while True:
            try:
                send(connection, max_tokens=5)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                failed.append(repr(error))
                return
            (answered if answer.status == 200 else failed).append(answer.status)
            if ending.is_set() and answer.getheader("connection") == "close":
                return

    try:
        workers.start()
        frontend.start()
        frontend.until(lambda report: report.ready, START_SECONDS)
        clients = [threading.Thread(target=client, daemon=True) for _ in range(4)]
        for thread in clients:
            thread.start()
        time.sleep(1.0)
        frontend.process.send_signal(signal.SIGTERM)
        time.sleep(1.0)
        ending.set()
        for thread in clients:
            thread.join(20)
        assert frontend.process.wait(20) == 0
        assert not failed
        assert len(answered) > 20
    finally:
        frontend.stop()
        workers.stop()


def test_the_frontend_ends_if_haproxy_ends(serving: FrontendProcess) -> None:
    os.kill(haproxy(serving), signal.SIGKILL)
    assert serving.process.wait(10) == 1
    assert "HAProxy has ended with exit status -9" in serving.log()


def test_haproxy_ends_with_the_frontend(serving: FrontendProcess) -> None:
    child = haproxy(serving)
    serving.process.kill()
    serving.process.wait(10)
    wait(lambda: not Path(f"/proc/{child}").exists(), 5.0)


class Tls:
    """PEM files of an authority, a server at 127.0.0.1 and a client."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self.folder = folder
        self._authority.cert_pem.write_to_path(self.file("ca.crt"))
        for name in ("127.0.0.1", "client"):
            issued = self._authority.issue_cert(name)
            issued.private_key_pem.write_to_path(self.file(f"{name}.key"))
            for number, pem in enumerate(issued.cert_chain_pems):
                pem.write_to_path(self.file(f"{name}.crt"), append=number > 0)

    def file(self, name: str) -> str:
        return str(self.folder / name)

    def options(self, *, client_ca: bool) -> list[str]:
        server = ["--tls-cert-path", self.file("127.0.0.1.crt"), "--tls-key-path", self.file("127.0.0.1.key")]
        return [*server, *(["--tls-client-ca-cert-path", self.file("ca.crt")] if client_ca else [])]

    def status(self, port: int, *, source: str = "127.0.0.1", certificate: bool = False) -> int:
        context = ssl.create_default_context(cafile=self.file("ca.crt"))
        if certificate:
            context.load_cert_chain(self.file("client.crt"), self.file("client.key"))
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=20, context=context, source_address=(source, 0)
        )
        with contextlib.closing(connection):
            connection.request("GET", "/v1/models")
            return connection.getresponse().status


@pytest.mark.parametrize("client_ca", [False, True])
def test_dynamos_tls_options_apply_to_haproxy(tmp_path: Path, toy_model: Path, client_ca: bool) -> None:
    tls = Tls(tmp_path)
    worker = PlainWorker(tmp_path, "worker", toy_model, "team_r1")
    frontend = FrontendProcess(tmp_path, HEALTH_CHECK, tls.options(client_ca=client_ca))
    try:
        worker.start()
        frontend.start()
        frontend.until(lambda report: report.ready, START_SECONDS)
        assert tls.status(frontend.port, source="127.0.0.2") == (403 if client_ca else 200)
        assert tls.status(frontend.port, source="127.0.0.2", certificate=True) == 200
        plain = http.client.HTTPConnection("127.0.0.1", frontend.port, timeout=20)
        with contextlib.closing(plain):
            plain.request("GET", "/v1/models")
            with pytest.raises((http.client.HTTPException, OSError)):
                plain.getresponse()
    finally:
        frontend.stop()
        worker.stop()
