"""vLLM's rejections of a payload: the field they name, and how much of the message a report may contain."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from vllmendpoint_worker.vllm_rejections import (
    MAX_MESSAGE_CHARACTERS,
    VLLMRejection,
    describe_validation_errors,
    find_rejected_field,
    publishable_message,
)

PROMPT = {"prompt": "Hello", "max_tokens": 1}
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


@pytest.mark.parametrize(
    ("payload", "rejection", "field"),
    [
        (PROMPT | {"logprobs": 50}, VLLMRejection("Requested sample logprobs of 50", "logprobs"), "logprobs"),
        (
            CHAT | {"logprobs": True, "top_logprobs": 50},
            VLLMRejection("Requested sample logprobs of 50", "logprobs"),
            "top_logprobs",
        ),
        (
            PROMPT | {"logit_bias": {"5000": 1}},
            VLLMRejection("token_id(s) [5000] in logit_bias contain"),
            "logit_bias",
        ),
        (CHAT | {"max_completion_tokens": 9}, VLLMRejection("too many", "max_tokens"), "max_tokens"),
        (
            {"messages": [], "max_completion_tokens": 9},
            VLLMRejection("too many", "max_tokens"),
            "max_completion_tokens",
        ),
        (
            CHAT | {"response_format": {"type": "json_schema"}},
            VLLMRejection("Invalid grammar", "structured_outputs"),
            "response_format",
        ),
        (
            CHAT | {"tool_choice": "auto"},
            VLLMRejection('"auto" tool choice needs `tool_choice`.'),
            "tool_choice",
        ),
        (CHAT, VLLMRejection("The decoder prompt (length 2000) is longer than the maximum"), "messages"),
        ({"input": "a b"}, VLLMRejection("You passed 600 input tokens"), "input"),
        ({"input": "a", "dimensions": 9}, VLLMRejection("Model does not support dimensions"), "dimensions"),
        (
            PROMPT | {"structured_outputs": {"regex": "(["}},
            VLLMRejection("Grammar error: at 1(8)"),
            "structured_outputs",
        ),
        (
            PROMPT | {"structured_outputs": {}},
            VLLMRejection("Choice '[]' cannot be empty"),
            "structured_outputs",
        ),
        (PROMPT, VLLMRejection("This model's maximum context ...", "input_tokens"), ""),
        (PROMPT, VLLMRejection("maximum context, your prompt contains", "input_tokens"), "prompt"),
        ({"prompt": [5000]}, VLLMRejection("Token id 5000 is out of vocabulary"), "prompt"),
        ({"input": [5000]}, VLLMRejection("Token id 5000 is out of vocabulary"), "input"),
        (CHAT | {"tools": []}, VLLMRejection('"auto" tool choice requires --tool-call-parser'), "tools"),
        (
            CHAT | {"tools": [], "tool_choice": "auto"},
            VLLMRejection('"auto" tool choice requires'),
            "tool_choice",
        ),
        (
            CHAT | {"chat_template": "x"},
            VLLMRejection("Chat template is passed with request"),
            "chat_template",
        ),
        (PROMPT, VLLMRejection("Something else"), ""),
        (
            {"messages": [], "min_tokens": 9},
            VLLMRejection("max_tokens=9 is too many", "max_tokens"),
            "min_tokens",
        ),
        (CHAT, VLLMRejection("toy is not a multimodal model"), "messages"),
        ({"query": "a", "documents": []}, VLLMRejection("You passed 600 input tokens"), "documents"),
        (PROMPT | {"model": "m"}, VLLMRejection("the model refuses"), ""),
    ],
)
def test_a_rejection_names_the_field_of_the_payload(
    payload: dict[str, Any], rejection: VLLMRejection, field: str
) -> None:
    assert find_rejected_field(rejection, payload) == field


SECRET = "hunter2-is-secret"


@pytest.mark.parametrize(
    ("payload", "sentence", "expected"),
    [
        (PROMPT | {"logprobs": 50}, "logprobs of 50 of at most 20.", "logprobs of *** of at most 20"),
        ({"prompt": [7, 50]}, "Token id 50 is out of 20 and 507", "Token id *** is out of 20 and 507"),
        ({"prompt": SECRET}, f"cannot read '{SECRET}' here", "cannot read '***' here"),
        ({"prompt": SECRET}, "cannot read 'hunter2' here", ""),
        ({"prompt": "ab\nHUNTER2"}, "cannot read 'hunter' here", ""),
        ({"structured_outputs": {"json": {"hunter2": {}}}}, "no type hunter2", "no type ***"),
        ({"tools": [{"function": {"name": "hunter2"}}]}, "no tool `hunter2x`", ""),
        ({"prompt": "the"}, "the others are theirs", "*** others are theirs"),
    ],
)
def test_a_confidential_payload_is_masked(payload: dict[str, Any], sentence: str, expected: str) -> None:
    assert publishable_message(VLLMRejection(sentence), payload, confidential=True) == expected


def test_a_payload_that_is_not_confidential_keeps_vllms_message() -> None:
    sentence = "Requested sample logprobs of 50,\n which is greater than max allowed: 20."
    expected = "Requested sample logprobs of 50, which is greater than max allowed: 20"
    assert (
        publishable_message(VLLMRejection(sentence), {"prompt": "a", "logprobs": 50}, confidential=False)
        == expected
    )


def test_a_message_is_bounded() -> None:
    assert (
        len(publishable_message(VLLMRejection("x" * 10_000), {}, confidential=False))
        <= MAX_MESSAGE_CHARACTERS + 4
    )


class Payload(BaseModel):
    stop: str | list[str] = ""
    tools: list[dict[str, dict[str, str]]] = []
    limit: int = 1


@pytest.mark.parametrize(
    ("body", "field", "sentence"),
    [
        ({"stop": 5}, "stop", "Input should be a valid string or Input should be a valid list"),
        ({"stop": [5]}, "stop", "Input should be a valid string or [0]: Input should be a valid string"),
        (
            {"tools": [{"function": {"name": 5}}]},
            "tools",
            "[0].function.name: Input should be a valid string",
        ),
        ({"limit": "x", "stop": 5}, "stop", "Input should be a valid string or Input should be a valid list"),
        (
            {"limit": "x"},
            "limit",
            "Input should be a valid integer, unable to parse string as an integer",
        ),
    ],
)
def test_validation_errors_name_location_and_types(body: dict[str, Any], field: str, sentence: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Payload.model_validate(body)
    assert describe_validation_errors(raised.value.errors(), body) == (field, sentence)


def test_validation_errors_name_a_missing_field() -> None:
    class Inner(BaseModel):
        name: str

    class Outer(BaseModel):
        tools: list[Inner]

    with pytest.raises(ValidationError) as raised:
        Outer.model_validate({"tools": [{}]})
    assert describe_validation_errors(raised.value.errors(), {"tools": [{}]}) == (
        "tools",
        "[0].name: Field required",
    )
