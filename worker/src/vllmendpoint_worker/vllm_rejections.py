"""What vLLM says of a request that it refuses, and how much of it a report may show. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["VLLMRejection", "describe_validation_errors", "find_rejected_field", "publishable_message"]

MAX_MESSAGE_CHARACTERS: Final = 600

_MAX_ERRORS: Final = 3
"""So many errors of one field make a sentence."""

_MIN_SHARED_CHARACTERS: Final = 4
"""So many characters in a row that payload and sentence have in common may be a part of a secret."""

_ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "logprobs": ("top_logprobs",),
    "max_tokens": ("max_completion_tokens", "min_tokens"),
    "structured_outputs": ("response_format",),
}
"""vLLM's parameter -> the request's fields that it may be made from."""

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
"""What a sentence that names no field is about -> the fields that it may be about."""


@dataclass(frozen=True, slots=True)
class VLLMRejection:
    """``sentence`` is vLLM's own, as a user of the API gets it: it may repeat values of the request."""

    sentence: str
    parameter: str | None = None


def find_rejected_field(refusal: VLLMRejection, payload: Mapping[str, Any]) -> str:
    """The payload's field that vLLM names, by itself or in its sentence; ``""`` where it names none."""
    named = [refusal.parameter] if refusal.parameter else []
    named += [word.strip(".,:;`'\"()[]") for word in refusal.sentence.split()]
    folded = refusal.sentence.casefold()
    named += [name for name in payload if "_" in name and name.replace("_", " ") in folded]
    for name in named:
        made_from = [alias for alias in _ALIASES.get(name, ()) if alias in payload]
        if made_from and not _is_number(payload.get(name)):
            return made_from[0]
        if name in payload and name != "model":
            return name
    for topic, fields in _TOPICS:
        if topic.search(refusal.sentence) and (found := [name for name in fields if name in payload]):
            return found[0]
    return ""


def describe_validation_errors(
    errors: Sequence[Mapping[str, Any]], body: Mapping[str, Any]
) -> tuple[str, str]:
    """What pydantic says of a request (field, sentence): of the first field that is at fault, everything.

    A field of several types has an error for each; where the value is nested, the sentence says where.
    """
    first = str(errors[0]["loc"][0]) if errors[0]["loc"] else ""
    field = first if first in body else ""
    said: dict[str, None] = {}
    for error in errors:
        location = error["loc"]
        if not location or str(location[0]) != first:
            continue
        where = _path(location[1:], body.get(first), missing=error["type"] == "missing")
        said[f"{where}: {error['msg']}" if where else str(error["msg"])] = None
    return field, " or ".join(list(said)[:_MAX_ERRORS])


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


def publishable_message(refusal: VLLMRejection, payload: Mapping[str, Any], *, confidential: bool) -> str:
    """The sentence as a report may show it: in one line, bounded, and without content that may be secret.

    Of a ``confidential`` payload every value is masked. Empty where a part of a value may be left.
    """
    sentence = " ".join(refusal.sentence.split()).rstrip(".")
    if confidential:
        values = sorted(
            {text for value in payload.values() for text in _values_as_text(value)}, key=len, reverse=True
        )
        for value in values:
            sentence = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "***", sentence)
        if any(_share_substring(value, sentence) for value in values):
            return ""
    return sentence if len(sentence) <= MAX_MESSAGE_CHARACTERS else f"{sentence[:MAX_MESSAGE_CHARACTERS]} ..."


def _values_as_text(value: object) -> Iterator[str]:
    """Everything in a value, names of nested fields too, as it may stand in a sentence."""
    if isinstance(value, Mapping):
        for pair in value.items():
            for inner in pair:
                yield from _values_as_text(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _values_as_text(inner)
    elif value is not None and not isinstance(value, bool) and (text := " ".join(str(value).split())):
        yield text


def _share_substring(value: str, sentence: str) -> bool:
    folded, text = value.casefold(), sentence.casefold()
    return any(
        folded[at : at + _MIN_SHARED_CHARACTERS] in text
        for at in range(len(folded) - _MIN_SHARED_CHARACTERS + 1)
    )
