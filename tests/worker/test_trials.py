"""A changed health check becomes active only after the engine has answered it: payloads that only vLLM
rejects.

One worker with a real engine. The tests run in the order of the file.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllmendpoint_api import ConfigurationState, Stage, Verdict, WorkerReport

from .conftest import PATIENT, QUICK, START_SECONDS, TIMEOUT, stopped
from .spied import Spied

pytestmark = pytest.mark.timeout(400)

SECRET = "hunter2-xyzzy"
PROMPT = {"prompt": "Hello", "max_tokens": 1, "temperature": 0}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "temperature": 0}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.fixture(scope="module")
def payload_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("environment") / "payload.json"


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, toy_model: Path, payload_file: Path) -> Iterator[Spied]:
    payload_file.write_text(json.dumps(PROMPT | {"prompt": SECRET, "logprobs": 50}))
    worker = Spied(
        tmp_path_factory.mktemp("worker"), toy_model, {"DYN_HEALTH_CHECK_PAYLOAD": f"@{payload_file}"}
    )
    worker.settings(PATIENT)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def apply_rejected(worker: Spied, **health_check: Any) -> WorkerReport:
    """Apply settings that the worker rejects, and return its report; it stays ready meanwhile."""
    digest = worker.settings(PATIENT | health_check)
    deadline = time.monotonic() + 30.0
    while (report := worker.report()).configuration.settings_hash != digest:
        assert report.ready, report
        assert time.monotonic() < deadline, report
        time.sleep(0.05)
    assert report.configuration.state == ConfigurationState.REJECTED, report.configuration
    return report


def apply(worker: Spied, **health_check: Any) -> str:
    """Apply settings and wait until they are active; returns their hash."""
    digest = worker.settings(PATIENT | health_check)
    worker.until(
        lambda report: (
            report.configuration.settings_hash == digest
            and report.configuration.state == ConfigurationState.RESOLVED
        ),
        30.0,
    )
    return digest


def test_a_rejected_payload_at_the_start_keeps_the_worker_running_and_is_not_quoted(
    worker: Spied, payload_file: Path
) -> None:
    worker.until(lambda report: report.stage.name == Stage.REJECTED, START_SECONDS)
    report = worker.report()
    assert (report.started, report.ready) == (True, False)
    (problem,) = report.configuration.problems
    assert (problem.reason, problem.source, problem.field) == (
        "InvalidPayload",
        "Environment",
        "DYN_HEALTH_CHECK_PAYLOAD.logprobs",
    )
    assert problem.message.startswith(
        "DYN_HEALTH_CHECK_PAYLOAD.logprobs is rejected by vLLM: Requested sample logprobs of ***, which is"
    )
    assert SECRET not in worker.log() + worker.request("report", "/status")[1].decode()
    payload_file.write_text(json.dumps(PROMPT | {"prompt": SECRET}))
    worker.until(lambda report: report.ready, 60.0)
    assert worker.report().verdict.state == Verdict.GENERATING


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (PROMPT | {"logprobs": 50}, "logprobs"),
        (PROMPT | {"prompt_logprobs": 50}, "prompt_logprobs"),
        (CHAT | {"logprobs": True, "top_logprobs": 50}, "top_logprobs"),
        (PROMPT | {"logit_bias": {"5000": 1}}, "logit_bias"),
        (PROMPT | {"allowed_token_ids": [5000]}, "allowed_token_ids"),
        (PROMPT | {"stop_token_ids": [5000]}, "stop_token_ids"),
        (PROMPT | {"prompt": [5000]}, "prompt"),
        (PROMPT | {"structured_outputs": {"regex": "(["}}, "structured_outputs"),
        (PROMPT | {"structured_outputs": {"json": {"type": "nope"}}}, "structured_outputs"),
        (
            CHAT
            | {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": 1}},
                }
            },
            "response_format",
        ),
        (PROMPT | {"prompt": "hello " * 2000}, "prompt"),
        (PROMPT | {"max_tokens": 5000}, "max_tokens"),
        (PROMPT | {"thinking_token_budget": 3}, "thinking_token_budget"),
        (PROMPT | {"bad_words": [""]}, "bad_words"),
        (CHAT | {"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        (CHAT | {"tools": [TOOL]}, "tools"),
        (CHAT | {"tool_choice": "auto"}, "tool_choice"),
        (CHAT | {"chat_template": "{{ raise_exception('no') }}"}, "chat_template"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_payload_that_only_vllm_rejects_is_rejected_with_its_message(
    worker: Spied, payload: dict[str, Any], field: str
) -> None:
    apply(worker, level="Minimal")
    before = worker.report()
    report = apply_rejected(worker, payload=payload)
    (problem,) = report.configuration.problems
    assert (problem.reason, problem.source, problem.field) == (
        "InvalidPayload",
        "Spec",
        f"healthCheck.payload.{field}",
    )
    path = "/v1/chat/completions" if "messages" in payload else "/v1/completions"
    status, body = worker.request("http", path, payload | {"model": "toy"})
    assert status == 400
    sentence = " ".join(json.loads(body)["error"]["message"].split()).rstrip(".")
    assert problem.message == f"{problem.field} is rejected by vLLM: {sentence[:600]}. Correct the payload."
    assert (report.ready, report.health_check) == (True, before.health_check)


def test_the_last_valid_health_check_stays_active_after_a_rejection(worker: Spied) -> None:
    apply(worker, payload=PROMPT)
    apply_rejected(worker, payload=PROMPT | {"logprobs": 50})
    answer = json.loads(worker.request("report", "/probe", {}, method="POST")[1])
    assert answer["outcome"] == "Complete"
    assert worker.report().verdict.state == Verdict.GENERATING


def test_an_invalid_payload_is_rejected_when_disabled_probing_is_enabled(worker: Spied) -> None:
    apply(worker, level="Minimal")
    apply(worker, payload=PROMPT | {"logprobs": 50}, mode="Disabled")
    report = apply_rejected(worker, payload=PROMPT | {"logprobs": 50})
    assert report.configuration.problems[0].field == "healthCheck.payload.logprobs"
    apply(worker, level="Minimal")


def test_a_changed_payload_is_pending_while_the_engine_is_frozen(worker: Spied) -> None:
    apply(worker, level="Minimal", timeoutSeconds=TIMEOUT)
    before = worker.report()
    with stopped(worker.engine_core()):
        digest = worker.settings(QUICK | {"payload": PROMPT | {"prompt": "another"}})
        worker.until(lambda report: report.configuration.warnings, 30.0)
        report = worker.report()
        assert "has not answered the changed health check yet" in report.configuration.warnings[0]
        assert (report.configuration.state, report.configuration.problems) == (
            ConfigurationState.RESOLVED,
            (),
        )
        assert report.configuration.settings_hash == before.configuration.settings_hash
        assert report.health_check == before.health_check
        worker.until(lambda report: report.verdict.state == Verdict.STALLED, 30.0)
    worker.until(lambda report: report.configuration.settings_hash == digest and report.ready, 30.0)
    assert worker.report().configuration.warnings == ()


@pytest.mark.parametrize(
    "payload",
    [{"messages": CHAT["messages"]}, {"prompt": "Hello", "max_tokens": None}],
    ids=["chat", "completion"],
)
def test_a_payload_without_max_tokens_is_sent_with_a_default(worker: Spied, payload: dict[str, Any]) -> None:
    apply(worker, payload=payload | {"ignore_eos": True, "temperature": 0})
    worker.until(lambda report: report.last_probe and report.last_probe.tokens == 16, 30.0)
    assert worker.probes_seen()[-1]["sampling"]["max_tokens"] == 16
    report = worker.report()
    assert report.health_check is not None
    assert report.health_check.payload is not None
    assert report.health_check.payload["max_tokens"] == 16
    assert "does not set max_tokens" in report.configuration.warnings[0]


@pytest.mark.parametrize(
    "payload",
    [
        PROMPT | {"prompt": ["Hello"]},
        PROMPT | {"prompt": [[5, 6]]},
        CHAT | {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]},
    ],
    ids=["text-in-a-list", "tokens-in-a-list", "empty-system-message"],
)
def test_a_payload_that_vllm_answers_is_accepted(worker: Spied, payload: dict[str, Any]) -> None:
    apply(worker, payload=payload)
    assert worker.report().ready
