"""Is a health-check payload one that this model can be asked with? Pure.

The guide ("Configuration Methods", "Troubleshooting: verify the payload format matches model expectations")
leaves checking to the user; here a payload is held against the fields of vLLM's own request models, since
vLLM lets unknown fields pass and Dynamo drops them in silence.

No sentence made here repeats a value of the payload. Where the payload is confidential (an environment value,
an ``@file``: it may hold a secret) it does not repeat names that are not vLLM's own either.
"""

import difflib
import json
import math
from collections.abc import Mapping
from typing import Any, Final

from vllmendpoint_api import MAX_DEPTH, ModelType, Problem
from vllmendpoint_worker.setting_origin import SettingOrigin

from .forms import (
    READ_BY_DYNAMO,
    SCORE_FORMS,
    SCORE_PARTNERS,
    SUGGESTED_FORMS,
    Form,
    RequestFields,
    form_mismatch,
    form_of,
    request_name,
)

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "HIGH_TOKEN_COUNT",
    "MARKERS",
    "MAX_PAYLOAD_BYTES",
    "check_payload",
    "max_generated_tokens",
    "with_token_limit",
]

MARKERS: Final = frozenset({"_health_check", "_HEALTH_CHECK"})
"""The guide's marker and upstream's (``dynamo.health_check.HEALTH_CHECK_KEY``); no request model knows
them.
"""

MAX_PAYLOAD_BYTES: Final = 32 * 1024
"""Largest payload, as JSON: it is carried in every report of the worker."""

DEFAULT_MAX_TOKENS: Final = 16
"""Tokens that a probe generates where the payload sets no limit and vLLM has none; vLLM's own default for
completions.
"""

MAX_UNKNOWN: Final = 8
"""Unknown fields that are named one by one."""

HIGH_TOKEN_COUNT: Final = 4096
"""A probe that may generate more is warned of."""

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
"""Names that other APIs, and older versions of vLLM, have for a field."""

_MIXED: Final = "mixes token ids with text"

_UNSUPPORTED_FIELDS: Final = {
    "use_beam_search": "Dynamo's request path has no beam search",
    "prompt_embeds": "a probe asks with text or token ids",
}


def check_payload(
    payload: object, origin: SettingOrigin, fields: RequestFields | None, model_type: ModelType | None
) -> list[Problem]:
    """All that is wrong with ``payload``; empty where nothing is.

    ``fields`` is None before vLLM is imported, ``model_type`` None before the model's type is told; what
    depends on them is then left to a later check.
    """
    if not isinstance(payload, Mapping):
        return [origin.violation(f"is {_type_name(payload)}", 'give a JSON object such as {"prompt": "1"}')]
    if not payload:
        return [
            origin.violation("is an empty object", "give at least prompt, messages or input, or remove it")
        ]
    problems = _check_structure(payload, origin)
    if problems:
        return problems
    forms = [form for form in Form if form.value in payload]
    if len(forms) != 1:
        return [_form_problem(payload, forms, origin)]
    form = forms[0]
    problems = [*_check_question(form, payload, origin), *_check_parameters(payload, origin)]
    if (wrong := form_mismatch(form, model_type)) is not None:
        problems.insert(0, origin.violation(*wrong, field=form.value))
    if fields is not None and (known := fields.for_form(form, model_type)):
        problems += _unknown_fields(payload, origin, request_name(form, model_type), known)
    return problems


def _check_structure(payload: Mapping[Any, Any], origin: SettingOrigin) -> list[Problem]:
    if (unfit := _unsupported_value(payload)) is not None:
        return [origin.violation(*unfit)]
    size = len(json.dumps(payload).encode())
    if size > MAX_PAYLOAD_BYTES:
        return [origin.violation(f"takes {size} bytes", f"keep it within {MAX_PAYLOAD_BYTES} bytes")]
    return []


def _unsupported_value(payload: Mapping[Any, Any]) -> tuple[str, str] | None:
    """What JSON, or the status of a resource, has no place for (what, fix); None where all is well.

    Every value is looked at once more for every way that leads to it, in a bounded number of steps: YAML and
    code can make a value that contains itself, or that is small and endless to write out.
    """
    stack: list[tuple[object, int]] = [(payload, 1)]
    room = MAX_PAYLOAD_BYTES
    while room >= 0:
        if not stack:
            return None
        item, depth = stack.pop()
        room -= max(len(item), 1) if isinstance(item, str) else 1  # bytes at least
        if depth > MAX_DEPTH:
            return f"is nested deeper than {MAX_DEPTH} levels", "make it flatter"
        if isinstance(item, Mapping):
            if any(not isinstance(key, str) for key in item):
                return "has a key that is not text", "quote every key"
            stack.extend((inner, depth + 1) for pair in item.items() for inner in pair)
        elif isinstance(item, list | tuple):
            stack.extend((inner, depth + 1) for inner in item)
        elif (unfit := _unsupported_scalar(item)) is not None:
            return unfit
    return "is too large", f"keep it within {MAX_PAYLOAD_BYTES} bytes"


def _unsupported_scalar(item: object) -> tuple[str, str] | None:
    if isinstance(item, str):
        # Half of a surrogate pair is a character to Python and JSON, and to nobody else.
        if any("\ud800" <= character <= "\udfff" for character in item):
            return "holds text that UTF-8 cannot carry", "remove what is half of a surrogate pair"
    elif isinstance(item, float):
        if not math.isfinite(item):
            return "holds NaN or an infinite number", "use finite numbers"
    elif isinstance(item, int):
        if abs(item) >= 2**63:
            return "holds a number of more than 64 bits", "use a smaller one"
    elif item is not None:
        return "holds something that JSON cannot carry", "use text, numbers, lists, objects"
    return None


def _form_problem(payload: Mapping[str, Any], forms: list[Form], origin: SettingOrigin) -> Problem:
    if forms:
        names = " and ".join(form.value for form in forms)
        return origin.violation(f"has both {names}", "keep one of them")
    fix = (
        "add prompt (completion), messages (chat), input (embedding, classification) or query and documents "
        "(reranking)"
    )
    for form, partners in SCORE_PARTNERS.items():
        if partner := next((name for name in partners if name in payload), None):
            return origin.violation(f"has {partner} without what is compared with it", f"add {form.value}")
    meant = [close[0] for name in payload if (close := difflib.get_close_matches(name, SUGGESTED_FORMS, n=1))]
    if meant:
        fix = f"did you mean {meant[0]}"
    return origin.violation("has none of prompt, messages and input", fix)


def _check_question(form: Form, payload: Mapping[str, Any], origin: SettingOrigin) -> list[Problem]:
    value = payload[form.value]
    if form is Form.MESSAGES:
        return _check_messages(value, origin)
    if form in SCORE_FORMS:
        return _check_score_pair(form, payload, origin)
    if isinstance(value, str):
        if value:
            return []
        return [origin.violation("is empty", "give at least one character", field=form.value)]
    if isinstance(value, list) and value:
        if all(_is_token_id(item) for item in value):
            return []
        if all(_is_prompt(item) for item in value):
            if form is Form.INPUT or len(value) == 1:
                return []
            what = f"holds {len(value)} prompts"
            return [origin.violation(what, "a probe asks with one: keep one of them", field=form.value)]
        if "" in value or [] in value:
            return [origin.violation("holds an empty entry", "give text or token ids", field=form.value)]
        wrong = [at for at, item in enumerate(value) if not (_is_token_id(item) or _is_prompt(item))]
        what = f"has an entry ({wrong[0]}) that is neither text nor a token id" if wrong else _MIXED
        return [origin.violation(what, "give text, or a list of token ids from 0", field=form.value)]
    return [
        origin.violation(f"is {_type_name(value)}", "give text, or a list of token ids", field=form.value)
    ]


def _check_score_pair(form: Form, payload: Mapping[str, Any], origin: SettingOrigin) -> list[Problem]:
    """Both halves of a question for scores; what they may hold is vLLM's to say."""
    partners = SCORE_PARTNERS[form]
    problems = [
        origin.violation("is empty", "give text", field=name)
        for name in (form.value, *partners)
        if name in payload and payload[name] in (None, "", [])
    ]
    if not any(name in payload for name in partners):
        fix = f"add {' or '.join(partners)}"
        problems.append(origin.violation(f"has {form.value} without what it is compared with", fix))
    return problems


def _is_prompt(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_is_token_id(item) for item in value)
    return isinstance(value, str) and bool(value)


def _check_messages(value: object, origin: SettingOrigin) -> list[Problem]:
    fix = 'give a list such as [{"role": "user", "content": "Hi"}]'
    if not isinstance(value, list) or not value:
        return [origin.violation(f"is {_type_name(value)}", fix, field="messages")]
    for index, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return [
                origin.violation(
                    f"has an entry ({index}) that is no object with a role", fix, field="messages"
                )
            ]
        content = message.get("content")
        # An empty text is content to vLLM, and an assistant's message may have none.
        if content is None and message["role"] != "assistant":
            return [origin.violation(f"has an entry ({index}) without content", fix, field="messages")]
        if content is not None and not isinstance(content, str | list):
            what = f"has an entry ({index}) whose content is {_type_name(content)}"
            return [origin.violation(what, fix, field="messages")]
    return []


def with_token_limit(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The payload with a limit on what is generated, where it sets none and vLLM has none.

    vLLM's default for a chat, and for ``max_tokens: null``, is the rest of the model's context.
    """
    form = form_of(payload)
    limited = any(payload.get(name) is not None for name in ("max_tokens", "max_completion_tokens"))
    if limited or not (form is Form.MESSAGES or (form is Form.PROMPT and "max_tokens" in payload)):
        return dict(payload)
    least = payload.get("min_tokens")
    limit = max(DEFAULT_MAX_TOKENS, least) if isinstance(least, int) else DEFAULT_MAX_TOKENS
    return dict(payload) | {"max_tokens": limit}


def max_generated_tokens(asked: Mapping[str, Any]) -> int:
    """How many tokens a probe with a bounded payload may generate; 0 where it generates none."""
    if form_of(asked) not in (Form.PROMPT, Form.MESSAGES):
        return 0
    limit = asked.get("max_completion_tokens")
    if limit is None:
        limit = asked.get("max_tokens", DEFAULT_MAX_TOKENS)
    answers = asked.get("n") or 1
    return limit * answers if isinstance(limit, int) and isinstance(answers, int) else 0


def _check_parameters(payload: Mapping[str, Any], origin: SettingOrigin) -> list[Problem]:
    problems = []
    for name in ("max_tokens", "max_completion_tokens"):
        value = payload.get(name)
        if value is not None and (not _is_token_id(value) or value < 1):
            problems.append(origin.violation("is not a whole number above 0", "give at least 1", field=name))
    for name in (
        "temperature",
        "top_p",
        "frequency_penalty",
        "presence_penalty",
        "min_p",
        "repetition_penalty",
    ):
        value = payload.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            problems.append(origin.violation("is not a number", "give a number without quotes", field=name))
    if (stream := payload.get("stream")) is not None and not isinstance(stream, bool):
        problems.append(origin.violation("is not true or false", "give true or false", field="stream"))
    for name, why in _UNSUPPORTED_FIELDS.items():
        if payload.get(name):
            problems.append(origin.violation("cannot be used in a probe", f"remove it, {why}", field=name))
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
    for position, name in unknown[:MAX_UNKNOWN]:
        close = difflib.get_close_matches(name[:64], sorted(known), n=1)
        if (meant := _RENAMED_FIELDS.get(name)) in known:
            close = [str(meant)]
        fix = f"did you mean {close[0]}" if close else "remove it"
        if origin.confidential:
            what = f"has a field (number {position} of {len(payload)})"
        else:
            what = f"has the field {name[:64]!r}"
        problems.append(origin.violation(f"{what} that {reader}", fix))
    if len(unknown) > MAX_UNKNOWN:
        what = f"has {len(unknown) - MAX_UNKNOWN} more that {reader}"
        problems.append(origin.violation(what, "remove them"))
    return problems


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _type_name(value: object) -> str:
    """What ``value`` is, never what it holds."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, Mapping):
        return "an object"
    return f"of type {type(value).__name__}"
