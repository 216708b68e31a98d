"""The report port over a real socket: routes, the watch stream, and clients that misbehave."""

import asyncio
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any

import pytest

from vllmendpoint_api import ConfigurationReport, Stage, Verdict, VerdictReport, WorkerReport
from vllmendpoint_worker.errors import ProbeUnavailableError
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.serving import report_server
from vllmendpoint_worker.serving.report_server import ReportServer
from vllmendpoint_worker.serving.state import WorkerState

pytestmark = pytest.mark.timeout(30)

CHUNKED = b"POST /probe HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


class ManualClock(Clock):
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def state(clock: ManualClock) -> WorkerState:
    return WorkerState(worker_version="1.2.3", pod_uid="uid", clock=clock)


@pytest.fixture
def server(state: WorkerState) -> Iterator[ReportServer]:
    server = ReportServer(state, "127.0.0.1", 0)
    server.start()
    yield server
    server.stop()


def ask(server: ReportServer, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()


def raw(server: ReportServer, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(data)
        return connection.recv(65536)


def test_a_new_worker_reports_that_it_starts(server: ReportServer) -> None:
    status, body = ask(server, "/status")
    report = WorkerReport.model_validate_json(body)
    assert status == 200
    assert (report.worker_version, report.pod_uid, report.started, report.ready) == (
        "1.2.3",
        "uid",
        False,
        False,
    )
    assert (report.stage.name, report.verdict.state) == (Stage.IMPORTING, Verdict.STARTING)
    assert ask(server, "/live")[0] == 200
    assert ask(server, "/ready") == (503, b"the worker is starting\n")
    assert ask(server, "/started")[0] == 503
    assert ask(server, "/probe", "POST")[0] == 503


def test_ready_and_started_follow_the_worker_state(server: ReportServer, state: WorkerState) -> None:
    state.update(ready=True, started=True)
    assert ask(server, "/ready")[0] == 200
    assert ask(server, "/started")[0] == 200
    state.update(ready=False, not_ready_reason="the verdict is Stalled")
    assert ask(server, "/ready") == (503, b"the verdict is Stalled\n")


def test_post_probe_answers_the_outcome(server: ReportServer) -> None:
    def probe() -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        future.set_result({"outcome": "Complete"})
        return future

    server.probe = probe
    assert ask(server, "/probe", "POST", b"{}") == (200, b'{"outcome": "Complete"}')

    def off() -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        future.set_exception(ProbeUnavailableError("probing is off"))
        return future

    server.probe = off
    assert ask(server, "/probe", "POST") == (503, b"probing is off\n")


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/nothing", "GET", 404), ("/status", "POST", 405), ("/probe", "GET", 405), ("/metrics", "GET", 200)],
)
def test_other_routes_and_methods_are_rejected(
    server: ReportServer, path: str, method: str, status: int
) -> None:
    assert ask(server, path, method)[0] == status


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET /status HTTP/1.1\r\n\r\n", 400),
        (b"GET status HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET //[ HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /status HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /status HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n", 413),
        (CHUNKED + b"1\r\na\r\n0\r\n\r\n", 503),
        (CHUNKED + b"1388\r\n" + b"a" * 4999, 413),
        (b"GET /" + b"a" * 20_000, 431),
    ],
)
def test_a_bad_request_is_rejected_and_the_server_goes_on(
    server: ReportServer, data: bytes, status: int
) -> None:
    assert raw(server, data).startswith(f"HTTP/1.1 {status} ".encode())
    assert ask(server, "/live")[0] == 200


def test_a_client_that_sends_no_request_is_disconnected(
    server: ReportServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_server, "REQUEST_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"GET /sta")
        assert connection.recv(100) == b""


def test_the_number_of_clients_is_bounded(server: ReportServer) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(report_server.MAX_CLIENTS):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
        time.sleep(0.3)
        extra = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert extra.recv(1) == b""
        assert (
            time.monotonic() - began < 4.0
        )  # immediately, not after the timeout of a client without a request
    deadline = time.monotonic() + 10
    while not live(server):  # the server has not noticed the disconnects yet
        assert time.monotonic() < deadline


def test_one_address_with_all_places_does_not_exclude_another(server: ReportServer) -> None:
    """As the kubelet's probes, while a pod holds as many connections as it can."""
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(contextlib.closing(Watch(server)))
        for _ in range(2 * report_server.MAX_CLIENTS):
            stack.enter_context(connect_from("127.0.0.2", server))
        time.sleep(0.3)
        for path in ("/live", "/ready", "/started") * 3:
            assert ask(server, path)[0] in (200, 503)
        server._state.update(model_type="changed")  # type: ignore[attr-defined]
        assert stream.line().worker_version
        assert stream.line().model_type == "changed"


def test_a_new_address_replaces_the_oldest_client_of_the_largest(server: ReportServer) -> None:
    with contextlib.ExitStack() as stack:
        first, *others = (
            stack.enter_context(connect_from("127.0.0.2", server)) for _ in range(report_server.MAX_CLIENTS)
        )
        time.sleep(0.3)
        held = stack.enter_context(contextlib.closing(Watch(server)))
        assert held.line().worker_version
        assert first.recv(1) == b""
        others[-1].sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert others[-1].recv(20).startswith(b"HTTP/1.1 200")


def connect_from(address: str, server: ReportServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5, source_address=(address, 0))


def live(server: ReportServer) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(server, "/live")[0] == 200
    return False


class Watch:
    def __init__(self, server: ReportServer) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=8)
        self._socket.sendall(b"GET /status?watch=true HTTP/1.1\r\nHost: x\r\n\r\n")
        self._file = self._socket.makefile("rb")
        while self._file.readline().strip():
            pass

    def line(self) -> WorkerReport:
        return WorkerReport.model_validate(json.loads(self._file.readline()))

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def test_watch_sends_the_report_immediately_at_every_change_and_as_a_heartbeat(
    server: ReportServer, state: WorkerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_server, "HEARTBEAT_SECONDS", 3.0)
    watch = Watch(server)
    assert watch.line().stage.name == Stage.IMPORTING
    began = time.monotonic()
    state.enter_stage(Stage.CONFIGURING)
    assert watch.line().stage.name == Stage.CONFIGURING
    state.update(configuration=ConfigurationReport(settings_hash="new"))
    assert watch.line().configuration.settings_hash == "new"
    assert time.monotonic() - began < 2.9
    assert watch.line().configuration.settings_hash == "new"
    assert time.monotonic() - began > 2.9
    watch.close()


def test_a_new_proof_of_life_alone_sends_no_line(
    server: ReportServer, state: WorkerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_server, "HEARTBEAT_SECONDS", 1.0)
    watch = Watch(server)
    watch.line()
    began = time.monotonic()
    verdict = state.snapshot.verdict
    for _ in range(20):
        state.update(verdict=verdict.model_copy(update={"last_proof_of_life": datetime.now(UTC)}))
    assert watch.line().verdict.last_proof_of_life is not None
    assert time.monotonic() - began > 0.5  # no line before the heartbeat
    watch.close()


def test_changes_between_two_lines_are_sent_as_one_line(server: ReportServer, state: WorkerState) -> None:
    watch = Watch(server)
    watch.line()
    for number in range(200):
        state.update(configuration=ConfigurationReport(settings_hash=str(number)))
    lines = 0
    while watch.line().configuration.settings_hash != "199":
        lines += 1
    assert lines < 100
    watch.close()


def test_a_main_loop_without_heartbeats_is_reported_as_stalled(
    server: ReportServer, state: WorkerState, clock: ManualClock
) -> None:
    blocked: list[float] = []
    server.on_blocked = blocked.append
    state.update(
        ready=True,
        verdict=VerdictReport(state=Verdict.GENERATING, since=datetime.now(UTC)),
    )
    state.heartbeat()
    watch = Watch(server)
    assert watch.line().ready
    clock.now += 7.9
    assert state.report().ready
    clock.now += 0.2
    line = watch.line()
    assert (line.ready, line.verdict.state, line.verdict.reason) == (False, Verdict.STALLED, "EngineStalled")
    assert "event loop" in line.verdict.message
    assert ask(server, "/ready")[0] == 503
    assert ask(server, "/live")[0] == 200
    while not blocked:
        time.sleep(0.05)
    state.heartbeat()
    assert watch.line().verdict.state == Verdict.GENERATING
    state.stop_heartbeat()
    clock.now += 100.0
    assert state.report().ready
    watch.close()


def test_a_main_loop_that_has_sent_no_heartbeat_is_not_blocked(
    state: WorkerState, clock: ManualClock
) -> None:
    clock.now += 1000.0
    assert state.blocked_for() == 0.0


def test_a_port_in_use_is_an_error(server: ReportServer, state: WorkerState) -> None:
    second = ReportServer(state, "127.0.0.1", server.port)
    with pytest.raises(OSError, match="in use"):
        second.start()


async def test_stop_ends_watchers(state: WorkerState) -> None:
    server = ReportServer(state, "127.0.0.1", 0)
    server.start()
    watch = await asyncio.to_thread(Watch, server)
    await asyncio.to_thread(watch.line)
    await asyncio.to_thread(server.stop)
    assert not server._thread.is_alive()
    state.enter_stage(Stage.STOPPING)
    watch.close()
