"""Prefill and decode workers behind our frontend: real routing of Dynamo, simulated engines."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vllmendpoint_api import FrontendReport, RouteState, names

from .frontend_process import PREFIX, FrontendProcess, Mocker

pytestmark = pytest.mark.timeout(300)

Start = Callable[[str, str], Mocker]


@pytest.fixture
def start(tmp_path: Path, toy_model: Path) -> Iterator[Start]:
    """Starts a worker of a role and a revision."""
    mockers: list[Mocker] = []

    def start(role: str, revision: str) -> Mocker:
        name = f"{role}-{revision}-{len(mockers)}"
        mocker = Mocker(tmp_path, toy_model, name=name, role=role, revision=revision)
        mockers.append(mocker)
        mocker.start()
        return mocker

    try:
        yield start
    finally:
        for mocker in mockers:
            mocker.stop()


@pytest.fixture
def frontend(tmp_path: Path) -> Iterator[FrontendProcess]:
    frontend = FrontendProcess(
        tmp_path, {"periodSeconds": 1, "timeoutSeconds": 2}, **{names.ENV_MODEL_NAME: "plain"}
    )
    frontend.start()
    try:
        yield frontend
    finally:
        frontend.stop()


def states(report: FrontendReport, revision: str = "r1") -> list[str]:
    return [route.state for route in report.routes if route.namespace == f"{PREFIX}{revision}"]


def answered(count: int) -> Callable[[FrontendReport], bool]:
    return lambda report: report.ready and states(report) == [RouteState.ANSWERED] * count


def pairs(frontend: FrontendProcess, requests: int) -> set[tuple[int, int]]:
    """The decode and prefill workers of the requests of a client, which must all be answered."""
    body = {"model": "plain", "prompt": "hello", "max_tokens": 2, "nvext": {"extra_fields": ["worker_id"]}}
    found = set()
    for _ in range(requests):
        status, answer = frontend.request("/v1/completions", body)
        assert status == 200, answer
        ids = json.loads(answer)["nvext"]["worker_id"]
        found.add((ids["decode_worker_id"], ids["prefill_worker_id"]))
    return found


def test_every_worker_of_both_roles_is_probed_through_the_other(
    start: Start, frontend: FrontendProcess
) -> None:
    for role in ("prefill", "prefill", "decode", "decode"):
        start(role, "r1")
    frontend.until(answered(4), 90.0)
    assert len({prefill for _, prefill in pairs(frontend, 8)}) == 2


def test_a_frozen_prefill_worker_is_failing_and_decode_workers_are_not(
    start: Start, frontend: FrontendProcess
) -> None:
    frozen = start("prefill", "r1")
    for role in ("prefill", "decode", "decode"):
        start(role, "r1")
    frontend.until(answered(4), 90.0)
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        expected = sorted([RouteState.FAILING] + [RouteState.ANSWERED] * 3)
        took = frontend.until(lambda report: sorted(states(report)) == expected, 30.0)
        print(f"SIGSTOP -> Failing in {took:.1f} s")
        failing = next(route for route in frontend.report().routes if route.state == RouteState.FAILING)
        assert "has not responded to the frontend's probe within 3 s" in failing.message
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    frontend.until(answered(4), 30.0)


def test_an_incomplete_revision_receives_no_requests(start: Start, frontend: FrontendProcess) -> None:
    start("prefill", "r1")
    start("decode", "r1")
    frontend.until(answered(2), 90.0)
    before = pairs(frontend, 4)
    start("decode", "r2")
    frontend.until(lambda report: states(report, "r2") == [RouteState.NOT_ACCEPTED], 60.0)
    (route,) = [route for route in frontend.report().routes if route.namespace.endswith("r2")]
    assert route.message == (
        f"The frontend sends no requests to the Dynamo namespace {PREFIX}r2, because it has no prefill "
        "worker."
    )
    assert pairs(frontend, 12) == before
    start("prefill", "r2")
    frontend.until(lambda report: states(report, "r2") == [RouteState.ANSWERED] * 2, 60.0)
    assert len(pairs(frontend, 24)) == 2


def test_without_a_prefill_worker_the_frontend_is_not_ready(start: Start, frontend: FrontendProcess) -> None:
    prefill = start("prefill", "r1")
    start("decode", "r1")
    frontend.until(answered(2), 90.0)
    prefill.stop()
    frontend.until(lambda report: not report.ready, 30.0)
    # The last prefill worker disappears from the discovery when its lease ends.
    frontend.until(lambda report: states(report) == [RouteState.NOT_ACCEPTED], 60.0)
    assert "because it has no prefill worker" in frontend.report().routes[0].message
    start("prefill", "r1")
    frontend.until(answered(2), 60.0)
