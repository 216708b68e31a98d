"""Our frontend with Dynamo's real HTTP server and router, in front of Dynamo workers without an engine."""

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllmendpoint_api import FrontendReport, RouteState, Stage

from .conftest import stopped, wait
from .frontend_process import FrontendProcess, PlainWorker
from .plain_worker import MODEL

HEALTH_CHECK = {"periodSeconds": 1, "timeoutSeconds": 1}
START_SECONDS = 30.0


class Set:
    """A frontend, and workers by name: two that it accepts, one with another model card, and one of another
    endpoint.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        self.workers = {
            "a": PlainWorker(folder, "a", model, "team_r1"),
            "b": PlainWorker(folder, "b", model, "team_r2"),
            "card": PlainWorker(folder, "card", model, "team_r1", block_size=32),
            "foreign": PlainWorker(folder, "foreign", model, "other"),
        }
        self.frontend = FrontendProcess(folder, HEALTH_CHECK)
        self.a, self.b, self.card = (self.workers[name] for name in ("a", "b", "card"))

    def stop(self) -> None:
        for process in (self.frontend, *self.workers.values()):
            process.stop()

    def states(self, report: FrontendReport) -> dict[str, RouteState]:
        """State per name of a worker."""
        named = {worker.instance_id: name for name, worker in self.workers.items()}
        return {named[route.instance_id]: RouteState(route.state) for route in report.routes}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Iterator[Set]:
    running = Set(tmp_path_factory.mktemp("frontend"), toy_model)
    try:
        running.frontend.start()
        running.frontend.until(lambda report: report.stage.name == Stage.SERVING, START_SECONDS)
        running.a.start()
        running.workers["foreign"].start()
        wait(lambda: "Registered base model" in running.a.log(), START_SECONDS)
        took = running.frontend.until(lambda report: report.ready, START_SECONDS)
        print(f"registration of the first worker -> ready in {took:.2f} s")
        running.b.start()
        running.card.start()
        wait(lambda: running.card.instance_id and running.b.instance_id, START_SECONDS)
        yield running
    finally:
        running.stop()


def test_each_worker_is_probed_and_a_rejected_model_card_is_not_accepted(running: Set) -> None:
    expected = {"a": RouteState.ANSWERED, "b": RouteState.ANSWERED, "card": RouteState.NOT_ACCEPTED}
    running.frontend.until(lambda report: running.states(report) == expected, 30.0)
    report = running.frontend.report()
    assert report.ready
    assert report.models == (MODEL,)
    assert {(row.namespace, row.workers) for row in report.accepted} == {("team_r1", 1), ("team_r2", 1)}
    assert "400" in running.frontend.route(running.card.instance_id).message


def test_all_routes_are_probed_on_request(running: Set) -> None:
    before = running.frontend.route(running.a.instance_id).last_answer
    status, _ = running.frontend.get("/probe", method="POST")
    after = running.frontend.route(running.a.instance_id).last_answer
    assert status == 200
    assert before is not None
    assert after is not None
    assert after > before


def test_a_frozen_worker_is_failing_and_recovers(running: Set) -> None:
    frontend, frozen = running.frontend, running.b
    frontend.until(lambda report: running.states(report)["b"] is RouteState.ANSWERED, 30.0)
    with stopped(frozen.pid):
        took = frontend.until(lambda report: running.states(report)["b"] is RouteState.FAILING, 20.0)
        print(f"SIGSTOP -> Failing in {took:.1f} s")
        assert "has not responded" in frontend.route(frozen.instance_id).message
        assert frontend.report().ready, "the other worker still answers"
    took = frontend.until(lambda report: running.states(report)["b"] is RouteState.ANSWERED, 20.0)
    print(f"SIGCONT -> Answered in {took:.1f} s")


def test_the_log_has_no_line_per_poll(running: Set) -> None:
    assert "http response sent status=200" not in running.frontend.log()


def test_it_starts_quickly_with_little_memory(tmp_path: Path) -> None:
    """The bounds are three times what a quiet machine needs."""
    frontend = FrontendProcess(tmp_path, HEALTH_CHECK)
    try:
        frontend.start()
        frontend.until(lambda report: True, START_SECONDS)
        report_port = time.monotonic() - frontend.started_at
        frontend.until(lambda report: report.stage.name == Stage.SERVING, START_SECONDS)
        serving = time.monotonic() - frontend.started_at
        memory = frontend.memory_mib()
        print(f"report port after {report_port:.2f} s, serving after {serving:.2f} s, {memory} MiB")
        assert serving < 10.0
        assert memory < 150
        status, text = frontend.get("/ready")
        assert (status, text) == (503, b"The frontend has not discovered a worker.\n")
        maps = Path(f"/proc/{frontend.pid}/maps").read_text()
        assert "libtorch" not in maps
        frontend.process.send_signal(signal.SIGTERM)
        wait(lambda: frontend.report().stage.name == Stage.STOPPING, 4.0)
        frontend.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert frontend.process.wait(20) == 0
        assert time.monotonic() - began < 4.0, "the second signal ends the drain"
    finally:
        frontend.stop()


def test_a_long_stream_is_completed_after_sigterm(tmp_path: Path, toy_model: Path) -> None:
    worker = PlainWorker(tmp_path, "worker", toy_model, "team_r1")
    frontend = FrontendProcess(tmp_path, HEALTH_CHECK)
    answers: list[tuple[int, str]] = []

    def stream() -> None:
        answers.append(frontend.complete(model=MODEL, max_tokens=500, stream=True))

    client = threading.Thread(target=stream, daemon=True)
    try:
        worker.start()
        frontend.start()
        frontend.until(lambda report: report.ready, START_SECONDS)
        client.start()
        time.sleep(0.5)
        frontend.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        wait(lambda: frontend.get("/ready")[0] == 503, 5.0)
        unready = time.monotonic() - began
        assert frontend.report().stage.name == Stage.STOPPING
        time.sleep(2.0)
        assert frontend.complete(model=MODEL, max_tokens=2)[0] == 200, "nodes may still route to it"
        client.join(60)
        (answer,) = answers
        assert answer[0] == 200
        assert answer[1].count("data: {") == 500
        assert answer[1].rstrip().endswith("data: [DONE]")
        streamed = time.monotonic() - began
        assert frontend.process.wait(20) == 0
        ended = time.monotonic() - began
        print(f"SIGTERM -> 503 in {unready:.2f} s, stream end {streamed:.1f} s, exit {ended:.1f} s")
        assert ended - streamed < 5.0
    finally:
        frontend.stop()
        worker.stop()


def test_a_chat_template_that_rejects_the_probe_does_not_hide_the_worker(
    tmp_path: Path, toy_model: Path
) -> None:
    model = shutil.copytree(toy_model, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ raise_exception('a system message is required') }}")
    worker = PlainWorker(tmp_path, "worker", model, "team_r1")
    frontend = FrontendProcess(tmp_path, HEALTH_CHECK)
    try:
        worker.start()
        frontend.start()
        frontend.until(lambda report: report.ready, START_SECONDS)
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        assert frontend.request("/v1/chat/completions", chat)[0] == 400
    finally:
        frontend.stop()
        worker.stop()


def test_the_process_exits_if_the_http_port_is_taken(tmp_path: Path) -> None:
    first = FrontendProcess(tmp_path, HEALTH_CHECK)
    second_folder = tmp_path / "second"
    second_folder.mkdir()
    second = FrontendProcess(second_folder, HEALTH_CHECK, ["--http-port", str(first.port)])
    try:
        first.start()
        first.until(lambda report: report.stage.name == Stage.SERVING, START_SECONDS)
        second.start()
        assert second.process.wait(START_SECONDS) not in (0, None)
    finally:
        first.stop()
        second.stop()
