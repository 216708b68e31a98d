"""Finds nulls of a podTemplate that ``kubectl apply`` dropped: null deletes in its merge patch. Pure."""

import json
from collections.abc import Iterator
from typing import Any, Final

from vllmendpoint_operator.observe.snapshot import FRONTEND, PREFILL, WORKER

__all__ = ["find_dropped_nulls"]

_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
"""Annotation with the manifest that the user applied last."""


def find_dropped_nulls(annotations: dict[str, str], spec: dict[str, Any]) -> list[str]:
    """A message for each podTemplate in whose manifest the user set nulls that ``spec`` does not have."""
    try:
        written = json.loads(annotations.get(_LAST_APPLIED, "{}"))["spec"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    messages = []
    for component in (WORKER, PREFILL, FRONTEND):
        manifest, live = (_get(_get(source, component), "podTemplate") for source in (written, spec))
        paths = [path for path in _nulls(manifest, live) if path]
        if paths:
            named = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
            messages.append(
                f"{component}.podTemplate: kubectl apply does not send null, so {named} has no effect. "
                "Use $patch: delete, $patch: replace or $retainKeys."
            )
    return messages


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _nulls(written: Any, live: Any, path: str = "") -> Iterator[str]:
    """Paths of nulls in ``written`` that ``live`` does not have."""
    if isinstance(written, dict):
        for key, value in written.items():
            where = f"{path}.{key}" if path else key
            if value is None:
                if not (isinstance(live, dict) and key in live):
                    yield where
            else:
                yield from _nulls(value, _get(live, key), where)
    elif isinstance(written, list):
        items = live if isinstance(live, list) else []
        for index, value in enumerate(written):
            yield from _nulls(value, items[index] if index < len(items) else None, f"{path}[{index}]")
