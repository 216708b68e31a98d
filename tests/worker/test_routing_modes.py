"""The router's options that the operator sets, on real frontends of Dynamo in front of workers without an
engine.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from vllmendpoint_api import RoutingMode, RoutingSpec
from vllmendpoint_operator.plan.pods.routing import router_env

from .frontend_process import PREFIX, FrontendProcess, PlainWorker

pytestmark = pytest.mark.timeout(180)
HEALTH_CHECK = {"mode": "Observe"}
SESSION = "x-dynamo-session-id"
MODES = list(RoutingMode)


class Routed(NamedTuple):
    frontends: dict[RoutingMode, FrontendProcess]
    second: FrontendProcess
    """Another frontend with the mode KV."""
    failing: PlainWorker
    """Ends every answer with more than two tokens."""


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Iterator[Routed]:
    folder = tmp_path_factory.mktemp("routing")
    failing = PlainWorker(folder, "failing", toy_model, f"{PREFIX}r1", PLAIN_SHUTDOWN_AFTER="2")
    workers = [failing, *(PlainWorker(folder, name, toy_model, f"{PREFIX}r1") for name in ("b", "c"))]

    def frontend(mode: RoutingMode, name: str) -> FrontendProcess:
        env = router_env(RoutingSpec(mode=mode, session_affinity_seconds=4)) | {"DYN_MIGRATION_LIMIT": "3"}
        return FrontendProcess(folder, HEALTH_CHECK, name=name, **env)

    frontends = {mode: frontend(mode, mode.value) for mode in MODES}
    second = frontend(RoutingMode.KV, "second")
    processes = [*workers, *frontends.values(), second]
    try:
        for process in processes:
            process.start()
        for one in (*frontends.values(), second):
            one.until(lambda report: report.ready and sum(row.workers for row in report.accepted) == 3, 60.0)
        yield Routed(frontends, second, failing)
    finally:
        for process in processes:
            process.stop()


def choices(frontend: FrontendProcess, count: int, **headers: str) -> Counter[str]:
    return Counter(frontend.worker_of(f"{number} question", **headers) for number in range(count))


@pytest.mark.parametrize("mode", MODES)
def test_requests_reach_every_worker_in_every_mode(routed: Routed, mode: RoutingMode) -> None:
    found = choices(routed.frontends[mode], 40)
    assert len(found) == 3
    if mode is RoutingMode.ROUND_ROBIN:
        assert max(found.values()) - min(found.values()) <= 1


@pytest.mark.parametrize("mode", MODES)
def test_a_session_stays_on_one_worker_in_every_mode(routed: Routed, mode: RoutingMode) -> None:
    found = {session: choices(routed.frontends[mode], 6, **{SESSION: session}) for session in "abcdef"}
    assert {len(workers) for workers in found.values()} == {1}
    assert len({next(iter(workers)) for workers in found.values()}) > 1, "sessions spread over the workers"


def test_frontends_share_the_workers_of_sessions(routed: Routed) -> None:
    first, second = routed.frontends[RoutingMode.KV], routed.second
    for session in ("s1", "s2", "s3", "s4"):
        worker = first.worker_of("one", **{SESSION: session})
        assert choices(second, 4, **{SESSION: session}) == {worker: 4}


@pytest.mark.parametrize("mode", MODES)
def test_a_request_of_a_session_moves_when_its_engine_shuts_down(routed: Routed, mode: RoutingMode) -> None:
    frontend, failing = routed.frontends[mode], routed.failing.instance_id
    session = next(
        name
        for name in (f"moves-{number}" for number in range(60))
        if frontend.worker_of("one", **{SESSION: name}) == failing
    )
    body = {"model": "plain", "prompt": "long", "max_tokens": 10}
    for _ in range(3):
        status, answer = frontend.request("/v1/completions", body, {SESSION: session})
        assert status == 200, answer
        assert json.loads(answer)["choices"][0]["finish_reason"]
    assert failing != frontend.worker_of("long", max_tokens=10, **{SESSION: session})
