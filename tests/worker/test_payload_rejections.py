"""Invalid payloads and variables of the environment are rejected before the engine is imported."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from vllmendpoint_api import ConfigurationState, Stage

from .conftest import WorkerProcess

pytestmark = pytest.mark.timeout(300)
SECRET = "hunter2-is-never-repeated"


def test_payloads_that_upstream_accepts_or_crashes_on_are_rejected(
    make_worker: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    file = tmp_path / "payload.json"
    file.write_bytes(b"{}")
    worker = make_worker({"DYN_HEALTH_CHECK_PAYLOAD": f"@{file}"})
    worker.start()
    for content, expected in (
        (b"{}", "is an empty object"),
        (b"\xff\xfe" + SECRET.encode("utf-16-le"), "names a file that is not UTF-8 text"),
        (f'["{SECRET}"]'.encode(), "is a list"),
        (f'"{SECRET}"'.encode(), "is a string"),
        (b"7", "is a number"),
        (f'{{"prompt": "{SECRET}"'.encode(), "names a file that is not valid JSON (line 1, column"),
        (f'{{"prompt": "{SECRET}", "max_tokens": 0}}'.encode(), "max_tokens is not a positive integer"),
        (b"[" * 100_000, "names a file that is nested too deeply"),
    ):
        file.write_bytes(content)
        worker.until(
            lambda report: (
                report.stage.name == Stage.REJECTED
                and any(expected in problem.message for problem in report.configuration.problems)  # noqa: B023
            ),
            30.0,
        )
        report = worker.report()
        assert report.configuration.state == ConfigurationState.REJECTED
        assert (report.started, report.ready, report.stage.name) == (True, False, Stage.REJECTED)
        (problem,) = report.configuration.problems
        assert (problem.reason, problem.source) == ("InvalidPayload", "Environment")
        assert problem.field.startswith("DYN_HEALTH_CHECK_PAYLOAD")
    assert SECRET not in worker.log() + worker.request("report", "/status")[1].decode()
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.exit_code(10.0) == 0


def test_every_invalid_variable_is_named_in_one_report(make_worker: Callable[..., WorkerProcess]) -> None:
    bad = {
        "DYN_HEALTH_CHECK_LEVEL": "huge",
        "DYN_HEALTH_CHECK_ENABLED": "maybe",
        "DYN_HEALTH_CHECK_PAYLOAD_DISABLED": "perhaps",
        "DYN_HEALTH_CHECK_INTERVAL": "0",
    }
    worker = make_worker(bad)
    worker.start()
    worker.until(lambda report: report.configuration.state == ConfigurationState.REJECTED, 30.0)
    problems = worker.report().configuration.problems
    assert {problem.field for problem in problems} == set(bad)
    assert {problem.reason for problem in problems} == {"InvalidEnvironment"}
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.exit_code(10.0) == 0
