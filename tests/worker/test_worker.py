"""The lifecycle of one worker: start, serving, configuration changes, stalls, SIGTERM.

The tests share one process and run in the order of the file.
"""

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from vllmendpoint_api import (
    ConfigurationState,
    Level,
    Mode,
    ModelType,
    Outcome,
    PayloadSource,
    Stage,
    Verdict,
    WorkerReport,
    payload_for,
)

from .conftest import (
    PATIENT,
    PERIOD,
    QUICK,
    START_SECONDS,
    TIMEOUT,
    Load,
    WorkerProcess,
    stopped,
    wait,
    wait_until_gone,
)
from .report_watch import ReportWatch

pytestmark = pytest.mark.timeout(300)
HEALTH = ["/ping", "/prod/ping", "/ping/", "/prod/ping//", "/%70ing", "/health", "/prod/health", "/health/"]
"""Paths at which vLLM reports its health, with and without the root path."""
CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
COMPLETION = {"model": "toy", "prompt": "hello", "max_tokens": 4}


def probes(worker: WorkerProcess) -> float:
    """Number of completed probes."""
    lines = worker.request("report", "/metrics")[1].decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllmendpoint_probes_total{")
    )


def slack() -> float:
    """Seconds that are added to the specified bounds: 0.7, or more if the machine is busy."""
    return 0.7 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.fixture(scope="module")
def worker(make_worker: Callable[..., WorkerProcess]) -> WorkerProcess:
    worker = make_worker({"POD_UID": "the-uid", "SM_VLLM_ROOT_PATH": "/prod"})
    worker.settings(PATIENT)
    worker.start()
    return worker


@pytest.fixture
def watch(worker: WorkerProcess) -> Iterator[ReportWatch]:
    with ReportWatch(worker) as watch:
        yield watch


def test_the_report_server_responds_before_the_heavy_imports(worker: WorkerProcess) -> None:
    worker.until(lambda report: not report.started, 30.0)
    # 0.6 s on an idle machine; the heavy imports take 10 s and more.
    assert time.monotonic() - worker.started_at < 8.0
    report = worker.report()
    assert report.stage.name in (Stage.IMPORTING, Stage.CONFIGURING)
    assert (report.pod_uid, report.ready, report.verdict.state) == ("the-uid", False, Verdict.STARTING)
    assert worker.status("report", "/live") == 200
    assert worker.status("report", "/ready") == 503
    assert worker.status("report", "/started") == 503


def test_the_worker_reports_its_stages_and_is_ready_after_a_probe(worker: WorkerProcess) -> None:
    with ReportWatch(worker) as watch:
        slowest = 0.0
        ready = False
        while not ready:
            began = time.monotonic()
            assert began - worker.started_at < START_SECONDS
            ready = worker.report().ready
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.1)
        wait(lambda: Stage.SERVING in [report.stage.name for _, report in watch.lines])
    stages = [report.stage.name for _, report in watch.lines]
    for stage in (
        Stage.STARTING_ENGINE,
        Stage.LOADING_WEIGHTS,
        Stage.ALLOCATING_CACHE,
        Stage.WARMING,
        Stage.SERVING,
    ):
        assert stage in stages, stages
    assert all(report.last_probe for _, report in watch.lines if report.ready)
    # On the main thread, the report server would block for tens of seconds while a model loads.
    assert slowest < 10.0
    report = worker.report()
    assert report.verdict.state == Verdict.GENERATING
    assert report.model_type == ModelType.CHAT
    assert report.health_check is not None
    assert report.health_check.source == PayloadSource.MODEL_DEFAULT
    assert report.health_check.payload == payload_for(Level.MINIMAL, ModelType.CHAT)
    assert worker.status("report", "/started") == 200


def test_the_worker_serves_the_openai_and_the_sagemaker_routes(worker: WorkerProcess) -> None:
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", COMPLETION),
        ("/invocations", CHAT),
    ):
        status, answer = worker.request("http", path, body)
        assert status == 200, answer
        assert json.loads(answer)["usage"]["completion_tokens"] > 0
    assert worker.status("http", "/ping") == 200
    assert worker.request("http", "/ping", method="POST")[0] == 200
    assert worker.status("http", "/v1/models") == 200
    assert worker.request("http", "/invocations", {"nonsense": 1})[0] == 400
    for method, path, body in (
        ("POST", "/adapters", {"name": "a", "src": "/a"}),
        ("DELETE", "/adapters/a", None),
    ):
        status, answer = worker.request("http", path, body, method=method)
        assert (status, "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in answer.decode()) == (404, True)


def test_dynamos_health_route_follows_the_verdict_and_its_control_routes_are_removed(
    worker: WorkerProcess,
) -> None:
    deadline = time.monotonic() + 10
    while worker.status("system", "/health") != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert worker.request("system", "/engine/control/sleep", {})[0] == 404


def test_the_active_payload_is_logged_once_with_level_and_source(worker: WorkerProcess) -> None:
    lines = [line for line in worker.log_lines() if "Health check payload" in line]
    assert len(lines) == 1
    assert "source=ModelDefault level=Minimal" in lines[0]


def test_a_probe_on_request_is_counted_in_the_metrics(worker: WorkerProcess) -> None:
    status, body = worker.request("report", "/probe", {}, method="POST")
    assert status == 200
    assert json.loads(body)["outcome"] == Outcome.COMPLETE
    ours, vllms = b'vllmendpoint_probes_total{outcome="Complete"}', b"vllm:num_requests_waiting"
    assert ours in worker.request("report", "/metrics")[1]
    whole = worker.request("http", "/metrics")[1]
    assert ours in whole
    assert vllms in whole
    one = worker.request("http", "/metrics?name[]=vllmendpoint_probes_total")[1]
    assert ours in one
    assert vllms not in one


@pytest.mark.parametrize(
    ("settings", "level", "payload"),
    [
        ({"level": "Standard"}, Level.STANDARD, payload_for(Level.STANDARD, ModelType.CHAT)),
        ({"level": "Comprehensive"}, Level.COMPREHENSIVE, payload_for(Level.COMPREHENSIVE, ModelType.CHAT)),
        (
            {"payload": {"prompt": "What is 1+1?", "max_tokens": 2, "temperature": 0.0, "seed": 42}},
            None,
            {"prompt": "What is 1+1?", "max_tokens": 2, "temperature": 0.0, "seed": 42},
        ),
    ],
)
def test_a_changed_health_check_is_active_within_two_seconds(
    worker: WorkerProcess,
    watch: ReportWatch,
    settings: dict[str, object],
    level: Level | None,
    payload: dict[str, object],
) -> None:
    since = worker.report().time
    digest = worker.settings(PATIENT | settings)
    took = worker.until(lambda report: report.configuration.settings_hash == digest, 30.0)
    assert took < 2.0 + slack()
    report = worker.report()
    assert report.health_check is not None
    assert (report.health_check.source, report.health_check.level) == (PayloadSource.SPEC, level)
    assert report.health_check.payload == payload

    def probed(report: WorkerReport) -> bool:
        last = report.last_probe
        return last is not None and (last.outcome, last.tokens, last.time > since) == (
            Outcome.COMPLETE,
            payload.get("max_tokens"),
            True,
        )

    worker.until(probed, PERIOD + 30.0)
    wait(lambda: any(line.configuration.settings_hash == digest for _, line in watch.lines))


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"prompt": "x", "max_tokenz": 1}, "Rename it to max_tokens, or remove it."),
        ({"input": "x"}, "is not accepted by a generative model"),
        ({"prompt": "x", "temperature": -1.0}, "healthCheck.payload.temperature"),
        ({"prompt": "x " * 3000}, "maximum context length is 1024 tokens"),
        (
            {"messages": [{"role": "user", "content": "x"}], "tool_choice": "auto", "tools": []},
            "healthCheck.payload",
        ),
    ],
)
def test_a_rejected_change_keeps_the_last_valid_health_check(
    worker: WorkerProcess, payload: dict[str, object], expected: str
) -> None:
    before = worker.report().health_check
    digest = worker.settings(PATIENT | {"payload": payload})
    worker.until(lambda report: report.configuration.settings_hash == digest, 20.0)
    report = worker.report()
    assert report.configuration.state == ConfigurationState.REJECTED
    problem = report.configuration.problems[0]
    assert (problem.reason, problem.source) == ("InvalidPayload", "Spec")
    assert expected in problem.message, problem.message
    assert report.health_check == before
    assert report.ready
    corrected = worker.settings(PATIENT)
    worker.until(
        lambda report: (
            report.configuration.settings_hash == corrected
            and report.configuration.state == ConfigurationState.RESOLVED
        ),
        20.0,
    )


def test_a_worker_with_disabled_probing_sends_no_probes_and_stays_ready(worker: WorkerProcess) -> None:
    digest = worker.settings(QUICK | {"mode": "Disabled"})
    worker.until(
        lambda report: (
            report.configuration.settings_hash == digest and report.verdict.state == Verdict.DISABLED
        ),
        20.0,
    )
    time.sleep(TIMEOUT + 1.0)  # for a probe in progress
    report = worker.report()
    assert report.ready
    last = report.last_probe
    time.sleep(PERIOD + 1.0)
    assert worker.report().last_probe == last
    assert worker.request("report", "/probe", {}, method="POST")[0] == 503
    digest = worker.settings(PATIENT | {"mode": "Enforce"})
    worker.until(
        lambda report: report.verdict.state == Verdict.GENERATING and report.last_probe != last, 20.0
    )


def assert_stalls_and_recovers(worker: WorkerProcess, bound: float) -> None:
    """``bound``: maximum seconds from the freeze to the verdict, without slack."""
    with stopped(worker.engine_core()):
        # The specified bound, and slack for a machine with long engine steps: 3 of them must pass.
        worker.until(lambda report: report.verdict.state == Verdict.STALLED, bound + slack() + 5.0)
        report = worker.report()
        assert (report.ready, report.verdict.reason) == (False, "EngineStalled")
        assert report.last_probe is not None
        assert report.last_probe.outcome == Outcome.TIMEOUT
        assert worker.status("report", "/ready") == 503
        assert worker.status("report", "/live") == 200
        assert {path: worker.status("http", path) for path in HEALTH} == dict.fromkeys(HEALTH, 503)
        assert worker.request("http", "/prod/ping", method="POST")[0] == 503
        assert worker.request("http", "/prod/health", method="HEAD")[0] >= 400
        assert worker.status("http", "/prod/v1/models") == 200, "this route is no health check"
        deadline = time.monotonic() + 6
        while worker.status("system", "/health") != 503:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    worker.until(lambda report: report.ready, TIMEOUT + 1.0 + 10.0)
    assert {path: worker.status("http", path) for path in HEALTH} == dict.fromkeys(HEALTH, 200)


def test_a_frozen_idle_engine_is_stalled_and_recovers_without_a_restart(worker: WorkerProcess) -> None:
    worker.apply(QUICK)
    pid = worker.engine_core()
    assert_stalls_and_recovers(worker, PERIOD + TIMEOUT + 1.0)
    assert worker.engine_core() == pid


def test_a_frozen_engine_is_stalled_sooner_under_traffic(worker: WorkerProcess) -> None:
    worker.apply(QUICK | {"periodSeconds": 60})
    try:
        body = {"model": "toy", "prompt": "hello", "max_tokens": 64, "ignore_eos": True}
        with Load(worker, 3, body) as load:
            time.sleep(3.0)
            wait(lambda: load.answers > 0)
            assert_stalls_and_recovers(worker, TIMEOUT + 1.0)
    finally:
        worker.settings(PATIENT)


def test_successful_user_requests_replace_probes(worker: WorkerProcess) -> None:
    worker.until(lambda report: report.health_check and report.health_check.period_seconds == PERIOD, 20.0)
    time.sleep(1.0)
    with Load(worker, 1, COMPLETION):
        time.sleep(0.5)
        before = probes(worker)
        time.sleep(4.0 * PERIOD)
        # It would be four without users. A pause of half a second on a busy machine causes a probe.
        assert probes(worker) - before <= 2
        report = worker.report()
        assert report.verdict.last_proof_of_life is not None
        assert (report.time - report.verdict.last_proof_of_life).total_seconds() < PERIOD


@pytest.mark.parametrize(
    ("clients", "body"),
    [
        pytest.param(32, {"max_tokens": 400, "prompt": "hello", "ignore_eos": True}, id="decode"),
        pytest.param(24, {"max_tokens": 1, "prompt": "the sky is blue " * 120}, id="prefill"),
    ],
)
def test_a_saturated_engine_is_busy_not_stalled(
    worker: WorkerProcess, clients: int, body: dict[str, object], request: pytest.FixtureRequest
) -> None:
    worker.apply(QUICK | {"timeoutSeconds": 3})
    seen: set[Verdict | str] = set()
    outcomes: set[str] = set()
    with Load(worker, clients, body | {"model": "toy"}):
        time.sleep(1.0)
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:
            outcomes.add(json.loads(worker.request("report", "/probe", {}, method="POST")[1])["outcome"])
            report = worker.report()
            seen.add(report.verdict.state)
            assert report.ready, report.verdict
            assert worker.status("http", "/ping") == 200
    assert seen <= {Verdict.GENERATING, Verdict.BUSY}
    if "decode" in request.node.name:  # 8 of 32 requests run, so a probe waits for longer than its timeout
        assert Outcome.TIMEOUT in outcomes
        assert Verdict.BUSY in seen
    worker.settings(PATIENT)


def test_the_watch_stream_sends_heartbeats(worker: WorkerProcess, watch: ReportWatch) -> None:
    worker.apply(PATIENT | {"periodSeconds": 60})
    time.sleep(1.5)
    before = len(watch.lines)
    wait(lambda: len(watch.lines) > before, 15.0)
    times = [line.time for _, line in watch.lines]
    assert times == sorted(times)


def test_sigterm_drains_and_exits_with_zero_and_no_orphans(worker: WorkerProcess) -> None:
    children = worker.children()
    assert children
    answers: list[tuple[int, bytes]] = []
    body = {"model": "toy", "prompt": "hello", "max_tokens": 200, "ignore_eos": True}
    user = threading.Thread(target=lambda: answers.append(worker.request("http", "/v1/completions", body)))
    user.start()
    time.sleep(0.3)
    os.kill(worker.pid, signal.SIGTERM)
    with contextlib.suppress(OSError, http.client.HTTPException):  # the worker may exit meanwhile
        while worker.report().stage.name != Stage.STOPPING:
            time.sleep(0.02)
        assert worker.status("report", "/ready") == 503
    assert worker.exit_code(30.0) == 0
    user.join(10)
    assert [status for status, _ in answers] == [200]
    wait_until_gone(children, 5.0)
    assert "Traceback" not in "".join(worker.log_lines())


def test_the_modes_have_the_names_of_the_crd() -> None:
    assert {mode.value for mode in Mode} == {"Enforce", "Observe", "Disabled"}
