"""The check of a payload: what it rejects, the messages, and the values that it never repeats."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmendpoint_api import Level, ModelType, PayloadSource, payload_for
from vllmendpoint_worker.payload.forms import RequestFields
from vllmendpoint_worker.payload.token_limits import (
    DEFAULT_MAX_TOKENS,
    max_generated_tokens,
    with_token_limit,
)
from vllmendpoint_worker.payload.validation import MAX_PAYLOAD_BYTES, check_payload
from vllmendpoint_worker.setting_origin import SettingOrigin

SAMPLING = frozenset(
    {"model", "max_tokens", "temperature", "top_p", "frequency_penalty", "presence_penalty", "stream"}
)
FIELDS = RequestFields(
    completion=SAMPLING | {"prompt", "seed", "stop"},
    chat=SAMPLING | {"messages", "max_completion_tokens"},
    embedding=frozenset({"input", "model", "dimensions"}),
    classification=frozenset({"input", "model", "use_activation"}),
    pooling=frozenset({"input", "model", "task"}),
    rerank=frozenset({"query", "documents", "top_n", "model"}),
    score=frozenset({"queries", "documents", "items", "data_1", "data_2", "text_1", "text_2", "model"}),
)
SPEC = SettingOrigin(PayloadSource.SPEC, "healthCheck.payload")
SECRET = SettingOrigin(PayloadSource.ENVIRONMENT, "DYN_HEALTH_CHECK_PAYLOAD", confidential=True)


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("model_type", [*ModelType, None])
def test_every_default_of_the_guide_is_valid(level: Level, model_type: ModelType | None) -> None:
    assert check_payload(payload_for(level, model_type), SPEC, FIELDS, model_type) == []


@pytest.mark.parametrize(
    "payload",
    [
        {"prompt": "test", "max_tokens": 1, "temperature": 0},
        {"prompt": "Test", "max_tokens": 1, "temperature": 0.0, "seed": 42},
        {"prompt": [1, 2, 3]},
        {"prompt": "x", "_HEALTH_CHECK": True, "_health_check": True},
        {"messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 2, "temperature": 0.0},
        {"prompt": ["Hello"]},
        {"prompt": [[1, 2]]},
        {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
    ],
)
def test_the_custom_payloads_of_the_guide_fit_a_chat_model(payload: dict[str, object]) -> None:
    assert check_payload(payload, SPEC, FIELDS, ModelType.CHAT) == []


@pytest.mark.parametrize(
    ("payload", "field", "expected"),
    [
        (None, "healthCheck.payload", "is null"),
        ([], "healthCheck.payload", "is an empty list"),
        ("prompt", "healthCheck.payload", "is a string"),
        (7, "healthCheck.payload", "is a number"),
        ({}, "healthCheck.payload", "empty object"),
        ({1: "x"}, "healthCheck.payload", "key that is not a string"),
        ({"max_tokens": 1}, "healthCheck.payload", "none of prompt, messages and input"),
        (
            {"prompt": "a", "messages": [{"role": "user", "content": "b"}]},
            "healthCheck.payload",
            "contains both prompt and messages",
        ),
        ({"prompt": ""}, "healthCheck.payload.prompt", "is empty"),
        ({"prompt": 7}, "healthCheck.payload.prompt", "is a number"),
        ({"prompt": ["a", "b"]}, "healthCheck.payload.prompt", "contains 2 prompts"),
        ({"prompt": [[1], [2], [3]]}, "healthCheck.payload.prompt", "contains 3 prompts"),
        ({"prompt": [""]}, "healthCheck.payload.prompt", "an empty entry"),
        ({"input": ["a", []]}, "healthCheck.payload.input", "an empty entry"),
        ({"prompt": ["a", 1]}, "healthCheck.payload.prompt", "mixes token ids and strings"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "healthCheck.payload.messages",
            "without content",
        ),
        (
            {"prompt": [1, -2]},
            "healthCheck.payload.prompt",
            "contains an entry (1) that is neither a string nor",
        ),
        (
            {"prompt": [True]},
            "healthCheck.payload.prompt",
            "contains an entry (0) that is neither a string nor",
        ),
        (
            {"prompt": [[[1]]]},
            "healthCheck.payload.prompt",
            "contains an entry (0) that is neither a string nor",
        ),
        (
            {"documents": ["a"]},
            "healthCheck.payload",
            "contains documents but not query. Add query.",
        ),
        ({"text_2": "a"}, "healthCheck.payload", "contains text_2 but not text_1. Add text_1."),
        ({"messages": "hi"}, "healthCheck.payload.messages", "is a string"),
        ({"messages": []}, "healthCheck.payload.messages", "is an empty list"),
        ({"messages": ["hi"]}, "healthCheck.payload.messages", "entry (0)"),
        ({"messages": [{"role": "user"}]}, "healthCheck.payload.messages", "without content"),
        ({"messages": [{"role": "user", "content": 5}]}, "healthCheck.payload.messages", "is a number"),
        ({"text": "Hi"}, "healthCheck.payload", "Add prompt (completion), messages (chat)"),
        (
            {"prompt": "a", "max_tokens": 0},
            "healthCheck.payload.max_tokens",
            "is not a positive integer. Use at least 1.",
        ),
        (
            {"prompt": "a", "max_tokens": "1"},
            "healthCheck.payload.max_tokens",
            "is not a positive integer. Use at least 1.",
        ),
        (
            {"prompt": "a", "max_tokens": True},
            "healthCheck.payload.max_tokens",
            "is not a positive integer. Use at least 1.",
        ),
        ({"prompt": "a", "temperature": "0"}, "healthCheck.payload.temperature", "not a number"),
        ({"prompt": "a", "temperature": float("nan")}, "healthCheck.payload", "NaN"),
        ({"prompt": "a", "top_p": float("inf")}, "healthCheck.payload", "infinity"),
        ({"prompt": "a", "stream": "no"}, "healthCheck.payload.stream", "true or false"),
        (
            {"prompt": "a", "use_beam_search": True},
            "healthCheck.payload.use_beam_search",
            "is not supported in a probe",
        ),
        ({"prompt": "a" * MAX_PAYLOAD_BYTES}, "healthCheck.payload", "bytes"),
        ({"prompt": "a", "max_token": 1}, "healthCheck.payload", "Rename it to max_tokens, or remove it."),
        (
            {"prompt": "a", "max_completion_tokens": 1},
            "healthCheck.payload",
            "Rename it to max_tokens, or remove it.",
        ),
        (
            {"prompt": "a", "max_output_tokens": 1},
            "healthCheck.payload",
            "Rename it to max_tokens, or remove it.",
        ),
        (
            {"prompt": "a", "max_new_tokens": 1},
            "healthCheck.payload",
            "Rename it to max_tokens, or remove it.",
        ),
        ({"prompt": object()}, "healthCheck.payload", "JSON cannot represent"),
        ({"prompt": "a", "logit_bias": {5: 1}}, "healthCheck.payload", "key that is not a string"),
        ({"prompt": "a", "seed": 2**63}, "healthCheck.payload", "more than 64 bits"),
        ({"prompt": "\ud800"}, "healthCheck.payload", "UTF-8 cannot encode"),
        ({"prompt": "a", "\udfff": 1}, "healthCheck.payload", "UTF-8 cannot encode"),
        ({"prompt": "a", "stop": [[] for _ in range(MAX_PAYLOAD_BYTES)]}, "healthCheck.payload", "too large"),
    ],
)
def test_a_problem_names_the_field_and_the_fault(payload: object, field: str, expected: str) -> None:
    problems = check_payload(payload, SPEC, FIELDS, None)
    assert [problem.field for problem in problems][:1] == [field]
    assert expected in problems[0].message
    assert problems[0].reason == "InvalidPayload"
    assert problems[0].message.startswith(field)
    assert problems[0].message.endswith(".")


@pytest.mark.parametrize(
    ("payload", "limit"),
    [
        ({"messages": []}, {"max_tokens": DEFAULT_MAX_TOKENS}),
        ({"messages": [], "max_tokens": None}, {"max_tokens": DEFAULT_MAX_TOKENS}),
        ({"messages": [], "max_completion_tokens": None}, {"max_tokens": DEFAULT_MAX_TOKENS}),
        ({"messages": [], "max_tokens": 500}, {}),
        ({"messages": [], "max_completion_tokens": 500}, {}),
        ({"messages": [], "min_tokens": 50}, {"max_tokens": 50}),
        ({"messages": [], "min_tokens": 2}, {"max_tokens": DEFAULT_MAX_TOKENS}),
        ({"messages": [], "n": 4, "ignore_eos": True}, {"max_tokens": DEFAULT_MAX_TOKENS}),
        ({"query": "a", "documents": ["b"]}, {}),
        ({"prompt": "a"}, {}),  # vLLM's own limit is 16
        ({"prompt": "a", "max_tokens": None}, {"max_tokens": DEFAULT_MAX_TOKENS}),
        ({"input": "a"}, {}),
    ],
)
def test_a_payload_without_a_limit_gets_a_token_limit(payload: dict[str, Any], limit: dict[str, int]) -> None:
    assert with_token_limit(payload) == payload | limit


@pytest.mark.parametrize(
    ("payload", "most"),
    [
        ({"messages": []}, 16),
        ({"prompt": "a"}, 16),
        ({"prompt": "a", "max_tokens": 5, "n": 3}, 15),
        ({"messages": [], "n": 100}, 1600),
        ({"messages": [], "max_completion_tokens": 9, "max_tokens": 5}, 9),
        ({"messages": [], "min_tokens": 9000}, 9000),
        ({"input": "a"}, 0),
        ({"query": "a", "documents": ["b"]}, 0),
    ],
)
def test_the_maximum_number_of_generated_tokens_is_known(payload: dict[str, Any], most: int) -> None:
    assert max_generated_tokens(with_token_limit(payload)) == most


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("model_type", [*ModelType, None])
def test_the_payloads_of_the_guide_are_sent_unchanged(level: Level, model_type: ModelType | None) -> None:
    assert with_token_limit(payload_for(level, model_type)) == payload_for(level, model_type)


def test_a_payload_that_contains_itself_is_rejected() -> None:
    payload: dict[str, object] = {"prompt": "a"}
    payload["self"] = payload
    assert "nested more than 32 levels deep" in check_payload(payload, SPEC, FIELDS, None)[0].message


def test_a_payload_with_exponential_aliases_is_rejected() -> None:
    """Aliases of YAML can multiply a value by ten at each of 20 levels."""
    value: list[Any] = ["a"]
    for _ in range(20):
        value = [value] * 10
    assert "too large" in check_payload({"prompt": "a", "stop": value}, SPEC, FIELDS, None)[0].message


def test_a_payload_that_contains_one_long_text_many_times_is_rejected() -> None:
    text = "x" * 100_000
    (problem,) = check_payload({"prompt": "a", "stop": [text] * 100_000}, SPEC, FIELDS, None)
    assert "is too large" in problem.message


def test_many_unknown_fields_are_counted_not_listed() -> None:
    payload = {"prompt": "a"} | {f"zzz{number}": 1 for number in range(2000)}
    problems = check_payload(payload, SPEC, FIELDS, None)
    assert len(problems) == 9
    assert "contains 1992 more fields" in problems[-1].message


@pytest.mark.parametrize(
    ("payload", "model_type", "fits"),
    [
        ({"prompt": "a"}, ModelType.COMPLETION, True),
        ({"prompt": "a"}, ModelType.CHAT, True),
        ({"prompt": "a"}, ModelType.EMBEDDING, False),
        ({"messages": [{"role": "user", "content": "a"}]}, ModelType.CHAT, True),
        ({"messages": [{"role": "user", "content": "a"}]}, ModelType.COMPLETION, False),
        ({"messages": [{"role": "user", "content": "a"}]}, ModelType.EMBEDDING, False),
        ({"input": "a"}, ModelType.EMBEDDING, True),
        ({"input": "a"}, ModelType.CHAT, False),
        ({"input": "a"}, ModelType.COMPLETION, False),
        ({"input": "a"}, None, True),
    ],
)
def test_the_form_of_the_payload_must_fit_the_model_type(
    payload: dict[str, object], model_type: ModelType | None, fits: bool
) -> None:
    assert (check_payload(payload, SPEC, FIELDS, model_type) == []) is fits


def test_an_unknown_field_of_a_confidential_payload_is_not_named() -> None:
    payload = {"prompt": "hunter2-prompt", "hunter2_field": "hunter2-value", "max_tokens": "hunter2"}
    text = " ".join(
        problem.message + problem.field for problem in check_payload(payload, SECRET, FIELDS, None)
    )
    assert "hunter2" not in text
    assert "number 2 of 3" in text
    assert "DYN_HEALTH_CHECK_PAYLOAD.max_tokens" in text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


@given(
    payload=st.dictionaries(
        st.sampled_from(["prompt", "messages", "input", "max_tokens", "stream", "zzz"]), json_values
    )
    | json_values
)
def test_the_check_does_not_crash_on_any_json_value(payload: object) -> None:
    for problem in check_payload(payload, SECRET, FIELDS, ModelType.CHAT):
        assert problem.reason == "InvalidPayload"
        assert problem.message.startswith("DYN_HEALTH_CHECK_PAYLOAD")


@given(secret=st.text(alphabet="QXZ", min_size=6, max_size=12), payload=st.data())
def test_no_value_of_a_confidential_payload_is_repeated(secret: str, payload: st.DataObject) -> None:
    drawn = payload.draw(
        st.dictionaries(
            st.sampled_from(["prompt", "max_tokens", "temperature", secret]), st.just(secret), min_size=1
        )
    )
    text = json.dumps(
        [problem.wire() for problem in check_payload(drawn, SECRET, FIELDS, ModelType.EMBEDDING)]
    )
    assert secret not in text
