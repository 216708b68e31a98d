"""The forms that a payload can have, and which of them a model can be asked with. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from vllmendpoint_api import ModelType

__all__ = [
    "READ_BY_DYNAMO",
    "SCORE_FORMS",
    "SCORE_PARTNERS",
    "SUGGESTED_FORMS",
    "Form",
    "RequestFields",
    "form_mismatch",
    "form_of",
    "request_name",
]


class Form(StrEnum):
    """The forms of payload, named after the field that carries the question."""

    PROMPT = "prompt"
    MESSAGES = "messages"
    INPUT = "input"
    QUERY = "query"
    """vLLM's rerank request."""
    QUERIES = "queries"
    DATA = "data_1"
    TEXT = "text_1"
    """vLLM's score request has three spellings."""


SCORE_PARTNERS: Final[Mapping[Form, tuple[str, ...]]] = {
    Form.QUERY: ("documents",),
    Form.QUERIES: ("documents", "items"),
    Form.DATA: ("data_2",),
    Form.TEXT: ("text_2",),
}
"""Form that asks for scores -> the fields of which one holds what the question is compared with."""

SCORE_FORMS: Final = frozenset(SCORE_PARTNERS)

SUGGESTED_FORMS: Final = (Form.PROMPT, Form.MESSAGES, Form.INPUT, Form.QUERY, Form.QUERIES)
"""Forms that a misspelt field may have been meant for."""

_FORMS: Final[Mapping[ModelType, tuple[frozenset[Form], str, str]]] = {
    ModelType.CHAT: (
        frozenset({Form.PROMPT, Form.MESSAGES}),
        "a model that generates",
        "ask with prompt or messages",
    ),
    ModelType.COMPLETION: (
        frozenset({Form.PROMPT}),
        "a model that generates",
        "ask with prompt",
    ),
    ModelType.EMBEDDING: (SCORE_FORMS | {Form.INPUT}, "an embedding model", "ask with input"),
    ModelType.CLASSIFY: (frozenset({Form.INPUT}), "a model that classifies", "ask with input"),
    ModelType.SCORE: (
        SCORE_FORMS | {Form.INPUT},
        "a model that scores",
        "ask with query and documents, or with input",
    ),
    ModelType.POOLING: (SCORE_FORMS | {Form.INPUT}, "a pooling model", "ask with input"),
}
"""Model type -> the forms that fit it, what to call such a model, and what to ask it with."""


def form_of(payload: Mapping[str, Any]) -> Form | None:
    """The form of a checked payload, or None where it has none or several."""
    forms = [form for form in Form if form.value in payload]
    return forms[0] if len(forms) == 1 else None


def form_mismatch(form: Form, model_type: ModelType | None) -> tuple[str, str] | None:
    """What is wrong with the form for a model of this type (what, fix); None where nothing is."""
    if model_type is None or form in _FORMS[model_type][0]:
        return None
    if model_type is ModelType.COMPLETION and form is Form.MESSAGES:
        return "does not fit a completion model, which has no chat template", "ask with prompt"
    _, model, fix = _FORMS[model_type]
    return f"does not fit {model}", fix


def request_name(form: Form, model_type: ModelType | None) -> str:
    """The name of vLLM's request: ``chat``, ``classification``, ..."""
    if form is Form.INPUT:
        names = {
            ModelType.CLASSIFY: "classification",
            ModelType.SCORE: "classification",
            ModelType.POOLING: "pooling",
        }
        return names.get(model_type, "embedding") if model_type is not None else "embedding"
    names_of = {Form.PROMPT: "completion", Form.MESSAGES: "chat", Form.QUERY: "rerank"}
    return names_of.get(form, "score")


READ_BY_DYNAMO: Final = frozenset({"embedding", "classification", "pooling"})
"""Requests of which Dynamo's handlers read fewer fields than vLLM's HTTP server does."""


@dataclass(frozen=True, slots=True)
class RequestFields:
    """Field names of vLLM's request models: ``CompletionRequest``, ``ChatCompletionRequest``,
    ``Embedding...``; of those for pooling models, what Dynamo's handlers read. Empty: not known.
    """

    completion: frozenset[str]
    chat: frozenset[str]
    embedding: frozenset[str]
    classification: frozenset[str] = frozenset()
    pooling: frozenset[str] = frozenset()
    rerank: frozenset[str] = frozenset()
    score: frozenset[str] = frozenset()

    def for_form(self, form: Form, model_type: ModelType | None) -> frozenset[str]:
        found: frozenset[str] = getattr(self, request_name(form, model_type))
        return found
