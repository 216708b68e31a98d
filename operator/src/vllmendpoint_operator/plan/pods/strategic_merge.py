"""Strategic merge patch for pod templates, as ``kubectl patch --type=strategic`` applies it. Pure.

The merge keys are those of ``k8s.io/api/core/v1`` (struct tags ``patchMergeKey``). A list without a merge key
is replaced. Written by hand because no Python library implements this patch; tests compare it with kubectl.
"""

import copy
from typing import Any, Final

__all__ = ["MergeError", "strategic_merge"]

_MERGE_KEYS: Final[dict[str, str]] = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
    "ownerReferences": "uid",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
}


class MergeError(ValueError):
    """The patch is not valid. The message is complete sentences."""


def strategic_merge(base: Any, patch: Any, field: str = "") -> Any:
    """``patch`` merged over ``base``. ``field``: name of the field that holds both.

    Objects merge by field, null deletes a field, lists with a merge key merge by that key. The directives
    ``$patch`` and ``$retainKeys`` apply. Raises MergeError if types do not match or a directive is not valid.
    """
    if isinstance(base, dict):
        if not isinstance(patch, dict):
            raise _wrong_type(field, "an object")
        return _merge_objects(base, patch)
    key = _MERGE_KEYS.get(field)
    if key and isinstance(base, list):
        if not isinstance(patch, list):
            raise _wrong_type(field, "a list")
        return _merge_lists(base, patch, field, key)
    if isinstance(patch, dict) and _directive(patch) is not None:
        raise MergeError(
            f"The field {field} must not have $patch, which is for an object or an item of a list. To delete "
            f"{field}, list the other fields of its object in $retainKeys."
        )
    return copy.deepcopy(patch)


def _merge_objects(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    directive = _directive(patch)
    if directive is not None:
        return {} if directive == "delete" else _without_directives(patch)
    merged = _retain_keys(base, patch)
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            merged.pop(key, None)
        elif key in merged:
            merged[key] = strategic_merge(merged[key], value, key)
        elif not _is_deleted(value):
            merged[key] = _without_directives(value)
    return merged


def _directive(patch: dict[str, Any]) -> str | None:
    """``replace``, ``delete`` or None. Raises MergeError for an unknown directive."""
    for name in patch:
        if name.startswith("$") and name not in ("$patch", "$retainKeys"):
            raise MergeError(f"The directive {name} is not supported. Remove it.")
    directive = patch.get("$patch")
    if "$patch" in patch and directive not in ("replace", "delete"):
        raise MergeError("The value of $patch must be replace or delete.")
    return directive


def _retain_keys(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """``base`` without the fields that ``$retainKeys`` does not list."""
    if "$retainKeys" not in patch:
        return dict(base)
    retained = patch["$retainKeys"]
    if not isinstance(retained, list):
        raise _wrong_type("$retainKeys", "a list")
    fields = (key for key, value in patch.items() if value is not None and not key.startswith("$"))
    if (missing := next((key for key in fields if key not in retained), None)) is not None:
        raise MergeError(f"The patch sets {missing}, which $retainKeys does not list. Add it to $retainKeys.")
    return {key: value for key, value in base.items() if key in retained}


def _merge_lists(base: list[Any], patch: list[Any], field: str, key: str) -> list[Any]:
    """Directives apply before the other items, in any order. One ``replace`` removes all of ``base``."""
    items, deleted, replace = [], [], False
    for item in patch:
        if not isinstance(item, dict):
            raise _missing_key(field, key)
        directive = _directive(item)
        if directive == "replace":
            replace = True
            continue
        if not isinstance(item.get(key), str | int):
            raise _missing_key(field, key)
        if directive == "delete":
            deleted.append(item[key])
        else:
            items.append(item)
    merged = [] if replace else [other for other in base if other.get(key) not in deleted]
    for item in items:
        index = next((i for i, other in enumerate(merged) if other.get(key) == item[key]), None)
        if index is None:
            merged.append(_without_directives(item))
        else:
            merged[index] = strategic_merge(merged[index], item)
    return merged


def _without_directives(value: Any) -> Any:
    """A value that ``base`` does not have: without nulls, and without directives, which have no effect here.

    The one difference from kubectl: kubectl drops a new object with ``$patch: replace``.
    """
    if isinstance(value, dict):
        _directive(value)
        return {
            name: _without_directives(inner)
            for name, inner in value.items()
            if inner is not None and not name.startswith("$") and not _is_deleted(inner)
        }
    if isinstance(value, list):
        return [
            _without_directives(item)
            for item in value
            if not (isinstance(item, dict) and _directive(item) is not None)
        ]
    return value


def _is_deleted(value: Any) -> bool:
    return isinstance(value, dict) and value.get("$patch") == "delete"


def _missing_key(field: str, key: str) -> MergeError:
    return MergeError(f"An item of {field} has no {key}. Add it.")


def _wrong_type(field: str, expected: str) -> MergeError:
    return MergeError(f"The field {field} must be {expected}.")
