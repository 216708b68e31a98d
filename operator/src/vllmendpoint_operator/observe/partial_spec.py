"""Parses the readable fields of a spec that this version of the operator cannot parse as a whole. Pure."""

from typing import Any, Final

from msgspec import json
from pydantic import ValidationError

from vllmendpoint_api import VLLMEndpointSpec

__all__ = ["parse_readable_fields"]

_MAX_ATTEMPTS: Final = 10
"""The removal of one field may make another field invalid."""
_REQUIRED: Final = (("replicas",), ("paused",), ("prefill", "replicas"))
"""Paths of fields. Without them, the operator must not scale."""


def parse_readable_fields(spec: dict[str, Any]) -> VLLMEndpointSpec | None:
    """The spec without its invalid fields: enough to scale and to report the state of pods.

    None if replicas, paused or prefill.replicas is invalid, or if the rest is not a valid spec either.
    """
    # msgspec copies without recursion in Python: a spec may be nested ten thousand levels deep.
    readable = json.decode(json.encode(spec))
    for _ in range(_MAX_ATTEMPTS):
        try:
            return VLLMEndpointSpec.model_validate(readable)
        except ValidationError as error:
            for problem in error.errors(include_input=False, include_url=False, include_context=False):
                _remove(readable, problem["loc"])
        if any(_has(spec, path) and not _has(readable, path) for path in _REQUIRED):
            return None
        readable.setdefault("model", {"uri": "file:///"})
    return None


def _has(spec: Any, path: tuple[str, ...]) -> bool:
    for name in path:
        if not isinstance(spec, dict) or name not in spec:
            return False
        spec = spec[name]
    return True


def _remove(spec: dict[str, Any], location: tuple[int | str, ...]) -> None:
    """Remove the deepest existing field on the path ``location``, whose end may name branches of a union."""
    at: Any = spec
    found: tuple[dict[Any, Any], int | str] | None = None
    for step in location:
        if isinstance(at, dict) and step in at:
            found, at = (at, step), at[step]
        elif isinstance(at, list) and isinstance(step, int) and step < len(at):
            at = at[step]  # remove the whole list: the removal of one item would change the other indexes
        else:
            break
    if found is not None:
        container, name = found
        container.pop(name, None)
