"""Limits the number of tokens that a probe generates. Pure."""

from collections.abc import Mapping
from typing import Any, Final

from .forms import Form, form_of

__all__ = ["DEFAULT_MAX_TOKENS", "HIGH_TOKEN_COUNT", "max_generated_tokens", "with_token_limit"]

DEFAULT_MAX_TOKENS: Final = 16
"""Limit for a payload without one: vLLM's own default for completions."""

HIGH_TOKEN_COUNT: Final = 4096
"""The report warns of a probe that may generate more tokens."""


def with_token_limit(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload, with ``max_tokens`` added if neither the payload nor vLLM limits the tokens.

    vLLM's default for a chat, and for ``max_tokens: null``, is the rest of the model's context.
    """
    form = form_of(payload)
    limited = any(payload.get(name) is not None for name in ("max_tokens", "max_completion_tokens"))
    if limited or not (form is Form.MESSAGES or (form is Form.PROMPT and "max_tokens" in payload)):
        return dict(payload)
    minimum = payload.get("min_tokens")
    limit = max(DEFAULT_MAX_TOKENS, minimum) if isinstance(minimum, int) else DEFAULT_MAX_TOKENS
    return dict(payload) | {"max_tokens": limit}


def max_generated_tokens(payload: Mapping[str, Any]) -> int:
    """Tokens that a probe with a limited payload may generate; 0 for a model that does not generate."""
    if form_of(payload) not in (Form.PROMPT, Form.MESSAGES):
        return 0
    limit = payload.get("max_completion_tokens")
    if limit is None:
        limit = payload.get("max_tokens", DEFAULT_MAX_TOKENS)
    answers = payload.get("n") or 1
    return limit * answers if isinstance(limit, int) and isinstance(answers, int) else 0
