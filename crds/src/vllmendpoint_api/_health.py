"""Health-check payloads and their precedence: the one table that code, docs and tests share.

Source: the health-check payload guide ("Default Payloads", "Model-Specific Payloads",
"Configuration Priority"); what the guide leaves open is settled by the design, section 4.
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
    "rank",
]


class Level(StrEnum):
    MINIMAL = "Minimal"
    STANDARD = "Standard"
    COMPREHENSIVE = "Comprehensive"


class Mode(StrEnum):
    ENFORCE = "Enforce"
    """Probe, and gate readiness by the verdict."""
    OBSERVE = "Observe"
    """Probe and report; readiness does not depend on the verdict."""
    DISABLED = "Disabled"
    """Do not probe."""


class ModelType(StrEnum):
    """What a model is asked for. ``spec.model.type`` has the first three; the worker detects all of them."""

    CHAT = "Chat"
    COMPLETION = "Completion"
    EMBEDDING = "Embedding"
    CLASSIFY = "Classify"
    """A label for a text."""
    SCORE = "Score"
    """How well a text answers a query: a reranker, a cross-encoder."""
    POOLING = "Pooling"
    """A vector or a label for every token."""


POOLED: Final = frozenset({ModelType.EMBEDDING, ModelType.CLASSIFY, ModelType.SCORE, ModelType.POOLING})
"""Types of models that do not generate: vLLM runs them with its pooling runner."""


class PayloadSource(StrEnum):
    """Where the payload in force came from, as reported in ``status.healthCheck.source``."""

    SPEC = "Spec"
    RUNTIME = "Runtime"
    ENVIRONMENT = "Environment"
    CONFIG_FILE = "ConfigFile"
    CUSTOM_DEFAULT = "CustomDefault"
    MODEL_DEFAULT = "ModelDefault"
    GENERIC_DEFAULT = "GenericDefault"


@dataclass(frozen=True, slots=True)
class PrecedenceRow:
    source: PayloadSource
    level: int
    """The guide's level, 1 the highest."""
    where: str
    """Where a user sets it, for the docs and for messages."""


PRECEDENCE: Final[tuple[PrecedenceRow, ...]] = (
    PrecedenceRow(PayloadSource.SPEC, 1, "`healthCheck.payload` or `healthCheck.level` of the VLLMEndpoint"),
    PrecedenceRow(PayloadSource.RUNTIME, 1, "`health_check_payload=` passed to `serve_endpoint()`"),
    PrecedenceRow(PayloadSource.ENVIRONMENT, 2, "`DYN_HEALTH_CHECK_PAYLOAD` (JSON, or `@file`)"),
    PrecedenceRow(PayloadSource.CONFIG_FILE, 3, "`health_check_payload` of the config file"),
    PrecedenceRow(PayloadSource.CUSTOM_DEFAULT, 4, "`set_custom_health_check_payload()`"),
    PrecedenceRow(PayloadSource.MODEL_DEFAULT, 4, "the default for the model's type, at the level chosen"),
    PrecedenceRow(PayloadSource.GENERIC_DEFAULT, 5, "the minimal payload, if the type cannot be determined"),
)
"""First match wins. A payload that is outranked is reported under ``ignored``."""

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


def rank(source: PayloadSource) -> int:
    """Position in :data:`PRECEDENCE`, 0 the strongest."""
    return next(i for i, row in enumerate(PRECEDENCE) if row.source is source)


def payload_for(level: Level, model_type: ModelType | None) -> dict[str, Any]:
    """The guide's payload for a level and a model type; a new dict on every call.

    ``model_type=None`` is the generic default: the completion form.
    Models that do not generate have one payload whatever the level; the guide has one for embedding only.
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
