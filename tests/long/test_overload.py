"""0 false alarms in 20 minutes of overload, at the default settings; then real stalls, noticed in time.

``LONG_OVERLOAD_SECONDS`` makes it shorter or longer.
"""

import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.worker.conftest import SEPARATE, WorkerProcess, stopped
from vllmendpoint_api import (
    DEFAULT_PERIOD_SECONDS,
    DEFAULT_TIMEOUT_SECONDS,
    Outcome,
    Verdict,
)

from .watching import HUNG_UP, Asking, Users, Watch, verdicts

SECONDS = float(os.environ.get("LONG_OVERLOAD_SECONDS") or 20 * 60)
STALLS = 3
APART = 62.0
"""Seconds: the step that a stall was is recent for a minute, and as long as it lasted is waited for."""
GENEROUS = 3
"""A stall's bound is the contract's, and the median's but for a second; the worst may be this many times as
much: the machine is shared."""
SLACK = 1.0
PROBE_EVERY = 5.0
"""Seconds: users' answers spare the probe, so it is asked for."""
pytestmark = [pytest.mark.long, pytest.mark.timeout(SECONDS + 900)]
CROWD: list[tuple[int, dict[str, Any], float]] = [
    (100, {"prompt": "hello", "max_tokens": 24}, 600.0),
    (30, {"prompt": "a story", "max_tokens": 800, "stream": True}, 600.0),
    (30, {"prompt": 1000, "max_tokens": 2}, 600.0),
    (20, {"prompt": 400, "max_tokens": 200, "n": 2}, 600.0),
    (20, {"prompt": "hello", "max_tokens": 900}, 3.0),  # who hang up before they are answered
]
"""200 users of an engine that runs eight requests at a time."""


def crowd() -> list[tuple[int, dict[str, Any], float]]:
    return [
        (many, {"ignore_eos": True, "temperature": 1.0} | body, patience) for many, body, patience in CROWD
    ]


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


def test_overload_raises_no_false_alarm(worker: WorkerProcess) -> None:
    since = len(worker.log())
    with Watch(worker) as watch, Users(worker, crowd()) as users, Asking(worker, PROBE_EVERY) as asking:
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
        f"{sorted(set(seen))}; probes {dict(asking.outcomes)}; {len(watch.lines)} reports, "
        f"{len(watch.unready)} unready; slowest of /ready, /ping and /health {asking.slowest:.2f} s"
    )
    assert set(seen) <= {Verdict.GENERATING, Verdict.BUSY}
    assert {report.verdict.state for _, report in watch.lines} <= {Verdict.GENERATING, Verdict.BUSY}
    assert not asking.refusals
    assert set(asking.outcomes) <= {Outcome.COMPLETE, Outcome.TIMEOUT}
    assert asking.outcomes[Outcome.TIMEOUT], "no probe had to wait its turn: that was no overload"
    assert set(statuses) <= {200, HUNG_UP}
    assert statuses[200]


def test_a_stall_in_overload_is_noticed_in_time(worker: WorkerProcess) -> None:
    bound = DEFAULT_TIMEOUT_SECONDS + 1
    noticed, back = [], []
    with Users(worker, crowd()):
        for number in range(STALLS):
            time.sleep((APART if number else 10.0) + random.uniform(0.0, 5.0))
            with stopped(worker.engine_core()) as began:
                worker.until(lambda report: report.verdict.state == Verdict.STALLED, GENEROUS * bound)
                noticed.append(time.monotonic() - began)
                assert worker.status("report", "/ready") == 503
                assert worker.status("http", "/ping") == 503
            back.append(worker.until(lambda report: report.ready, 60.0))
    print(
        "\nstalls under 200 users noticed after "
        + ", ".join(f"{seconds:.2f}" for seconds in noticed)
        + f" s (median {statistics.median(noticed):.2f}, bound {bound} s); ready again after "
        + ", ".join(f"{seconds:.2f}" for seconds in back)
        + " s"
    )
    assert statistics.median(noticed) <= bound + SLACK
    assert max(noticed) < GENEROUS * bound
