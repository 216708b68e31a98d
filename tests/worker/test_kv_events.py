"""Whether a frontend's router receives KV events: real frontends in front of workers without an engine."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vllmendpoint_api import FrontendReport, KVEventsState, RoutingMode, RoutingSpec
from vllmendpoint_operator.plan.pods.routing import router_env

from .frontend_process import PREFIX, FrontendProcess, Mocker, PlainWorker

pytestmark = pytest.mark.timeout(400)
HEALTH_CHECK = {"periodSeconds": 2, "timeoutSeconds": 2}
KV_ENV = router_env(RoutingSpec(mode=RoutingMode.KV))

MakeWorker = Callable[..., PlainWorker]
MakeFrontend = Callable[..., FrontendProcess]


@pytest.fixture
def start_worker(tmp_path: Path, toy_model: Path) -> Iterator[MakeWorker]:
    workers: list[PlainWorker] = []

    def start(name: str, events: str, block_size: int = 16) -> PlainWorker:
        worker = PlainWorker(
            tmp_path, name, toy_model, f"{PREFIX}r1", block_size=block_size, PLAIN_KV_EVENTS=events
        )
        workers.append(worker)
        worker.start()
        return worker

    try:
        yield start
    finally:
        for worker in workers:
            worker.stop()


@pytest.fixture
def start_frontend(tmp_path: Path) -> Iterator[MakeFrontend]:
    frontends: list[FrontendProcess] = []

    def start(name: str = "frontend", **environ: str) -> FrontendProcess:
        frontend = FrontendProcess(tmp_path, HEALTH_CHECK, name=name, **environ)
        frontends.append(frontend)
        frontend.start()
        return frontend

    try:
        yield start
    finally:
        for frontend in frontends:
            frontend.stop()


def kv_events(report: FrontendReport) -> dict[str, tuple[KVEventsState, str]]:
    return {
        route.instance_id: (KVEventsState(route.kv_events.state), route.kv_events.message)
        for route in report.routes
        if route.kv_events is not None
    }


def states(report: FrontendReport) -> dict[str, KVEventsState]:
    return {instance: state for instance, (state, _) in kv_events(report).items()}


def test_the_events_of_a_publishing_worker_arrive_and_missing_ones_are_reported_with_the_cause(
    start_worker: MakeWorker, start_frontend: MakeFrontend
) -> None:
    good, silent, lost = (
        start_worker("good", "publish"),
        start_worker("silent", ""),
        start_worker("lost", "lose"),
    )
    frontend = start_frontend(**KV_ENV)
    frontend.until(lambda report: report.ready and len(report.routes) == 3, 60.0)
    expected = {
        good.instance_id: KVEventsState.RECEIVED,
        silent.instance_id: KVEventsState.MISSING,
        lost.instance_id: KVEventsState.MISSING,
    }
    took = frontend.until(lambda report: states(report) == expected, 30.0)
    print(f"all states {took:.1f} s after the routes")
    report = frontend.report()
    assert report.kv_routing
    assert report.ready, "clients are answered"
    messages = {instance: message for instance, (_, message) in kv_events(report).items()}
    assert messages[good.instance_id] == ""
    assert messages[silent.instance_id].startswith("The worker publishes no KV events. ")
    assert "the KV event has not arrived at the frontend's router" in messages[lost.instance_id]
    metrics = frontend.get("/metrics")[1].decode()
    assert 'vllmendpoint_kv_event_routes{state="Missing"} 2.0' in metrics
    assert 'vllmendpoint_kv_event_checks_total{outcome="received"}' in metrics


def test_large_blocks_are_checked_with_a_prompt_that_fills_one(
    start_worker: MakeWorker, start_frontend: MakeFrontend
) -> None:
    worker = start_worker("good", "publish", block_size=128)
    frontend = start_frontend(**KV_ENV)
    frontend.until(lambda report: states(report) == {worker.instance_id: KVEventsState.RECEIVED}, 60.0)


def test_every_data_parallel_rank_is_checked(
    tmp_path: Path, toy_model: Path, start_frontend: MakeFrontend
) -> None:
    mocker = Mocker(tmp_path, toy_model, ranks=2)
    mocker.start()
    try:
        frontend = start_frontend(**KV_ENV)
        frontend.until(lambda report: list(states(report).values()) == [KVEventsState.RECEIVED], 90.0)
        assert frontend.report().ready
    finally:
        mocker.stop()
    ranks = set(re.findall(r"Selected pinned worker: .* dp_rank=(\d+)", frontend.log()))
    assert ranks == {"0", "1"}


def test_a_started_frontend_reads_the_index_from_the_workers(
    start_worker: MakeWorker, start_frontend: MakeFrontend
) -> None:
    workers = [start_worker(name, "publish") for name in ("a", "b")]
    frontend = start_frontend(**KV_ENV)
    frontend.until(lambda report: set(states(report).values()) == {KVEventsState.RECEIVED}, 60.0)
    assert len(workers) == 2
    prompts = [f"prompt {number} " + "x y z " * 40 for number in range(8)]
    homes = [frontend.worker_of(prompt) for prompt in prompts]
    time.sleep(0.5)
    frontend.stop()
    second = start_frontend("second", **KV_ENV)
    second.until(lambda report: len(report.accepted) == 1 and report.accepted[0].workers == 2, 60.0)
    assert [second.worker_of(prompt) for prompt in prompts] == homes


def test_the_hit_rate_of_clients_excludes_probes_and_checks(
    start_worker: MakeWorker, start_frontend: MakeFrontend
) -> None:
    for name in ("a", "b"):
        start_worker(name, "publish")
    frontend = start_frontend(**KV_ENV)
    frontend.until(lambda report: list(states(report).values()) == [KVEventsState.RECEIVED] * 2, 60.0)
    prompt = "long " + "x y z " * 60
    sent = []
    for _ in range(5):
        status, answer = frontend.complete(model="plain", prompt=prompt, max_tokens=1)
        assert status == 200
        sent.append(json.loads(answer)["usage"]["prompt_tokens"])
        time.sleep(0.3)
    total = sum(sent)

    def counted(name: str) -> float:
        text = frontend.get("/metrics")[1].decode()
        return sum(map(float, re.findall(rf"^vllmendpoint_{name}_total (\S+)$", text, re.MULTILINE)))

    deadline = time.monotonic() + 30.0
    while counted("prompt_tokens") < total and time.monotonic() < deadline:
        time.sleep(1.0)
    # On a busy machine, an event may arrive after the next request, and a probe may be aborted and not known.
    assert total <= counted("prompt_tokens") <= 1.1 * total
    assert 0.4 * total <= counted("cached_prompt_tokens") <= total


def test_without_kv_routing_nothing_is_checked(
    start_worker: MakeWorker, start_frontend: MakeFrontend
) -> None:
    start_worker("good", "publish")
    frontend = start_frontend()
    frontend.until(lambda report: report.ready, 60.0)
    time.sleep(2.0)
    report = frontend.report()
    assert not report.kv_routing
    assert kv_events(report) == {}
    assert "vllmendpoint_prompt_tokens" not in frontend.get("/metrics")[1].decode()
    assert "vllmendpoint_kv_event_routes" not in frontend.get("/metrics")[1].decode()
