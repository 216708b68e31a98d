"""The forms of a health-check payload, and the types of model that accept each of them. Pure."""

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
    """Named after the field that contains the question."""

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
"""Form of a request for scores -> the fields of which one contains the texts to compare."""

SCORE_FORMS: Final = frozenset(SCORE_PARTNERS)

SUGGESTED_FORMS: Final = (Form.PROMPT, Form.MESSAGES, Form.INPUT, Form.QUERY, Form.QUERIES)
"""Forms that a message suggests for a misspelt field."""

_FORMS: Final[Mapping[ModelType, tuple[frozenset[Form], str, str]]] = {
    ModelType.CHAT: (
        frozenset({Form.PROMPT, Form.MESSAGES}),
        "a generative model",
        "Use prompt or messages.",
    ),
    ModelType.COMPLETION: (
        frozenset({Form.PROMPT}),
        "a generative model",
        "Use prompt.",
    ),
    ModelType.EMBEDDING: (SCORE_FORMS | {Form.INPUT}, "an embedding model", "Use input."),
    ModelType.CLASSIFY: (frozenset({Form.INPUT}), "a classification model", "Use input."),
    ModelType.SCORE: (
        SCORE_FORMS | {Form.INPUT},
        "a scoring model",
        "Use query and documents, or input.",
    ),
    ModelType.POOLING: (SCORE_FORMS | {Form.INPUT}, "a pooling model", "Use input."),
}
"""Model type -> the accepted forms, the name of the type in a message, and the fix for another form."""


def form_of(payload: Mapping[str, Any]) -> Form | None:
    """The form of a checked payload; None if it has none or several."""
    forms = [form for form in Form if form.value in payload]
    return forms[0] if len(forms) == 1 else None


def form_mismatch(form: Form, model_type: ModelType | None) -> tuple[str, str] | None:
    """The fault and the fix if a model of this type does not accept the form, else None."""
    if model_type is None or form in _FORMS[model_type][0]:
        return None
    if model_type is ModelType.COMPLETION and form is Form.MESSAGES:
        return "is not accepted by a completion model, which has no chat template", "Use prompt."
    _, model, fix = _FORMS[model_type]
    return f"is not accepted by {model}", fix


def request_name(form: Form, model_type: ModelType | None) -> str:
    """The name of vLLM's request, for example ``chat`` or ``classification``."""
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
"""Requests of which Dynamo's handlers read fewer fields than vLLM's HTTP server."""


@dataclass(frozen=True, slots=True)
class RequestFields:
    """Field names of vLLM's request models, such as ``CompletionRequest``. For pooling models, only the
    fields that Dynamo's handlers read. Empty if unknown.
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
