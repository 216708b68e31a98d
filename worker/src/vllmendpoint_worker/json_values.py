"""Finds what JSON, or the status of a Kubernetes resource, cannot represent in a value from YAML or Python.

YAML and Python can build a value that contains itself, or a small value whose JSON text is endless. The
search therefore counts every path to an item and stops at a limit.
"""

import math
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Final

from vllmendpoint_api import MAX_DEPTH

__all__ = ["find_unsupported_value"]

_TOO_DEEP: Final = (f"is nested more than {MAX_DEPTH} levels deep", "Reduce the nesting.")


def find_unsupported_value(
    values: Iterable[object], limit: int, unit: str, *, strict: bool
) -> tuple[str, str] | None:
    """The fault and the fix for the first unsupported item in ``values``, or None.

    ``limit`` is the largest size of the JSON text, in ``unit``. ``strict`` also rejects keys that are not
    strings, NaN and infinity.
    """
    too_large = ("is too large", f"Reduce it to at most {limit} {unit}.")
    stack = [(value, 1) for value in values]
    remaining = limit
    while stack:
        item, depth = stack.pop()
        remaining -= max(len(item), 1) if isinstance(item, str) else 1  # a lower bound of its JSON text
        if remaining < 0:
            return too_large
        if depth > MAX_DEPTH:
            return _TOO_DEEP
        if isinstance(item, Mapping):
            if strict and any(not isinstance(key, str) for key in item):
                return "contains a key that is not a string", "Quote every key."
            stack.extend((inner, depth + 1) for pair in item.items() for inner in pair)
        elif isinstance(item, list | tuple):
            stack.extend((inner, depth + 1) for inner in item)
        elif (unsupported := _unsupported_scalar(item, strict=strict)) is not None:
            return unsupported
    return None


def _unsupported_scalar(item: object, *, strict: bool) -> tuple[str, str] | None:
    match item:
        case str() if any("\ud800" <= character <= "\udfff" for character in item):
            # Python and JSON accept half of a surrogate pair; UTF-8 does not.
            return "contains text that UTF-8 cannot encode", "Remove the unpaired surrogate character."
        case float() if strict and not math.isfinite(item):
            return "contains NaN or infinity", "Use finite numbers."
        case int() if abs(item) >= 2**63:
            return "contains an integer of more than 64 bits", "Use a smaller number."
        case date():
            return "contains a date", "Quote it to make it a string."
        case None | str() | int() | float():
            return None
        case _:
            return "contains a value that JSON cannot represent", "Use strings, numbers, lists and objects."
