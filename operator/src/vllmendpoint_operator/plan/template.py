"""Strategic merge of a partial PodTemplateSpec over the rendered one, and what it may not touch.

The merge keys are those of ``k8s.io/api/core/v1`` (struct tags ``patchMergeKey``); what has none
there is replaced whole, as ``kubectl patch`` does.
"""

import copy
from typing import Any, Final

from vllmendpoint_api import Reason, names, owned_env
from vllmendpoint_operator.errors import PlanError

__all__ = ["customised", "strategic_merge"]

_CONTAINER: Final[dict[str, Any]] = {
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
}
_MERGE_KEYS: Final[dict[str, str]] = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "ownerReferences": "uid",
    **_CONTAINER,
}


def strategic_merge(base: Any, patch: Any, field: str = "") -> Any:
    """``patch`` over ``base``, as kubectl's strategic merge patch does for pod templates.

    Objects merge by field, null deletes, keyed lists merge by their key, other lists are
    replaced. The directives ``$patch: delete`` and ``$patch: replace`` are honoured.
    """
    if isinstance(base, dict) and isinstance(patch, dict):
        if patch.get("$patch") == "replace":
            return {key: value for key, value in patch.items() if key != "$patch"}
        merged = dict(base)
        for key, value in patch.items():
            if value is None:
                merged.pop(key, None)
            elif key in merged:
                merged[key] = strategic_merge(merged[key], value, key)
            else:
                merged[key] = _without_nulls(value)
        return merged
    key = _MERGE_KEYS.get(field)
    if key and isinstance(base, list) and isinstance(patch, list):
        return _merge_lists(base, patch, key)
    return copy.deepcopy(patch)


def _merge_lists(base: list[Any], patch: list[Any], key: str) -> list[Any]:
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if not (isinstance(item, dict) and "$patch" in item)]
    merged = list(base)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise PlanError(
                Reason.INVALID_POD_TEMPLATE,
                f"podTemplate: an item of a list keyed by {key!r} has no {key!r}; add it",
            )
        at = next((i for i, other in enumerate(merged) if other.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            if at is not None:
                del merged[at]
        elif at is None:
            merged.append(_without_nulls(item))
        else:
            merged[at] = strategic_merge(merged[at], item)
    return merged


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def customised(rendered: dict[str, Any], patch: dict[str, Any] | None, field: str) -> dict[str, Any]:
    """The rendered template with the user's ``field`` (``worker.podTemplate``) merged over it.

    Raises PlanError(InvalidPodTemplate) where the merge would take away what the operator needs.
    """
    if not patch:
        return rendered
    unknown = sorted(set(patch) - {"metadata", "spec"})
    if unknown:
        raise _refused(field, f"unknown field {unknown[0]!r}; a PodTemplateSpec has metadata and spec")
    merged: dict[str, Any] = strategic_merge(rendered, patch)
    for name, value in rendered["metadata"]["labels"].items():
        if merged.get("metadata", {}).get("labels", {}).get(name) != value:
            raise _refused(field, f"metadata.labels: {name} is set by the operator; remove it")
    _check_main(_main(rendered), _main(merged), field)
    return merged


def _check_main(before: dict[str, Any] | None, after: dict[str, Any] | None, field: str) -> None:
    if after is None or before is None:
        raise _refused(field, "spec.containers: the container main must stay; remove its $patch")
    ours = {item["name"]: item for item in before["env"] if owned_env(item["name"])}
    theirs = {item["name"]: item for item in after.get("env", []) if owned_env(item["name"])}
    for name in ours.keys() | theirs.keys():
        if ours.get(name) != theirs.get(name):
            raise _refused(field, f"container main, env: {name} is the operator's; leave it as it is")
    for part in ("command", "args"):
        if after.get(part) != before.get(part):
            raise _refused(field, f"container main: {part} is set by the operator; use engine.args")


def _main(template: dict[str, Any]) -> dict[str, Any] | None:
    containers = (template.get("spec") or {}).get("containers") or []
    return next((c for c in containers if c.get("name") == names.MAIN_CONTAINER), None)


def _refused(field: str, message: str) -> PlanError:
    return PlanError(Reason.INVALID_POD_TEMPLATE, f"{field}: {message}")
