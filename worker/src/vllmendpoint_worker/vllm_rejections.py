"""Reads the errors with which vLLM rejects a request, and removes secrets from them. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["VLLMRejection", "describe_validation_errors", "find_rejected_field", "publishable_message"]

MAX_MESSAGE_CHARACTERS: Final = 600

_MAX_ERRORS: Final = 3
"""Validation errors of one field that a message contains."""

_MIN_SHARED_CHARACTERS: Final = 4
"""A common substring of payload and message of this length counts as part of a secret."""

_ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "logprobs": ("top_logprobs",),
    "max_tokens": ("max_completion_tokens", "min_tokens"),
    "structured_outputs": ("response_format",),
}
"""vLLM parameter -> the request fields that vLLM derives it from."""

_QUESTION_FIELDS: Final = ("prompt", "messages", "input", "documents", "items", "data_2", "text_2")

_TOPICS: Final = (
    (
        re.compile(r"grammar|regex|schema|choice|structural_tag", re.IGNORECASE),
        ("structured_outputs", "response_format"),
    ),
    (re.compile(r"\btool", re.IGNORECASE), ("tool_choice", "tools")),
    (re.compile(r"multimodal|image|audio|video", re.IGNORECASE), ("messages",)),
    (re.compile(r"prompt|\binput|[Tt]oken id \d+ is out of vocab"), _QUESTION_FIELDS),
)
"""Topic of a message that names no field -> the fields that may have caused it."""


@dataclass(frozen=True, slots=True)
class VLLMRejection:
    """``message`` is what vLLM's API returns to a user; it may repeat values of the request."""

    message: str
    parameter: str | None = None


def find_rejected_field(rejection: VLLMRejection, payload: Mapping[str, Any]) -> str:
    """The payload's field that ``parameter`` or the message names; ``""`` if neither names one."""
    candidates = [rejection.parameter] if rejection.parameter else []
    candidates += [word.strip(".,:;`'\"()[]") for word in rejection.message.split()]
    lowercase = rejection.message.casefold()
    candidates += [name for name in payload if "_" in name and name.replace("_", " ") in lowercase]
    for name in candidates:
        aliases = [alias for alias in _ALIASES.get(name, ()) if alias in payload]
        if aliases and not _is_number(payload.get(name)):
            return aliases[0]
        if name in payload and name != "model":
            return name
    for topic, fields in _TOPICS:
        if topic.search(rejection.message) and (found := [name for name in fields if name in payload]):
            return found[0]
    return ""


def describe_validation_errors(
    errors: Sequence[Mapping[str, Any]], body: Mapping[str, Any]
) -> tuple[str, str]:
    """The first invalid field of a request and a message with all pydantic errors of that field.

    A field of several types has an error for each type. The message gives the path of a nested value.
    """
    first = str(errors[0]["loc"][0]) if errors[0]["loc"] else ""
    field = first if first in body else ""
    messages: dict[str, None] = {}
    for error in errors:
        location = error["loc"]
        if not location or str(location[0]) != first:
            continue
        path = _path(location[1:], body.get(first), missing=error["type"] == "missing")
        messages[f"{path}: {error['msg']}" if path else str(error["msg"])] = None
    return field, " or ".join(list(messages)[:_MAX_ERRORS])


def _path(location: Sequence[object], value: Any, *, missing: bool) -> str:
    """The location without the names that pydantic gives to the types of a field: ``[0].function``."""
    path = ""
    for position, part in enumerate(location, start=1):
        if isinstance(part, int) and isinstance(value, list | tuple) and part < len(value):
            path += f"[{part}]"
            value = value[part]
        elif isinstance(value, Mapping) and (part in value or (missing and position == len(location))):
            path += f".{part}"
            value = value.get(part)
    return path.removeprefix(".")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def publishable_message(rejection: VLLMRejection, payload: Mapping[str, Any], *, confidential: bool) -> str:
    """The message for a report: one line, bounded, without its full stop and without secrets.

    Masks every value of a ``confidential`` payload. Empty if the message may still contain part of a value.
    """
    message = " ".join(rejection.message.split()).rstrip(".")
    if confidential:
        texts = {text for value in payload.values() for text in _values_as_text(value)}
        values = sorted(texts, key=len, reverse=True)
        for value in values:
            message = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "***", message)
        if any(_share_substring(value, message) for value in values):
            return ""
    return message if len(message) <= MAX_MESSAGE_CHARACTERS else f"{message[:MAX_MESSAGE_CHARACTERS]} ..."


def _values_as_text(value: object) -> Iterator[str]:
    """All scalars of a value, and the names of nested fields, as a message may contain them."""
    if isinstance(value, Mapping):
        for pair in value.items():
            for inner in pair:
                yield from _values_as_text(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _values_as_text(inner)
    elif value is not None and not isinstance(value, bool) and (text := " ".join(str(value).split())):
        yield text


def _share_substring(value: str, message: str) -> bool:
    value, message = value.casefold(), message.casefold()
    starts = range(len(value) - _MIN_SHARED_CHARACTERS + 1)
    return any(value[start : start + _MIN_SHARED_CHARACTERS] in message for start in starts)
