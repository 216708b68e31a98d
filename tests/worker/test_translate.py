"""From a payload to Dynamo's request and then to vLLM's parameters: no field is lost.

The tests use vLLM's renderers, request models and parameters, and Dynamo's reading of its request. No engine
runs.
"""

import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from vllmendpoint_api import Level, ModelType, payload_for

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn while they are imported
    from dynamo.vllm.handlers import build_sampling_params
    from hypothesis import given, settings
    from hypothesis import strategies as st
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.renderers import renderer_from_config
    from vllm.renderers.online_renderer import OnlineRenderer

    from vllmendpoint_worker import upstream
    from vllmendpoint_worker.engine.translate import Translator
    from vllmendpoint_worker.errors import TranslationError
    from vllmendpoint_worker.payload.validation import MARKERS

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # from vLLM, for deprecated fields
]
LENGTH = 256
NOT_CARRIED = {"output_kind", "detokenize", "skip_clone", "stream_interval", "stop"}
"""Dynamo's worker sets these itself: it streams token deltas and sees no text."""


@pytest_asyncio.fixture(scope="module")
async def translator(toy_model: Path) -> AsyncIterator[Translator]:
    arguments = AsyncEngineArgs(model=str(toy_model), max_model_len=LENGTH, enforce_eager=True)
    config = arguments.create_engine_config()
    renderer = OnlineRenderer(
        model_config=config.model_config,
        renderer=renderer_from_config(config),
        request_logger=None,
        chat_template=None,
        chat_template_content_format="auto",
    )
    yield Translator(renderer, defaults={}, max_model_len=LENGTH, model_names=["toy"])


def form(model_type: ModelType) -> Any:
    chat = model_type is ModelType.CHAT
    return upstream.ChatCompletionRequest if chat else upstream.CompletionRequest


async def differences(
    translator: Translator, payload: dict[str, Any], model_type: ModelType
) -> dict[str, tuple[Any, Any]]:
    """Fields with different values: that of vLLM for the payload, and that of Dynamo for our request."""
    translated = await translator.translate(payload)
    received = build_sampling_params(dict(translated.request), {}, LENGTH)
    body = {name: value for name, value in payload.items() if name not in MARKERS}
    request = form(model_type).model_validate(body | {"model": "toy"})
    requested = request.max_completion_tokens if "max_completion_tokens" in body else request.max_tokens
    limit = LENGTH - len(translated.request["token_ids"])
    expected = request.to_sampling_params(limit if requested is None else min(requested, limit), {})
    return {
        name: (getattr(expected, name), getattr(received, name))
        for name in expected.__struct_fields__
        if name not in NOT_CARRIED and not name.startswith("_")
        if getattr(expected, name) != getattr(received, name)
    }


@pytest.mark.parametrize("model_type", [ModelType.CHAT, ModelType.COMPLETION])
@pytest.mark.parametrize("level", list(Level))
async def test_every_level_of_the_guide_is_translated(
    translator: Translator, level: Level, model_type: ModelType
) -> None:
    payload = payload_for(level, model_type)
    assert await differences(translator, payload, model_type) == {}
    request = (await translator.translate(payload)).request
    fields = {"temperature", "top_p", "frequency_penalty", "presence_penalty"} & payload.keys()
    assert {name: request["sampling_options"][name] for name in fields} == {
        name: payload[name] for name in fields
    }
    assert request["stop_conditions"]["max_tokens"] == payload["max_tokens"]
    assert all(request[marker] is True for marker in MARKERS)


COMMON: dict[str, Any] = {
    "max_tokens": st.integers(1, 99),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(-1, 50),
    "min_p": st.floats(0, 1),
    "seed": st.integers(0, 2**31),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.1, 2),
    "min_tokens": st.integers(0, 1),
    "ignore_eos": st.booleans(),
    "stop_token_ids": st.lists(st.integers(0, 900), max_size=2),
    "logit_bias": st.dictionaries(st.integers(0, 900).map(str), st.floats(-50, 50), max_size=2),
    "allowed_token_ids": st.none() | st.lists(st.integers(0, 900), min_size=1, max_size=3, unique=True),
    "bad_words": st.lists(st.sampled_from(["sky", "blue"]), max_size=2, unique=True),
    "skip_special_tokens": st.booleans(),
    "spaces_between_special_tokens": st.booleans(),
    "include_stop_str_in_output": st.booleans(),
    "n": st.integers(1, 2),
    "vllm_xargs": st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 9), max_size=1),
    "prompt_logprobs": st.none() | st.integers(0, 2),
}
PAYLOADS = {
    ModelType.COMPLETION: st.fixed_dictionaries(
        {"prompt": st.text(min_size=1, max_size=9) | st.lists(st.integers(0, 900), min_size=1, max_size=5)},
        optional=COMMON | {"logprobs": st.none() | st.integers(0, 3), "echo": st.booleans()},
    ),
    ModelType.CHAT: st.fixed_dictionaries(
        {"messages": st.just([{"role": "user", "content": "Say hi"}])},
        optional=COMMON
        | {
            "max_completion_tokens": st.integers(1, 99),
            "logprobs": st.booleans(),
            "top_logprobs": st.integers(0, 3),
            "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
        },
    ),
}


@pytest.mark.parametrize("model_type", [ModelType.CHAT, ModelType.COMPLETION])
async def test_no_sampling_field_of_a_random_payload_is_lost(
    translator: Translator, model_type: ModelType
) -> None:
    """A payload that vLLM accepts reaches the engine as vLLM would send it. Any other is rejected."""
    drawn: list[dict[str, Any]] = []

    @settings(max_examples=300, derandomize=True, database=None, deadline=None)
    @given(PAYLOADS[model_type])
    def draw(payload: dict[str, Any]) -> None:
        drawn.append(payload)

    draw()
    carried = 0
    for payload in drawn:
        try:
            differing = await differences(translator, payload, model_type)
        except TranslationError:
            continue
        assert differing == {}, payload
        carried += 1
    assert carried > len(drawn) / 4


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize("model_type", [ModelType.CHAT, ModelType.COMPLETION, ModelType.EMBEDDING])
async def test_payloads_that_vllm_does_not_accept_raise_only_translation_errors(
    translator: Translator, model_type: ModelType
) -> None:
    fields = upstream.request_fields()
    form_field, names = {
        ModelType.CHAT: ("messages", fields.chat),
        ModelType.COMPLETION: ("prompt", fields.completion),
        ModelType.EMBEDDING: ("input", fields.embedding),
    }[model_type]
    good = [{"role": "user", "content": "x"}] if form_field == "messages" else "x"
    drawn: list[dict[str, Any]] = []

    @settings(max_examples=300, derandomize=True, database=None, deadline=None)
    @given(
        st.dictionaries(st.sampled_from(sorted(names - {"model"})), JUNK, max_size=2), JUNK | st.just(good)
    )
    def draw(more: dict[str, Any], content: Any) -> None:
        drawn.append({form_field: content} | more)

    draw()
    rejected = set()
    for payload in drawn:
        try:
            await translator.translate(payload)
        except TranslationError as error:
            rejected.add((error.field, *payload))
    assert rejected
    for field, *names_given in rejected:
        assert field in {"", *names_given}


async def test_the_text_is_decoded_by_the_tokenizer_of_the_model(translator: Translator) -> None:
    payload = {"prompt": "The capital of France is"}
    translated = await translator.translate(payload, "France")
    tokens = translated.request["token_ids"]
    assert translated.expect is not None
    assert translated.expect.decode(tokens).endswith("The capital of France is")
    assert translated.expect.is_met([tokens])
    assert not translated.expect.is_met([tokens[:1]])
    assert "<|im_end|>" not in translated.expect.decode([*tokens, 2])  # special tokens are not text
