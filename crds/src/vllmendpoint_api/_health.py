"""Health check payloads and their precedence. The code, the documentation and the tests use this table.

Source: the health check payload guide, sections "Default Payloads", "Model-Specific Payloads" and
"Configuration Priority".
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

__all__ = [
    "DEFAULT_FAILURE_THRESHOLD",
    "DEFAULT_LEVEL",
    "DEFAULT_PERIOD_SECONDS",
    "DEFAULT_RESTART_AFTER_SECONDS",
    "DEFAULT_SUCCESS_THRESHOLD",
    "DEFAULT_TIMEOUT_SECONDS",
    "POOLED",
    "PRECEDENCE",
    "Level",
    "Mode",
    "ModelType",
    "PayloadSource",
    "PrecedenceRow",
    "payload_for",
]


class Level(StrEnum):
    """Levels of the predefined payloads."""

    MINIMAL = "Minimal"
    STANDARD = "Standard"
    COMPREHENSIVE = "Comprehensive"


class Mode(StrEnum):
    """Modes of the health check."""

    ENFORCE = "Enforce"
    """The worker probes its engine, and its readiness follows the verdict."""
    OBSERVE = "Observe"
    """The worker probes its engine and reports the verdict. Its readiness does not depend on the verdict."""
    DISABLED = "Disabled"
    """The worker sends no probes."""


class ModelType(StrEnum):
    """Task of a model. ``spec.model.type`` accepts the first three; the worker detects all of them."""

    CHAT = "Chat"
    COMPLETION = "Completion"
    EMBEDDING = "Embedding"
    CLASSIFY = "Classify"
    """Assigns a label to a text."""
    SCORE = "Score"
    """Scores how well a text matches a query (reranker, cross-encoder)."""
    POOLING = "Pooling"
    """Returns a vector or a label for each token."""


POOLED: Final = frozenset({ModelType.EMBEDDING, ModelType.CLASSIFY, ModelType.SCORE, ModelType.POOLING})
"""Types of models that do not generate text. vLLM runs them with its pooling runner."""


class PayloadSource(StrEnum):
    """Source of a payload, as reported in ``status.healthCheck.source``."""

    SPEC = "Spec"
    RUNTIME = "Runtime"
    ENVIRONMENT = "Environment"
    CONFIG_FILE = "ConfigFile"
    CUSTOM_DEFAULT = "CustomDefault"
    MODEL_DEFAULT = "ModelDefault"
    GENERIC_DEFAULT = "GenericDefault"


@dataclass(frozen=True, slots=True)
class PrecedenceRow:
    """One source of payloads."""

    source: PayloadSource
    level: int
    """Level of precedence in the guide. 1 is the highest."""
    where: str
    """Where a user sets the payload, for documentation and messages."""


PRECEDENCE: Final[tuple[PrecedenceRow, ...]] = (
    PrecedenceRow(PayloadSource.SPEC, 1, "`healthCheck.payload` or `healthCheck.level` of the VLLMEndpoint"),
    PrecedenceRow(PayloadSource.RUNTIME, 1, "`health_check_payload=` passed to `serve_endpoint()`"),
    PrecedenceRow(PayloadSource.ENVIRONMENT, 2, "`DYN_HEALTH_CHECK_PAYLOAD` (JSON, or `@file`)"),
    PrecedenceRow(PayloadSource.CONFIG_FILE, 3, "`health_check_payload` of the config file"),
    PrecedenceRow(PayloadSource.CUSTOM_DEFAULT, 4, "`set_custom_health_check_payload()`"),
    PrecedenceRow(PayloadSource.MODEL_DEFAULT, 4, "the default for the model's type, at the selected level"),
    PrecedenceRow(PayloadSource.GENERIC_DEFAULT, 5, "the minimal payload, if the type cannot be determined"),
)
"""The first source that sets a payload wins. The report lists the others under ``ignored``."""

DEFAULT_LEVEL: Final = Level.MINIMAL
DEFAULT_PERIOD_SECONDS: Final = 30
DEFAULT_TIMEOUT_SECONDS: Final = 5
DEFAULT_FAILURE_THRESHOLD: Final = 2
DEFAULT_SUCCESS_THRESHOLD: Final = 1
DEFAULT_RESTART_AFTER_SECONDS: Final = 600

_PROMPTS: Final[dict[Level, tuple[str, str, dict[str, Any]]]] = {
    # level: (completion prompt, chat content, sampling)
    Level.MINIMAL: ("1", "Hi", {"max_tokens": 1, "temperature": 0.0}),
    Level.STANDARD: ("The sky is", "The sky is", {"max_tokens": 5, "temperature": 0.7}),
    Level.COMPREHENSIVE: (
        "Write a haiku about artificial intelligence:",
        "Write a haiku about artificial intelligence:",
        {
            "max_tokens": 50,
            "temperature": 0.8,
            "top_p": 0.95,
            "frequency_penalty": 0.5,
            "presence_penalty": 0.5,
        },
    ),
}


def payload_for(level: Level, model_type: ModelType | None) -> dict[str, Any]:
    """Return the guide's payload for a level and a model type, as a new dict.

    ``model_type=None`` is the generic default, the completion form. Models that do not generate text have one
    payload for all levels. The guide defines it for embedding models only.
    """
    marker = {"_health_check": True}
    if model_type is ModelType.SCORE:
        return {"query": "test", "documents": ["test"], **marker}
    if model_type in POOLED:
        return {"input": "test", **marker}
    prompt, content, sampling = _PROMPTS[level]
    if model_type is ModelType.CHAT:
        form: dict[str, Any] = {"messages": [{"role": "user", "content": content}]}
    else:
        form = {"prompt": prompt}
    return {**form, **sampling, "stream": False, **marker}
