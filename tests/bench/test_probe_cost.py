"""Share of probes in the tokens that the engine schedules, at the default settings: idle, under light load,
and with ``healthCheck.expect``, which makes the probes run despite the load.

Tokens are vLLM's counters (prompt and generation, on Dynamo's system port); those of a probe are measured
without users.
"""

import json
import re
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.worker.conftest import WorkerProcess

pytestmark = pytest.mark.timeout(1800)
SECONDS = 120.0
SHARE = 0.005
TOKENS = 64
"""Generated tokens of a user request, whose prompt has about as many."""
_TOKENS = re.compile(r"^vllm:(?:prompt|generation)_tokens_total\{.*\} (\S+)$", re.MULTILINE)
_PROBES = re.compile(r'^vllmendpoint_probes_total\{.*outcome="\w+".*\} (\S+)$', re.MULTILINE)
_SECONDS = re.compile(r"^vllmendpoint_probe_latency_seconds_sum\{.*\} (\S+)$", re.MULTILINE)


class Figures(NamedTuple):
    """Counters at one moment, or their increase: tokens of the engine, probes, and seconds of the probes."""

    tokens: float
    probes: float
    seconds: float

    @staticmethod
    def of(worker: WorkerProcess) -> "Figures":
        text = worker.request("system", "/metrics")[1].decode()
        found = [pattern.findall(text) for pattern in (_TOKENS, _PROBES, _SECONDS)]
        assert all(found), text
        return Figures(*(sum(map(float, values)) for values in found))

    def since(self, before: "Figures") -> "Figures":
        return Figures(*(now - then for now, then in zip(self, before, strict=True)))


@pytest.fixture(scope="module")
def worker(make_worker: Callable[..., WorkerProcess]) -> WorkerProcess:
    worker = make_worker()
    worker.settings({})
    worker.start()
    worker.until_ready()
    return worker


@pytest.fixture(scope="module")
def idle(worker: WorkerProcess) -> Figures:
    return measured(worker, None)


def measured(worker: WorkerProcess, every: float | None) -> Figures:
    """Counters over SECONDS, while one user sends a request every ``every`` seconds; None: without a user."""
    stop = threading.Event()

    def send() -> None:
        body = {"model": "toy", "prompt": "the sky is blue " * 14, "max_tokens": TOKENS, "ignore_eos": True}
        while not stop.wait(every):
            status, answer = worker.request("http", "/v1/completions", body)
            assert status == 200, answer
            assert json.loads(answer)["usage"]["completion_tokens"] == TOKENS

    user = threading.Thread(target=send, daemon=True)
    before = Figures.of(worker)
    if every is not None:
        user.start()
    time.sleep(SECONDS)
    stop.set()
    if every is not None:
        user.join(30)
    return Figures.of(worker).since(before)


def test_an_idle_engine_is_probed(worker: WorkerProcess, idle: Figures) -> None:
    health_check = worker.report().health_check
    assert health_check is not None
    assert idle.probes, "nothing was probed"
    print(
        f"\nidle, {SECONDS:.0f} s, a probe every {health_check.period_seconds:g} s: "
        f"{idle.probes:.0f} probes, {idle.tokens / idle.probes:.1f} tokens each, "
        f"{3600 / health_check.period_seconds * idle.tokens / idle.probes:.0f} an hour; "
        f"{1000 * idle.seconds / idle.probes:.1f} ms each, {idle.seconds / SECONDS:.3%} of the time"
    )


@pytest.mark.parametrize("every", [1.0, 10.0])
def test_probes_use_a_small_share_of_the_tokens_under_light_load(
    worker: WorkerProcess, idle: Figures, every: float
) -> None:
    """Successful user requests replace almost all probes."""
    assert share(measured(worker, every), idle, every) < SHARE


def test_probes_use_a_small_share_of_the_tokens_if_user_requests_replace_none(
    worker: WorkerProcess, idle: Figures
) -> None:
    """One request of about 120 tokens per second, and as many probes as for an idle engine."""
    before = worker.report().last_probe
    worker.settings({"expect": {"regex": ".*"}})
    worker.until(
        lambda report: report.last_probe != before, 30.0
    )  # a changed health check is probed immediately
    found = measured(worker, 1.0)
    assert found.probes >= idle.probes - 1, "user requests replaced probes"
    assert share(found, idle, 1.0) < SHARE


def share(found: Figures, idle: Figures, every: float) -> float:
    spent = found.probes * idle.tokens / idle.probes
    print(
        f"\none user, a request every {every:g} s for {SECONDS:.0f} s: {found.tokens:.0f} tokens, of them "
        f"{spent:.0f} for {found.probes:.0f} probes: {spent / found.tokens:.3%} "
        f"({SHARE:.1%} would be {spent / SHARE / SECONDS:.0f} tokens a second)"
    )
    assert found.tokens > SECONDS / every * TOKENS / 2, "the user was not answered"
    return spent / found.tokens
