"""Translates a health-check payload for Dynamo's request handler, with vLLM's own models and renderers.

Chat template, tokenizer and sampling rules are vLLM's, so a probe requests the same as a user with the same
body. All sampling fields are passed on: the handler sets every attribute of ``SamplingParams`` that it
receives.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import ValidationError

from vllmendpoint_api import ModelType
from vllmendpoint_worker.errors import TranslationError
from vllmendpoint_worker.payload.expect import Expectation
from vllmendpoint_worker.payload.forms import SCORE_FORMS, Form, form_of
from vllmendpoint_worker.payload.validation import MARKERS
from vllmendpoint_worker.upstream import (
    HEALTH_CHECK_KEY,
    ChatCompletionRequest,
    ClassificationCompletionRequest,
    CompletionRequest,
    EmbeddingCompletionRequest,
    PoolingCompletionRequest,
    SamplingParams,
    get_max_tokens,
    rejection_in_response,
    rejection_of,
    score_request,
)
from vllmendpoint_worker.vllm_rejections import VLLMRejection, describe_validation_errors

__all__ = ["Translated", "Translator"]

logger = logging.getLogger(__name__)

_BY_VLLM: Final = "is rejected by vLLM"

_STOP_CONDITIONS: Final = frozenset({"max_tokens", "min_tokens", "ignore_eos", "stop_token_ids"})
"""Fields of ``SamplingParams`` that the handler reads from ``stop_conditions``."""

_SET_BY_HANDLER: Final = frozenset({"stop", "output_kind", "detokenize", "skip_clone", "stream_interval"})
"""Fields that Dynamo's handler sets itself: it streams token deltas and never detokenizes."""

_EXPLICIT: Final = ("temperature", "top_p", "top_k", "min_p")
"""Fields that are always passed on. The handler would replace a missing one by the model's own default."""

_MARKED: Final = {"_health_check": True, HEALTH_CHECK_KEY: True}
"""Marks a request as a health check for Dynamo."""


@dataclass(frozen=True, slots=True)
class Translated:
    """A payload as the request handler takes it.

    ``warm_up``: the same request with sampling on if it is off, and off if it is on. ``notes``: warnings for
    the report. ``expect``: the condition on the generated text.
    """

    request: Mapping[str, Any]
    warm_up: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()
    expect: Expectation | None = None


class Translator:
    """``renderer``: vLLM's ``OnlineRenderer``. ``defaults``: the model's default sampling parameters.
    ``pooled``: the type of a model that vLLM pools. ``scores``: whether vLLM computes scores with the model.
    """

    def __init__(
        self,
        renderer: Any,
        *,
        defaults: Mapping[str, Any],
        max_model_len: int,
        model_names: list[str],
        pooled: ModelType | None = None,
        scores: bool = False,
    ) -> None:
        self._renderer = renderer
        self._defaults = dict(defaults)
        self._max_model_len = max_model_len
        self._model_names = model_names
        self._pooled = pooled
        self._scores = scores

    async def model_type(self) -> ModelType:
        """The type of a model that generates: chat if vLLM can use its chat template, else completion."""
        request = ChatCompletionRequest(
            model=self._model_names[0], messages=[{"role": "user", "content": "Hi"}]
        )
        try:
            rendered = await self._renderer.render_chat(request)
        except Exception as error:  # noqa: BLE001  (a template may raise anything)
            logger.info("The model has no chat template that vLLM can use: error=%s", type(error).__name__)
            return ModelType.COMPLETION
        return ModelType.CHAT if isinstance(rendered, tuple) else ModelType.COMPLETION

    async def translate(self, payload: Mapping[str, Any], expect: str | None = None) -> Translated:
        """``expect``: a valid RE2 expression that the generated text must match.

        Raises TranslationError if vLLM rejects the payload.
        """
        translated = await self._translate(payload)
        if expect is None:
            return translated
        return replace(translated, expect=Expectation(expect, self._decode))

    def _decode(self, tokens: Sequence[int]) -> str:
        """The text as vLLM's detokenizer returns it to a user, without special tokens."""
        return str(self._renderer.renderer.get_tokenizer().decode(list(tokens), skip_special_tokens=True))

    async def _translate(self, payload: Mapping[str, Any]) -> Translated:
        body = {name: value for name, value in payload.items() if name not in MARKERS}
        if (model := body.get("model")) is not None and model not in self._model_names:
            raise TranslationError("model", "names a model that this worker does not serve")
        body["model"] = self._model_names[0]
        form = form_of(payload)
        if form is None:
            raise TranslationError("", "has no messages, prompt or input")
        if form is Form.INPUT:
            return self._pooling(body)
        if form in SCORE_FORMS:
            return self._scoring(form, body)
        return await self._generation(form, body)

    async def _generation(self, form: Form, body: Mapping[str, Any]) -> Translated:
        model = ChatCompletionRequest if form is Form.MESSAGES else CompletionRequest
        request = _validated(model.model_validate, body)
        tokens = await self._render(request, form)
        maximum = request.max_tokens
        if form is Form.MESSAGES and request.max_completion_tokens is not None:
            maximum = request.max_completion_tokens
        try:
            maximum = get_max_tokens(self._max_model_len, maximum, len(tokens), self._defaults)
        except ValueError:
            maximum = 0
        if maximum < 1:
            raise TranslationError(
                form.value,
                f"takes {len(tokens)} tokens and leaves none to generate, because the model's context has "
                f"{self._max_model_len}",
            )
        with _as_translation_error():
            params = request.to_sampling_params(maximum, self._defaults)
        return _generation_request(tokens, params)

    async def _render(self, request: Any, form: Form) -> list[int]:
        """The token ids of the prompt."""
        with _as_translation_error():
            if form is Form.MESSAGES:
                rendered = await self._renderer.render_chat(request)
                inputs = rendered[1] if isinstance(rendered, tuple) else None
            else:
                rendered = await self._renderer.render_completion(request)
                inputs = rendered if isinstance(rendered, list) else None
        if (rejection := rejection_in_response(rendered)) is not None:
            raise TranslationError("", _BY_VLLM, rejection)
        if not inputs or len(inputs) != 1:
            raise TranslationError(
                form.value, f"results in {len(inputs or ())} prompts, but a probe has exactly one"
            )
        if inputs[0].get("type", "token") not in ("token", "tokens"):
            raise TranslationError(form.value, "contains more than text, which probes do not support")
        return list(inputs[0]["prompt_token_ids"])

    def _scoring(self, form: Form, body: Mapping[str, Any]) -> Translated:
        if not self._scores:
            raise TranslationError(
                form.value, "cannot be used, because vLLM computes no scores with this model"
            )
        _validated(score_request, body)
        return _unchanged(body)

    def _pooling(self, body: dict[str, Any]) -> Translated:
        """Dynamo's classify handler recognizes a request to pool by its encoding, which its frontend sets."""
        if self._pooled is ModelType.POOLING:
            _validated(PoolingCompletionRequest.model_validate, body)
            return _unchanged({"encoding_format": "float"} | body)
        classifies = self._pooled in (ModelType.CLASSIFY, ModelType.SCORE)
        request = ClassificationCompletionRequest if classifies else EmbeddingCompletionRequest
        _validated(request.model_validate, body)
        return _unchanged(body)


def _generation_request(tokens: list[int], params: Any) -> Translated:
    default = SamplingParams()
    options = {
        name: value
        for name in params.__struct_fields__
        if not name.startswith("_")
        and name not in _STOP_CONDITIONS | _SET_BY_HANDLER
        and (value := getattr(params, name)) is not None
        and value != getattr(default, name)
    }
    options |= {name: getattr(params, name) for name in _EXPLICIT}
    request = {
        "token_ids": tokens,
        "sampling_options": options,
        "stop_conditions": {
            "max_tokens": params.max_tokens,
            "min_tokens": params.min_tokens,
            "ignore_eos": params.ignore_eos,
            "stop_token_ids": list(params.stop_token_ids or []),
        },
        "output_options": {},
        **_MARKED,
    }
    warm_up = request | {
        "sampling_options": options | {"temperature": 0.0 if params.temperature > 0 else 0.7},
        "stop_conditions": {"max_tokens": 1},
    }
    notes: tuple[str, ...] = ()
    if params.stop:
        notes = ("The payload's stop ends no probe, because Dynamo's worker has no text. max_tokens does.",)
    return Translated(request, warm_up, notes)


def _unchanged(body: Mapping[str, Any]) -> Translated:
    request = {name: value for name, value in body.items() if name != "user" and value is not None}
    return Translated(request | _MARKED, None)


def _validated(validate: Callable[[dict[str, Any]], Any], body: Mapping[str, Any]) -> Any:
    with _as_translation_error():
        try:
            return validate(dict(body))
        except ValidationError as error:
            field, sentence = describe_validation_errors(
                error.errors(include_input=False, include_url=False), body
            )
            raise TranslationError(field, _BY_VLLM, VLLMRejection(sentence)) from error


@contextmanager
def _as_translation_error() -> Iterator[None]:
    """vLLM's validators, its renderers and the model's template may raise anything. It must reject the
    payload and not end the worker.
    """
    try:
        yield
    except TranslationError:
        raise
    except Exception as error:
        rejection = rejection_of(error) or VLLMRejection(type(error).__name__)
        raise TranslationError("", _BY_VLLM, rejection) from error
