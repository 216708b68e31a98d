"""No false Stalled verdict in 20 minutes of overload at the default settings; then real stalls are detected.

The environment variable ``LONG_OVERLOAD_SECONDS`` sets another duration.
"""

import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.worker.conftest import SEPARATE, WorkerProcess, stopped
from tests.worker.report_watch import ReportWatch
from vllmendpoint_api import (
    DEFAULT_PERIOD_SECONDS,
    DEFAULT_TIMEOUT_SECONDS,
    Outcome,
    Verdict,
)

from .user_load import CLIENT_TIMEOUT, HealthPoller, Users, verdicts

SECONDS = float(os.environ.get("LONG_OVERLOAD_SECONDS") or 20 * 60)
STALLS = 3
APART_SECONDS = 62.0
"""Time between stalls: the worker counts a stall as a long engine step for a minute, and allows for it."""
SLACK = 1.0
"""The median of the detection times may exceed the specified bound by this many seconds."""
WORST_FACTOR = 3
"""The worst time may be this multiple of the bound, because the machine is shared."""
PROBE_SECONDS = 5.0
"""Period of the requested probes: user requests replace the periodic ones."""
pytestmark = [pytest.mark.long, pytest.mark.timeout(SECONDS + 900)]
CROWD: list[tuple[int, dict[str, Any], float]] = [
    (100, {"prompt": "hello", "max_tokens": 24}, 600.0),
    (30, {"prompt": "a story", "max_tokens": 800, "stream": True}, 600.0),
    (30, {"prompt": 1000, "max_tokens": 2}, 600.0),
    (20, {"prompt": 400, "max_tokens": 200, "n": 2}, 600.0),
    (20, {"prompt": "hello", "max_tokens": 900}, 3.0),  # these time out before the response
]
"""Number of users, request body, client timeout in seconds: 200 users of an engine with a batch of 8."""


def crowd() -> list[tuple[int, dict[str, Any], float]]:
    return [(many, {"ignore_eos": True, "temperature": 1.0} | body, timeout) for many, body, timeout in CROWD]


@pytest.fixture(scope="module")
def worker(make_worker: Callable[..., WorkerProcess]) -> WorkerProcess:
    worker = make_worker(arguments=SEPARATE)
    worker.settings({})
    worker.start()
    worker.until_ready()
    health_check = worker.report().health_check
    assert health_check is not None
    assert (health_check.period_seconds, health_check.timeout_seconds) == (
        DEFAULT_PERIOD_SECONDS,
        DEFAULT_TIMEOUT_SECONDS,
    )
    return worker


def test_overload_causes_no_stalled_verdict(worker: WorkerProcess) -> None:
    since = len(worker.log())
    with (
        ReportWatch(worker) as watch,
        Users(worker, crowd()) as users,
        HealthPoller(worker, PROBE_SECONDS) as poller,
    ):
        began = time.monotonic()
        while time.monotonic() - began < SECONDS:
            time.sleep(1.0)
            assert worker.process is not None
            assert worker.process.poll() is None, worker.log_lines()[-5:]
            assert not watch.unready
        seconds = time.monotonic() - began
        statuses = dict(users.statuses)
        seen = verdicts(worker, since)
    print(
        f"\n{seconds:.0f} s of 200 users: answers {statuses}; {len(seen)} changes of verdict, "
        f"{sorted(set(seen))}; probes {dict(poller.outcomes)}; {len(watch.lines)} reports, "
        f"{len(watch.unready)} unready; slowest of /ready, /ping and /health {poller.slowest:.2f} s"
    )
    assert set(seen) <= {Verdict.GENERATING, Verdict.BUSY}
    assert {report.verdict.state for _, report in watch.lines} <= {Verdict.GENERATING, Verdict.BUSY}
    assert not poller.failures
    assert set(poller.outcomes) <= {Outcome.COMPLETE, Outcome.TIMEOUT}
    assert poller.outcomes[Outcome.TIMEOUT], "no probe had to wait, so the engine was not overloaded"
    assert set(statuses) <= {200, CLIENT_TIMEOUT}
    assert statuses[200]


def test_a_stall_under_overload_is_detected_in_time(worker: WorkerProcess) -> None:
    bound = DEFAULT_TIMEOUT_SECONDS + 1
    detected, recovered = [], []
    with Users(worker, crowd()):
        for number in range(STALLS):
            time.sleep((APART_SECONDS if number else 10.0) + random.uniform(0.0, 5.0))
            with stopped(worker.engine_core()) as began:
                worker.until(lambda report: report.verdict.state == Verdict.STALLED, WORST_FACTOR * bound)
                detected.append(time.monotonic() - began)
                assert worker.status("report", "/ready") == 503
                assert worker.status("http", "/ping") == 503
            recovered.append(worker.until(lambda report: report.ready, 60.0))
    print(
        "\nstalls under 200 users detected after "
        + ", ".join(f"{seconds:.2f}" for seconds in detected)
        + f" s (median {statistics.median(detected):.2f}, bound {bound} s); ready again after "
        + ", ".join(f"{seconds:.2f}" for seconds in recovered)
        + " s"
    )
    assert statistics.median(detected) <= bound + SLACK
    assert max(detected) < WORST_FACTOR * bound
