"""Checks whether a health-check payload is a valid request for the model. Pure.

``docs/guide/health-check-payloads.md`` ("Troubleshooting") leaves this check to the user. The worker compares
the payload with the fields of vLLM's own request models, because vLLM accepts unknown fields and Dynamo drops
them without a warning.

No message repeats a value of the payload. If the payload is confidential (an environment variable, an
``@file``), no message repeats a field name that is not vLLM's own either.
"""

import difflib
import json
from collections.abc import Mapping
from typing import Any, Final

from vllmendpoint_api import ModelType, Problem
from vllmendpoint_worker.json_values import find_unsupported_value
from vllmendpoint_worker.setting_origin import SettingOrigin

from .forms import (
    READ_BY_DYNAMO,
    SCORE_FORMS,
    SCORE_PARTNERS,
    SUGGESTED_FORMS,
    Form,
    RequestFields,
    form_mismatch,
    request_name,
)

__all__ = ["MARKERS", "MAX_PAYLOAD_BYTES", "check_payload"]

MARKERS: Final = frozenset({"_health_check", "_HEALTH_CHECK"})
"""Markers of a health check, which no request model knows: the one of ``docs/guide/health-check-payloads.md``
("Default payloads") and Dynamo's (``dynamo.health_check.HEALTH_CHECK_KEY``).
"""

MAX_PAYLOAD_BYTES: Final = 32 * 1024
"""Largest payload, as JSON. Every report of the worker contains it."""

_MAX_UNKNOWN: Final = 8
"""Unknown fields that have a message of their own."""

_RENAMED_FIELDS: Final = {
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "best_of": "n",
    "guided_json": "structured_outputs",
    "guided_regex": "structured_outputs",
    "guided_choice": "structured_outputs",
    "guided_grammar": "structured_outputs",
}
"""Field name of another API, or of an older vLLM -> vLLM's name."""

_NUMBERS: Final = (
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "min_p",
    "repetition_penalty",
)

_UNSUPPORTED_FIELDS: Final = {
    "use_beam_search": "Dynamo does not support beam search",
    "prompt_embeds": "a probe sends text or token ids",
}

_ADD_A_QUESTION: Final = (
    "Add prompt (completion), messages (chat), input (embedding, classification) or query and documents "
    "(reranking)."
)
_USE_TEXT_OR_TOKENS: Final = "Use a string or a list of token ids."
_USE_MESSAGES: Final = 'Use a list such as [{"role": "user", "content": "Hi"}].'


def check_payload(
    payload: object, origin: SettingOrigin, fields: RequestFields | None, model_type: ModelType | None
) -> list[Problem]:
    """All problems of ``payload``.

    ``fields`` is None before vLLM is imported, ``model_type`` is None before the model is inspected. The
    checks that depend on them run later.
    """
    if not isinstance(payload, Mapping):
        return [origin.violation(f"is {_type_name(payload)}", 'Use a JSON object such as {"prompt": "1"}.')]
    if not payload:
        fix = "Add at least prompt, messages or input, or remove the payload."
        return [origin.violation("is an empty object", fix)]
    problems = _check_structure(payload, origin)
    if problems:
        return problems
    forms = [form for form in Form if form.value in payload]
    if len(forms) != 1:
        return [_form_problem(payload, forms, origin)]
    form = forms[0]
    problems = [*_check_question(form, payload, origin), *_check_parameters(payload, origin)]
    if (mismatch := form_mismatch(form, model_type)) is not None:
        problems.insert(0, origin.violation(*mismatch, field=form.value))
    if fields is not None and (known := fields.for_form(form, model_type)):
        problems += _unknown_fields(payload, origin, request_name(form, model_type), known)
    return problems


def _check_structure(payload: Mapping[Any, Any], origin: SettingOrigin) -> list[Problem]:
    unsupported = find_unsupported_value([payload], MAX_PAYLOAD_BYTES, "bytes", strict=True)
    if unsupported is not None:
        return [origin.violation(*unsupported)]
    size = len(json.dumps(payload).encode())
    if size > MAX_PAYLOAD_BYTES:
        return [origin.violation(f"has {size} bytes", f"Reduce it to at most {MAX_PAYLOAD_BYTES} bytes.")]
    return []


def _form_problem(payload: Mapping[str, Any], forms: list[Form], origin: SettingOrigin) -> Problem:
    """``forms``: none, or more than one."""
    if forms:
        names = " and ".join(form.value for form in forms)
        return origin.violation(f"contains both {names}", "Keep only one of them.")
    for form, partners in SCORE_PARTNERS.items():
        if partner := next((name for name in partners if name in payload), None):
            return origin.violation(f"contains {partner} but not {form.value}", f"Add {form.value}.")
    similar = [
        matches[0] for name in payload if (matches := difflib.get_close_matches(name, SUGGESTED_FORMS, n=1))
    ]
    fix = f"Rename the misspelt field to {similar[0]}." if similar else _ADD_A_QUESTION
    return origin.violation("contains none of prompt, messages and input", fix)


def _check_question(form: Form, payload: Mapping[str, Any], origin: SettingOrigin) -> list[Problem]:
    value = payload[form.value]
    if form is Form.MESSAGES:
        return _check_messages(value, origin)
    if form in SCORE_FORMS:
        return _check_score_pair(form, payload, origin)
    fault = _prompt_fault(form, value)
    return [] if fault is None else [origin.violation(*fault, field=form.value)]


def _prompt_fault(form: Form, value: object) -> tuple[str, str] | None:
    """The fault and the fix for ``prompt`` or ``input``."""
    if isinstance(value, str):
        return None if value else ("is empty", "Add at least one character.")
    if not isinstance(value, list) or not value:
        return f"is {_type_name(value)}", _USE_TEXT_OR_TOKENS
    if all(_is_token_id(item) for item in value):
        return None
    if all(_is_prompt(item) for item in value):
        if form is Form.INPUT or len(value) == 1:
            return None
        return f"contains {len(value)} prompts", "Keep one of them, because a probe sends one prompt."
    if "" in value or [] in value:
        return "contains an empty entry", _USE_TEXT_OR_TOKENS
    invalid = [at for at, item in enumerate(value) if not (_is_token_id(item) or _is_prompt(item))]
    if invalid:
        return (
            f"contains an entry ({invalid[0]}) that is neither a string nor a token id",
            _USE_TEXT_OR_TOKENS,
        )
    return "mixes token ids and strings", _USE_TEXT_OR_TOKENS


def _check_score_pair(form: Form, payload: Mapping[str, Any], origin: SettingOrigin) -> list[Problem]:
    """Both halves of a request for scores must be present; vLLM checks their content."""
    partners = SCORE_PARTNERS[form]
    problems = [
        origin.violation("is empty", "Add text.", field=name)
        for name in (form.value, *partners)
        if name in payload and payload[name] in (None, "", [])
    ]
    if not any(name in payload for name in partners):
        partner = " or ".join(partners)
        problems.append(origin.violation(f"contains {form.value} but not {partner}", f"Add {partner}."))
    return problems


def _is_prompt(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_token_id(item) for item in value)
    return isinstance(value, str) and bool(value)


def _check_messages(value: object, origin: SettingOrigin) -> list[Problem]:
    fault = f"is {_type_name(value)}" if not isinstance(value, list) or not value else _message_fault(value)
    return [] if fault is None else [origin.violation(fault, _USE_MESSAGES, field="messages")]


def _message_fault(messages: list[Any]) -> str | None:
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return f"contains an entry ({index}) that is not an object with a role"
        content = message.get("content")
        # vLLM accepts an empty string as content, and an assistant's message without content.
        if content is None and message["role"] != "assistant":
            return f"contains an entry ({index}) without content"
        if content is not None and not isinstance(content, str | list):
            return f"contains an entry ({index}) whose content is {_type_name(content)}"
    return None


def _check_parameters(payload: Mapping[str, Any], origin: SettingOrigin) -> list[Problem]:
    problems = []
    for name in ("max_tokens", "max_completion_tokens"):
        value = payload.get(name)
        if value is not None and (not _is_token_id(value) or value < 1):
            problems.append(origin.violation("is not a positive integer", "Use at least 1.", field=name))
    for name in _NUMBERS:
        value = payload.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            problems.append(origin.violation("is not a number", "Use a number without quotes.", field=name))
    if (stream := payload.get("stream")) is not None and not isinstance(stream, bool):
        fix = "Use true or false without quotes."
        problems.append(origin.violation("is not a boolean", fix, field="stream"))
    for name, explanation in _UNSUPPORTED_FIELDS.items():
        if payload.get(name):
            fault = f"is not supported in a probe, because {explanation}"
            problems.append(origin.violation(fault, "Remove it.", field=name))
    return problems


def _unknown_fields(
    payload: Mapping[str, Any], origin: SettingOrigin, request: str, known: frozenset[str]
) -> list[Problem]:
    unknown = [
        (position, name)
        for position, name in enumerate(payload, start=1)
        if name not in known and name not in MARKERS
    ]
    reader = (
        f"Dynamo's {request} handler does not read"
        if request in READ_BY_DYNAMO
        else f"vLLM's {request} request does not know"
    )
    problems = []
    for position, name in unknown[:_MAX_UNKNOWN]:
        similar = difflib.get_close_matches(name[:64], sorted(known), n=1)
        if (renamed := _RENAMED_FIELDS.get(name)) in known:
            similar = [str(renamed)]
        fix = f"Rename it to {similar[0]}, or remove it." if similar else "Remove it."
        if origin.confidential:
            field = f"a field (number {position} of {len(payload)})"
        else:
            field = f"the field {name[:64]!r}"
        problems.append(origin.violation(f"contains {field} that {reader}", fix))
    if len(unknown) > _MAX_UNKNOWN:
        fault = f"contains {len(unknown) - _MAX_UNKNOWN} more fields that {reader}"
        problems.append(origin.violation(fault, "Remove them."))
    return problems


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _type_name(value: object) -> str:
    """The type of ``value``, never its content."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case Mapping():
            return "an object"
        case _:
            return f"of type {type(value).__name__}"
