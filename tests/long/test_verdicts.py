"""The verdict for an engine that is frozen, paused, killed, out of memory, or only busy.

The tests of one worker share its process and run in the order of the file.
"""

import contextlib
import http.client
import importlib.util
import json
import os
import random
import re
import resource
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.worker.conftest import SEPARATE, Load, WorkerProcess, alive, descendants, stopped, wait
from tests.worker.report_watch import ReportWatch
from vllmendpoint_api import HandlerSource, Outcome, Verdict, script_digest

from .user_load import Users, verdicts

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
PERIOD, TIMEOUT, RUNS = 4, 2, 4
CHECK = {"periodSeconds": PERIOD, "timeoutSeconds": TIMEOUT, "restartAfterSeconds": 0}
LONG = ["--max-model-len", "8192", *SEPARATE]
CHAT_ARGUMENTS = [*LONG, "--kv-cache-memory-bytes", "1610612736"]  # eight requests of full length
HEALTHY = {Verdict.GENERATING, Verdict.BUSY}
TRAFFIC = {"model": "toy", "prompt": "hello", "max_tokens": 64, "ignore_eos": True}
SLACK = 1.0
"""The median of the detection times may exceed the specified bound by this many seconds."""
WORST_FACTOR = 3
"""The worst time may be this multiple of the bound, because the machine is shared."""
PAUSING = """
from vllmendpoint_worker.probing.progress import PROGRESS

async def custom_sagemaker_invocation_handler(request):
    engine = request.app.state.engine_client
    mode = request.query_params["mode"]
    if mode == "forget":
        PROGRESS.forget_steps()
    elif mode == "resume":
        await engine.resume_generation()
    else:
        await engine.pause_generation(mode=mode)
    return {"paused": await engine.is_paused()}
"""


@pytest.fixture(scope="module")
def worker(make_worker: Callable[..., WorkerProcess]) -> WorkerProcess:
    worker = make_worker(arguments=LONG)
    (worker.settings_file.parent / "model.py").write_text(PAUSING)
    worker.settings(CHECK, handlers={"scriptDigest": script_digest(PAUSING.encode())})
    worker.start()
    worker.until_ready()
    assert worker.report().handlers.invocations.source == HandlerSource.FUNCTION
    return worker


def pid_of(worker: WorkerProcess, process: str) -> int:
    """PID of one of vLLM's processes, found by its process title."""
    for child in worker.children():
        if f"VLLM::{process}".encode() in Path(f"/proc/{child.pid}/cmdline").read_bytes():
            return child.pid
    raise AssertionError(f"no {process} among the children")


def traffic(worker: WorkerProcess, some: bool) -> AbstractContextManager[object]:
    return Load(worker, 3, TRAFFIC) if some else nullcontext()


def seconds_until_stalled(worker: WorkerProcess, began: float) -> float:
    """Seconds from ``began`` until the verdict is Stalled. Checks that every route reports it."""
    bound = WORST_FACTOR * (PERIOD + TIMEOUT + 1)
    worker.until(lambda report: report.verdict.state == Verdict.STALLED, bound)
    seconds = time.monotonic() - began
    report = worker.report()
    assert (report.ready, report.verdict.reason) == (False, "EngineStalled")
    assert worker.status("report", "/ready") == 503
    assert worker.status("report", "/live") == 200
    assert worker.status("http", "/ping") == 503
    wait(lambda: worker.status("system", "/health") == 503)
    return seconds


def set_mode(worker: WorkerProcess, mode: str) -> Any:
    """Send the mode to the handler of PAUSING; returns whether the engine is paused now."""
    status, body = worker.request("http", f"/invocations?mode={mode}", {})
    assert status == 200, body
    return json.loads(body)["paused"]


def seconds_until_recovered(worker: WorkerProcess) -> float:
    began = time.monotonic()
    worker.until(lambda report: report.ready and report.verdict.state == Verdict.GENERATING, 60.0)
    wait(lambda: worker.status("http", "/ping") == 200)
    return time.monotonic() - began


def forget_the_stall(worker: WorkerProcess) -> None:
    """Reset the step durations. For a minute, the worker counts a stall as a long engine step and allows for
    it, but the bound is that of the first stall."""
    set_mode(worker, "forget")


def assert_in_time(what: str, seconds: list[float], bound: float, recovered: list[float]) -> None:
    detected = ", ".join(f"{value:.2f}" for value in seconds)
    again = ", ".join(f"{value:.2f}" for value in recovered)
    print(
        f"\n{what}: detected after {detected} s (median {statistics.median(seconds):.2f}, "
        f"bound {bound} s); generating again after {again} s"
    )
    assert statistics.median(seconds) <= bound + SLACK
    assert max(seconds) < WORST_FACTOR * bound


@pytest.mark.parametrize("some", [False, True], ids=["idle", "traffic"])
@pytest.mark.parametrize("process", ["EngineCore", "Worker"])
def test_a_frozen_engine_is_stalled(worker: WorkerProcess, process: str, some: bool) -> None:
    pid = pid_of(worker, process)
    seconds, recovered = [], []
    for _ in range(RUNS):
        with traffic(worker, some):
            time.sleep(random.uniform(1.0, 1.0 + PERIOD))
            with stopped(pid) as began:
                seconds.append(seconds_until_stalled(worker, began))
            recovered.append(seconds_until_recovered(worker))
        forget_the_stall(worker)
    what = f"SIGSTOP of vLLM's {process}, {'traffic' if some else 'idle'}"
    assert_in_time(what, seconds, bound(some), recovered)
    assert pid_of(worker, process) == pid, "nothing was restarted"


@pytest.mark.parametrize("mode", ["abort", "keep"])
@pytest.mark.parametrize("some", [False, True], ids=["idle", "traffic"])
def test_an_engine_paused_through_its_client_is_stalled(worker: WorkerProcess, mode: str, some: bool) -> None:
    seconds, recovered = [], []
    for _ in range(2):
        with traffic(worker, some):
            time.sleep(random.uniform(1.0, 1.0 + PERIOD))
            began = time.monotonic()
            assert set_mode(worker, mode) is True
            try:
                seconds.append(seconds_until_stalled(worker, began))
            finally:
                assert set_mode(worker, "resume") is False
            recovered.append(seconds_until_recovered(worker))
        forget_the_stall(worker)
    assert_in_time(f"paused ({mode}), {'traffic' if some else 'idle'}", seconds, bound(some), recovered)


def test_upstreams_control_routes_return_404(worker: WorkerProcess) -> None:
    """Without authentication they would pause the engine, put it to sleep or change its weights."""
    spec = importlib.util.find_spec("dynamo")
    assert spec is not None
    folders = [Path(folder) / "vllm" for folder in spec.submodule_search_locations or ()]
    source = next(file for folder in folders if (file := folder / "worker_factory.py").exists()).read_text()
    routes = set(re.findall(r'register_engine_route\(\s*"([\w/]+)"', source))
    routes |= set(re.findall(r'"(\w+)": handler\.', source))
    assert {"control/sleep", "control/scale_elastic_ep", "pause_generation", "flush_cache"} <= routes
    for route in routes | {"load_lora", "unload_lora"}:
        assert worker.request("system", f"/engine/{route}", {})[0] == 404, route
    print(f"\n{len(routes) + 2} routes of upstream's /engine answer 404")
    assert worker.report().verdict.state == Verdict.GENERATING


def bound(some: bool) -> int:
    return TIMEOUT + 1 if some else PERIOD + TIMEOUT + 1


@pytest.fixture(scope="module")
def chat_worker(tmp_path_factory: pytest.TempPathFactory, chat_model: Path) -> Iterator[WorkerProcess]:
    """A real model, whose engine steps are longer than the toy model's."""
    worker = WorkerProcess(tmp_path_factory.mktemp("chat"), chat_model, arguments=CHAT_ARGUMENTS)
    try:
        worker.settings({})
        worker.start()
        worker.until_ready()
        yield worker
    finally:
        worker.stop()


@pytest.mark.parametrize(
    ("what", "crowd", "seconds"),
    [
        ("one request that decodes for minutes", [(1, {"prompt": "a", "max_tokens": 8000}, 600.0)], 120.0),
        (
            "a full batch of long requests, eight waiting",
            [(16, {"prompt": "a", "max_tokens": 2000}, 600.0)],
            60.0,
        ),
        ("long prompts at full batch", [(16, {"prompt": 8000, "max_tokens": 4}, 600.0)], 90.0),
    ],
    ids=["decode", "batch", "prefill"],
)
def test_a_busy_engine_is_generating_or_busy(
    chat_worker: WorkerProcess, what: str, crowd: list[tuple[int, dict[str, Any], float]], seconds: float
) -> None:
    assert_stays_healthy(chat_worker, what, crowd, seconds)


def test_200_simultaneous_users_cause_no_stalled_verdict(worker: WorkerProcess) -> None:
    crowd: list[tuple[int, dict[str, Any], float]] = [
        (150, {"prompt": "hello", "max_tokens": 32}, 600.0),
        (25, {"prompt": "a", "max_tokens": 600}, 600.0),
        (25, {"prompt": 4000, "max_tokens": 4}, 600.0),
    ]
    assert_stays_healthy(worker, "200 users", crowd, 60.0)


def assert_stays_healthy(
    worker: WorkerProcess, what: str, crowd: list[tuple[int, dict[str, Any], float]], seconds: float
) -> None:
    """Under load from ``crowd``, the worker is ready and Generating or Busy all the time, with frequent
    probes."""
    more = {"ignore_eos": True, "temperature": 1.0}
    since = len(worker.log())
    outcomes: Counter[str] = Counter()
    crowd = [(many, more | body, timeout) for many, body, timeout in crowd]
    with ReportWatch(worker) as watch, Users(worker, crowd) as users:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            status, body = worker.request("report", "/probe", {}, method="POST", seconds=60.0)
            assert status == 200, body
            outcomes[json.loads(body)["outcome"]] += 1
            assert worker.status("http", "/ping") == 200
            time.sleep(0.2)
        answered = dict(users.statuses)
        in_engine = users.waiting
    seen = verdicts(worker, since)
    print(
        f"\n{what}, {seconds:.0f} s: probes {dict(outcomes)}; verdicts {sorted(set(seen))}; "
        f"users' answers {answered}, {in_engine} still waiting; {len(watch.lines)} reports"
    )
    assert not watch.unready
    assert {report.verdict.state for _, report in watch.lines} <= HEALTHY
    assert set(seen) <= HEALTHY
    assert set(outcomes) <= {Outcome.COMPLETE, Outcome.TIMEOUT}
    assert set(answered) <= {200}
    assert in_engine, "the engine was not busy all the time"
    seconds_until_recovered(worker)


def kill(worker: WorkerProcess) -> None:
    os.kill(worker.engine_core(), signal.SIGKILL)


def exhaust_memory(worker: WorkerProcess) -> None:
    """Limit the engine to its current address space; then send a batch of long prompts, which needs more."""
    core = worker.engine_core()
    for pid in [core, *(child.pid for child in descendants(core))]:
        size = re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        assert size is not None
        limit = int(size[1]) * 1024
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
    body = {"model": "toy", "prompt": [*range(10, 1000)] * 8, "max_tokens": 1}

    def send() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            worker.request("http", "/v1/completions", body, seconds=30.0)

    for _ in range(8):
        threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize(
    ("fault", "some"),
    [(kill, False), (kill, True), (exhaust_memory, False)],
    ids=["killed-idle", "killed-traffic", "out-of-memory"],
)
def test_a_dead_engine_ends_its_worker_immediately(
    make_worker: Callable[..., WorkerProcess], fault: Callable[[WorkerProcess], None], some: bool
) -> None:
    worker = make_worker(arguments=LONG)
    worker.settings(CHECK | {"periodSeconds": 60})
    worker.start()
    worker.until_ready()
    children = worker.children()
    with ReportWatch(worker) as watch, traffic(worker, some):
        time.sleep(1.0 if some else 0.0)
        began = time.monotonic()
        fault(worker)
        code = worker.exit_code(60.0)
        ended = time.monotonic() - began
    wait(lambda: not any(alive(child) for child in children))
    last = [line for line in worker.log_lines() if " CRITICAL " in line]
    print(
        f"\n{fault.__name__}: exit {code} after {ended:.2f} s; the last line of the report: "
        f"{watch.lines[-1][1].verdict.state}, ready {watch.lines[-1][1].ready}; log: {last[-1:]}"
    )
    assert code != 0
    assert Verdict.DEAD in verdicts(worker)
    assert watch.lines[-1][1].verdict.state == Verdict.DEAD
    assert watch.lines[-1][1].verdict.reason == "EngineDead"
    assert "engine is dead" in last[-1]
