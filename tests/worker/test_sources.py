"""Payloads from the environment, an @file and the config file, valid and invalid, in real processes.

The workers end in different ways: by SIGTERM after a rejection, by a killed engine, by a long stall.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vllmendpoint_api import ConfigurationState, Level, PayloadSource, Stage, Verdict

from .conftest import START_SECONDS, WorkerProcess, wait_until_gone

pytestmark = pytest.mark.timeout(300)
SECRET = "hunter2-is-never-repeated"
Make = Callable[..., WorkerProcess]


def test_invalid_json_is_rejected_within_seconds_and_the_worker_keeps_running(make_worker: Make) -> None:
    worker = make_worker({"DYN_HEALTH_CHECK_PAYLOAD": '{"prompt": "' + SECRET})
    worker.start()
    worker.until(lambda report: report.started and report.stage.name == Stage.REJECTED, 20.0)
    report = worker.report()
    assert (report.configuration.state, report.ready) == (ConfigurationState.REJECTED, False)
    problem = report.configuration.problems[0]
    assert (problem.reason, problem.source) == ("InvalidPayload", "Environment")
    assert problem.field == "DYN_HEALTH_CHECK_PAYLOAD"
    assert worker.status("report", "/started") == 200
    assert worker.status("report", "/ready") == 503
    time.sleep(2.0)
    assert worker.report().started
    assert SECRET not in worker.log() + worker.request("report", "/status")[1].decode()
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.exit_code(10.0) == 0


def test_sigterm_during_the_imports_exits_with_zero(make_worker: Make) -> None:
    worker = make_worker()
    worker.start()
    worker.until(lambda report: report.stage.name == Stage.IMPORTING, 30.0)
    time.sleep(2.0)
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.exit_code(10.0) == 0


def test_invalid_engine_arguments_are_rejected_with_the_message_of_the_parser(make_worker: Make) -> None:
    worker = make_worker(arguments=["--no-such-flag", "1"])
    worker.start()
    worker.until(lambda report: report.configuration.state == ConfigurationState.REJECTED, 120.0)
    problem = worker.report().configuration.problems[0]
    assert problem.reason == "InvalidEngineArguments"
    assert "--no-such-flag" in problem.message
    os.kill(worker.pid, signal.SIGINT)
    assert worker.exit_code(10.0) == 0


def test_a_payload_of_the_environment_is_rejected_then_corrected_then_overridden_by_the_spec(
    make_worker: Make, tmp_path: Path
) -> None:
    file = tmp_path / "payload.json"
    file.write_text(json.dumps({"prompt": SECRET, "max_tokenz": 3}))
    worker = make_worker({"DYN_HEALTH_CHECK_PAYLOAD": f"@{file}", "DYN_HEALTH_CHECK_INTERVAL": "2"})
    worker.start()
    worker.until(lambda report: report.configuration.state == ConfigurationState.REJECTED, 120.0)
    problem = worker.report().configuration.problems[0]
    assert "number 2 of 2" in problem.message
    assert "Rename it to max_tokens, or remove it." in problem.message

    file.write_text(json.dumps({"prompt": SECRET, "max_tokens": 3, "temperature": 0.5, "top_p": 0.9}))
    worker.until(lambda report: report.configuration.state == ConfigurationState.RESOLVED, START_SECONDS)
    worker.until_ready()
    health_check = worker.report().health_check
    assert health_check is not None
    assert (health_check.source, health_check.level, health_check.payload) == (
        PayloadSource.ENVIRONMENT,
        None,
        None,
    )
    assert health_check.period_seconds == 2.0
    worker.until(lambda report: report.last_probe and report.last_probe.tokens == 3, 30.0)

    digest = worker.settings({"level": "Minimal"})
    worker.until(lambda report: report.configuration.settings_hash == digest, 20.0)
    health_check = worker.report().health_check
    assert health_check is not None
    assert (health_check.source, health_check.level) == (PayloadSource.SPEC, Level.MINIMAL)
    assert [ignored.source for ignored in health_check.ignored] == [PayloadSource.ENVIRONMENT]

    worker.settings_file.unlink()
    worker.until(lambda report: report.health_check and report.health_check.source == "Environment", 20.0)
    assert SECRET not in worker.log() + worker.request("report", "/status")[1].decode()

    children = worker.children()
    os.kill(worker.engine_core(), signal.SIGKILL)
    killed = time.monotonic()
    statuses = set()
    with contextlib.suppress(OSError):
        while True:
            statuses.add(worker.status("http", "/ping") if time.monotonic() - killed > 3.0 else 0)
            time.sleep(0.05)
    assert statuses <= {0, 503}
    assert worker.exit_code(10.0) != 0
    assert time.monotonic() - killed < 15.0
    wait_until_gone(children, 8.0)


def test_a_payload_of_the_config_file_is_active_and_a_long_stall_ends_the_worker(
    make_worker: Make, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        'health_check_level: "standard"\n'
        "health_check_payload:\n"
        '  prompt: "The weather is"\n'
        "  max_tokens: 3\n"
        "  temperature: 0.5\n"
        "max_model_len: 1024\n"
    )
    worker = make_worker(
        {
            "VLLMENDPOINT_CONFIG_FILE": str(config),
            "DYN_HEALTH_CHECK_ENABLED": "1",
            "DYN_CANARY_WAIT_TIME": "0.5",
            "VLLM_PLUGINS": "lora_filesystem_resolver",
        }
    )
    worker.start()
    worker.until_ready()
    report = worker.report()
    assert report.health_check is not None
    assert (report.health_check.source, report.health_check.payload) == (PayloadSource.CONFIG_FILE, None)
    assert [ignored.source for ignored in report.health_check.ignored] == [PayloadSource.CONFIG_FILE]
    assert report.last_probe is not None
    assert report.last_probe.tokens == 3
    models = json.loads(worker.request("http", "/v1/models")[1])["data"]
    assert models[0]["max_model_len"] == 1024  # an argument sets it too; different values would be rejected

    digest = worker.settings({"periodSeconds": 1, "timeoutSeconds": 1, "restartAfterSeconds": 3})
    worker.until(lambda report: report.configuration.settings_hash == digest, 20.0)
    children = worker.children()
    os.kill(worker.engine_core(), signal.SIGSTOP)
    worker.until(lambda report: report.verdict.state == Verdict.STALLED, 20.0)
    stalled = time.monotonic()
    assert worker.exit_code(15.0) not in (0, -signal.SIGKILL)
    assert time.monotonic() - stalled > 2.5
    wait_until_gone(children, 8.0)
