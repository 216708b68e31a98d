"""Where something is in a nested object."""

from typing import Any


def walk(value: Any, path: str) -> Any:
    """``spec.containers.0.image`` of a nested object; ``[name=x]`` finds an item of a list."""
    for step in path.split("."):
        if step.startswith("["):
            key, _, wanted = step[1:-1].partition("=")
            value = next(item for item in value if item[key] == wanted)
        else:
            value = value[int(step) if isinstance(value, list) else step]
    return value
