"""Access to values in nested objects."""

from typing import Any


def walk(value: Any, path: str) -> Any:
    """The value at ``path``, for example ``spec.containers.0.image``; ``[name=x]`` selects an item of a
    list."""
    for step in path.split("."):
        if step.startswith("["):
            key, _, expected = step[1:-1].partition("=")
            value = next(item for item in value if item[key] == expected)
        else:
            value = value[int(step) if isinstance(value, list) else step]
    return value
