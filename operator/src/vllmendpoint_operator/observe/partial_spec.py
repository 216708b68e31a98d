"""What can be read of a spec that this version of the operator cannot read as a whole. Pure."""

from typing import Any, Final

from msgspec import json
from pydantic import ValidationError

from vllmendpoint_api import VLLMEndpointSpec

__all__ = ["parse_readable_fields"]

_ROUNDS: Final = 10
"""A field that is removed may make another one invalid."""
_NEEDED: Final = frozenset({"replicas", "paused"})
"""Without these it is not known how many replicas are asked for, or whether anything may be changed."""


def parse_readable_fields(spec: dict[str, Any]) -> VLLMEndpointSpec | None:
    """The spec without the fields that are not understood: enough to scale by, and to report on pods.

    None where replicas or paused are among them, or where too little is left.
    """
    # A copy: the standard library's takes several frames a level, and a spec may have ten thousand.
    rest = json.decode(json.encode(spec))
    for _ in range(_ROUNDS):
        try:
            return VLLMEndpointSpec.model_validate(rest)
        except ValidationError as error:
            for place in error.errors(include_input=False, include_url=False, include_context=False):
                _remove(rest, place["loc"])
        if any(name in spec and name not in rest for name in _NEEDED):
            return None
        rest.setdefault("model", {"uri": "file:///"})
    return None


def _remove(spec: dict[str, Any], place: tuple[int | str, ...]) -> None:
    """The deepest field on the way to ``place``: behind it pydantic names branches of a union."""
    at: Any = spec
    found: tuple[dict[Any, Any], int | str] | None = None
    for step in place:
        if isinstance(at, dict) and step in at:
            found, at = (at, step), at[step]
        elif isinstance(at, list) and isinstance(step, int) and step < len(at):
            at = at[step]  # an item itself is removed with its list, since others would move up
        else:
            break
    if found is not None:
        container, name = found
        container.pop(name, None)
