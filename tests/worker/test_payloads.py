"""The guide's payloads on a real engine: what the engine receives and what a probe costs.

A scheduler of ours (``engine_spy``) records each request that reaches the engine core. Two workers run. The
first has a chat model, and its settings change while it runs. The second has no chat template, and the
environment configures it with values that crash or flood upstream. The tests of one worker run in the order
of the file.
"""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import re2

from vllmendpoint_api import (
    ConfigurationState,
    Level,
    ModelType,
    Outcome,
    PayloadSource,
    Verdict,
    payload_for,
)

from .conftest import PATIENT, Load, assert_health_follows, wait
from .spied import Spied

pytestmark = pytest.mark.timeout(300)


def apply(worker: Spied, **health_check: Any) -> None:
    """Writes the settings and waits until the worker uses them."""
    digest = worker.settings(PATIENT | health_check)
    worker.until(
        lambda report: (
            report.configuration.settings_hash == digest
            and report.configuration.state == ConfigurationState.RESOLVED
        ),
        30.0,
    )


# --- a chat model
# -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Iterator[Spied]:
    worker = Spied(tmp_path_factory.mktemp("chat"), toy_model)
    worker.settings(PATIENT)
    worker.start()
    try:
        worker.until_ready()
        yield worker
    finally:
        worker.stop()


GUIDE = [
    pytest.param({"level": "Minimal"}, "user\nHi", {"max_tokens": 1, "temperature": 0.0}, id="minimal"),
    pytest.param(
        {"level": "Standard"}, "user\nThe sky is", {"max_tokens": 5, "temperature": 0.7}, id="standard"
    ),
    pytest.param(
        {"level": "Comprehensive"},
        "user\nWrite a haiku about artificial intelligence:",
        {
            "max_tokens": 50,
            "temperature": 0.8,
            "top_p": 0.95,
            "frequency_penalty": 0.5,
            "presence_penalty": 0.5,
        },
        id="comprehensive",
    ),
    pytest.param(
        {"payload": {"prompt": "Test", "max_tokens": 1, "temperature": 0.0, "seed": 42}},
        "Test",
        {"max_tokens": 1, "temperature": 0.0, "seed": 42},
        id="seed",
    ),
    pytest.param(
        {"payload": {"prompt": "Hello world", "max_tokens": 3, "temperature": 0.5, "top_p": 0.9}},
        "Hello world",
        {"max_tokens": 3, "temperature": 0.5, "top_p": 0.9},
        id="completion-of-a-chat-model",
    ),
    pytest.param(
        {
            "payload": {
                "messages": [{"role": "user", "content": "Say hi"}],
                "max_tokens": 2,
                "temperature": 0.3,
                "top_p": 0.8,
                "top_k": 7,
                "min_p": 0.1,
                "seed": 7,
                "frequency_penalty": 0.25,
                "presence_penalty": -0.25,
                "repetition_penalty": 1.1,
                "logit_bias": {"5": -1.0},
            }
        },
        "user\nSay hi",
        {
            "max_tokens": 2,
            "temperature": 0.3,
            "top_p": 0.8,
            "top_k": 7,
            "min_p": 0.1,
            "seed": 7,
            "frequency_penalty": 0.25,
            "presence_penalty": -0.25,
            "repetition_penalty": 1.1,
            "logit_bias": {"5": -1.0},
        },
        id="every-field",
    ),
]


@pytest.mark.parametrize(("settings", "prompt", "sampling"), GUIDE)
def test_every_sampling_field_reaches_the_engine(
    chat: Spied, settings: dict[str, Any], prompt: str, sampling: dict[str, Any]
) -> None:
    apply(chat, payload={"prompt": "another prompt", "max_tokens": 1})
    apply(chat, **settings)
    wait(lambda: prompt in chat.prompt(chat.probes_seen()[-1]))
    seen = chat.probes_seen()[-1]
    received = {name: seen["sampling"][name] for name in sampling}
    assert received == sampling
    if "level" in settings:
        line = [line for line in chat.log_lines() if "Health check payload" in line][-1]
        assert f"source=Spec level={settings['level']} " in line


def test_a_lower_level_costs_fewer_tokens_and_a_longer_interval_fewer_probes(chat: Spied) -> None:
    def cost(probes: int) -> float:
        """Tokens per probe, averaged over at least ``probes`` probes."""

        def both() -> tuple[float, float]:
            return chat.metrics("vllmendpoint_probes_total", "vllmendpoint_probe_tokens_total")

        count, tokens = both()
        wait(lambda: both()[0] >= count + probes)
        now, spent = both()
        return (spent - tokens) / (now - count)

    apply(chat, level="Comprehensive", periodSeconds=1)
    chat.request("report", "/probe", {}, method="POST")
    high = cost(3)
    apply(chat, level="Minimal", periodSeconds=1)
    chat.request("report", "/probe", {}, method="POST")
    assert 0.0 < cost(3) <= 1.0 < high  # a probe that timed out has no tokens
    apply(chat, level="Minimal", periodSeconds=60)
    chat.request("report", "/probe", {}, method="POST")
    count = chat.metric("vllmendpoint_probes_total")
    time.sleep(3.0)
    assert chat.metric("vllmendpoint_probes_total") == count


def test_the_cost_of_probing_is_among_the_metrics_of_vllm_and_dynamo(chat: Spied) -> None:
    names = (
        "vllmendpoint_probe_latency_seconds_bucket",
        "vllmendpoint_probe_latency_seconds_count",
        "vllmendpoint_probe_tokens_total",
        "vllmendpoint_probes_total",
        "vllmendpoint_seconds_since_proof_of_life",
        "vllmendpoint_verdict",
    )
    for port in ("report", "system"):
        for name in names:
            assert chat.metric(name, port) > 0, (port, name)
    assert chat.metric("vllmendpoint_probes_total") == chat.metric("vllmendpoint_probe_latency_seconds_count")
    text = chat.request("system", "/metrics")[1].decode()
    assert "vllm:generation_tokens_total" in text
    assert "dynamo_component_" in text
    line = next(line for line in text.splitlines() if line.startswith("vllmendpoint_probe_tokens_total"))
    assert 'dynamo_endpoint="generate"' in line
    assert 'model="toy"' in line


def test_answers_to_users_prove_life_and_replace_the_probe(chat: Spied) -> None:
    body = {"model": "toy", "prompt": "hello", "max_tokens": 4}
    apply(chat, level="Minimal")
    with Load(chat, 1, body) as load:
        wait(lambda: load.answers > 0)
        chat.request("report", "/probe", {}, method="POST")
        count = chat.metric("vllmendpoint_probes_total")
        time.sleep(4 * PATIENT["periodSeconds"])
        # Without users there are four probes. With users, a pause of half a second still causes a probe.
        assert chat.metric("vllmendpoint_probes_total") - count <= 2
        assert chat.metric("vllmendpoint_seconds_since_proof_of_life") < PATIENT["periodSeconds"]
    # If the text must match an expectation, tokens of users prove nothing, so the probe continues.
    apply(chat, payload={"prompt": "hello", "max_tokens": 4, "temperature": 0}, expect={"regex": "(?s)."})
    with Load(chat, 1, body) as load:
        count = chat.metric("vllmendpoint_probes_total")
        wait(lambda: chat.metric("vllmendpoint_probes_total") >= count + 3)
        assert load.answers > 0


def test_the_generated_text_must_match_the_expectation(chat: Spied) -> None:
    payload = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0.0}
    answer = json.loads(chat.request("http", "/v1/completions", payload | {"model": "toy"})[1])
    text = answer["choices"][0]["text"]
    word = max(re.findall(r"[A-Za-z0-9]+", text), key=len)
    apply(chat, payload=payload, expect={"regex": re2.escape(word)})
    chat.until(lambda report: report.last_probe and report.last_probe.tokens == 8, 30.0)
    report = chat.report()
    assert (report.verdict.state, report.last_probe and report.last_probe.outcome) == (
        Verdict.GENERATING,
        Outcome.COMPLETE,
    )

    apply(chat, payload=payload, expect={"regex": r"(?i)\bParis\b"})
    chat.until(lambda report: report.verdict.state == Verdict.FAILING, 15.0)
    report = chat.report()
    assert (report.ready, report.verdict.reason) == (False, "UnexpectedAnswer")
    assert "8 tokens that do not match healthCheck.expect.regex" in report.verdict.message
    assert word not in report.verdict.message
    assert chat.status("report", "/ready") == 503
    with Load(chat, 1, {"model": "toy", "prompt": "hello", "max_tokens": 4}) as load:
        count = chat.metric("vllmendpoint_probes_total")

        def answered_and_failing_all_the_while() -> bool:
            report = chat.report()
            assert (report.verdict.state, report.ready) == (Verdict.FAILING, False)
            return load.answers > 9 and chat.metric("vllmendpoint_probes_total") > count + 2

        wait(answered_and_failing_all_the_while)
    apply(chat)
    chat.until(lambda report: report.ready, 30.0)


@pytest.mark.parametrize(
    ("settings", "field", "expected"),
    [
        (
            {"payload": {"input": "test"}},
            "healthCheck.payload.input",
            "is not accepted by a generative model",
        ),
        ({"expect": {"regex": "(paris"}}, "healthCheck.expect.regex", "missing )"),
        ({"expect": {"regex": "(?=paris)"}}, "healthCheck.expect.regex", "RE2 syntax"),
    ],
)
def test_settings_that_do_not_fit_are_rejected_and_the_last_valid_check_stays(
    chat: Spied, settings: dict[str, Any], field: str, expected: str
) -> None:
    apply(chat)
    before = chat.report().health_check
    digest = chat.settings(PATIENT | settings)
    chat.until(lambda report: report.configuration.settings_hash == digest, 20.0)
    report = chat.report()
    assert report.configuration.state == ConfigurationState.REJECTED
    (problem,) = report.configuration.problems
    assert problem.field == field
    assert expected in problem.message
    assert (report.health_check, report.ready) == (before, True)


# --- a model without a chat template
# -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def completion(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Iterator[Spied]:
    model = tmp_path_factory.mktemp("model") / "plain"
    shutil.copytree(toy_model, model, ignore=shutil.ignore_patterns("chat_template*", "made-by.json"))
    worker = Spied(
        tmp_path_factory.mktemp("completion"),
        model,
        {
            "DYN_HEALTH_CHECK_LEVEL": "comprehensive",
            "DYN_HEALTH_CHECK_ENABLED": "1",  # crashes upstream
            "DYN_HEALTH_CHECK_INTERVAL": "2",
            "DYN_CANARY_WAIT_TIME": "0",  # floods the engine upstream
            "DYN_HEALTH_CHECK_REQUEST_TIMEOUT": "0.5",  # crashes upstream
        },
    )
    worker.start()
    try:
        worker.until_ready()
        yield worker
    finally:
        worker.stop()


def test_the_level_of_the_environment_applies_without_a_chat_template(completion: Spied) -> None:
    report = completion.report()
    assert report.model_type == ModelType.COMPLETION
    assert report.health_check is not None
    assert (report.health_check.source, report.health_check.level) == (
        PayloadSource.MODEL_DEFAULT,
        Level.COMPREHENSIVE,
    )
    assert report.health_check.payload == payload_for(Level.COMPREHENSIVE, ModelType.COMPLETION)
    assert report.health_check.period_seconds == 2.0
    line = next(line for line in completion.log_lines() if "Health check payload" in line)
    assert "source=ModelDefault level=Comprehensive" in line

    seen = completion.probes_seen()[-1]
    assert completion.prompt(seen).endswith("Write a haiku about artificial intelligence:")
    expected = {
        "max_tokens": 50,
        "temperature": 0.8,
        "top_p": 0.95,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
    }
    assert {name: seen["sampling"][name] for name in expected} == expected


def test_only_our_probes_reach_the_engine(completion: Spied) -> None:
    """The canary of upstream, without a wait between its requests, is answered without the engine."""
    wait(lambda: completion.status("system", "/health") == 200)
    before = len(completion.seen_lines())
    probes = len(completion.probes_seen())
    wait(lambda: len(completion.probes_seen()) >= probes + 2)
    new = completion.seen_lines()[before:]
    assert all('"vllmendpoint-probe-' in line for line in new)


def test_chat_messages_are_rejected_without_a_chat_template(completion: Spied) -> None:
    digest = completion.settings({"payload": {"messages": [{"role": "user", "content": "Hi"}]}})
    completion.until(lambda report: report.configuration.settings_hash == digest, 20.0)
    (problem,) = completion.report().configuration.problems
    assert problem.field == "healthCheck.payload.messages"
    assert "is not accepted by a completion model, which has no chat template. Use prompt." in problem.message
    assert completion.report().ready
    completion.settings_file.unlink()
    completion.until(lambda report: report.configuration.state == ConfigurationState.RESOLVED, 20.0)


def test_dynamos_health_is_not_ready_while_the_engine_is_frozen(completion: Spied) -> None:
    assert_health_follows(completion)
