"""Strategic merge of a partial PodTemplateSpec over the rendered one, and what it may not touch.

The merge keys are those of ``k8s.io/api/core/v1`` (struct tags ``patchMergeKey``); what has none
there is replaced whole, as ``kubectl patch`` does.
"""

import copy
from pathlib import PurePosixPath
from typing import Any, Final

from vllmendpoint_api import Reason, names, owned_env
from vllmendpoint_operator.errors import PlanError

__all__ = ["customised", "strategic_merge"]

_TOKEN_DIR: Final = PurePosixPath("/var/run/secrets/kubernetes.io/serviceaccount")

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
    "schedulingGates": "name",
    "ownerReferences": "uid",
    **_CONTAINER,
}


def strategic_merge(base: Any, patch: Any, field: str = "") -> Any:
    """``patch`` over ``base``, as kubectl's strategic merge patch does for pod templates.

    Objects merge by field, null deletes, keyed lists merge by their key, other lists are
    replaced. The directives ``$patch`` and ``$retainKeys`` are honoured. Raises PlanError where the
    shapes do not fit.
    """
    if isinstance(base, dict):
        if not isinstance(patch, dict):
            raise _misshapen(field, "an object")
        return _merge_objects(base, patch)
    key = _MERGE_KEYS.get(field)
    if key and isinstance(base, list):
        if not isinstance(patch, list):
            raise _misshapen(field, "a list")
        return _merge_lists(base, patch, field, key)
    if isinstance(patch, dict) and _directive(patch) is not None:
        raise PlanError(
            Reason.INVALID_POD_TEMPLATE,
            f"podTemplate: {field}: $patch is for an object or an item of a list; to delete {field}, name "
            "the fields to keep in $retainKeys of the object that holds it",
        )
    return copy.deepcopy(patch)


def _merge_objects(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    directive = _directive(patch)
    if directive is not None:
        return {} if directive == "delete" else _without_directives(patch)
    merged = _retained(base, patch)
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            merged.pop(key, None)
        elif key in merged:
            merged[key] = strategic_merge(merged[key], value, key)
        elif not _deleted(value):
            merged[key] = _without_directives(value)
    return merged


def _directive(patch: dict[str, Any]) -> str | None:
    """``replace``, ``delete`` or none. Raises PlanError for what would be left out without a word."""
    for name in patch:
        if name.startswith("$") and name not in ("$patch", "$retainKeys"):
            raise PlanError(Reason.INVALID_POD_TEMPLATE, f"podTemplate: {name} is not supported; remove it")
    directive = patch.get("$patch")
    if "$patch" in patch and directive not in ("replace", "delete"):
        raise PlanError(Reason.INVALID_POD_TEMPLATE, "podTemplate: $patch must be replace or delete")
    return directive


def _retained(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """What ``$retainKeys``, which names all that is to be there afterwards, leaves of ``base``."""
    if "$retainKeys" not in patch:
        return dict(base)
    kept = patch["$retainKeys"]
    if not isinstance(kept, list):
        raise _misshapen("$retainKeys", "a list")
    given = (key for key, value in patch.items() if value is not None and not key.startswith("$"))
    if (lacking := next((key for key in given if key not in kept), None)) is not None:
        raise PlanError(
            Reason.INVALID_POD_TEMPLATE,
            f"podTemplate: $retainKeys leaves {lacking} out, which is set; add it",
        )
    return {key: value for key, value in base.items() if key in kept}


def _merge_lists(base: list[Any], patch: list[Any], field: str, key: str) -> list[Any]:
    """Directives first, wherever they stand: one ``replace`` takes all that was there away."""
    given, replace = [], False
    deleted: list[Any] = []
    for item in patch:
        if not isinstance(item, dict):
            raise _keyless(field, key)
        directive = _directive(item)
        if directive == "replace":
            replace = True
            continue
        if not isinstance(item.get(key), str | int):
            raise _keyless(field, key)
        if directive == "delete":
            deleted.append(item[key])
        else:
            given.append(item)
    merged = [] if replace else [other for other in base if other.get(key) not in deleted]
    for item in given:
        at = next((i for i, other in enumerate(merged) if other.get(key) == item[key]), None)
        if at is None:
            merged.append(_without_directives(item))
        else:
            merged[at] = strategic_merge(merged[at], item)
    return merged


def _without_directives(value: Any) -> Any:
    """What is new: no nulls in it, and no directives, which have nothing to act on.

    Only here kubectl does otherwise: a new object marked ``$patch: replace`` it leaves out without a word.
    """
    if isinstance(value, dict):
        _directive(value)
        return {
            name: _without_directives(inner)
            for name, inner in value.items()
            if inner is not None and not name.startswith("$") and not _deleted(inner)
        }
    if isinstance(value, list):
        return [
            _without_directives(item)
            for item in value
            if not (isinstance(item, dict) and _directive(item) is not None)
        ]
    return value


def _deleted(value: Any) -> bool:
    return isinstance(value, dict) and value.get("$patch") == "delete"


def _keyless(field: str, key: str) -> PlanError:
    return PlanError(Reason.INVALID_POD_TEMPLATE, f"podTemplate: an item of {field} has no {key}; add it")


def _misshapen(field: str, wanted: str) -> PlanError:
    return PlanError(Reason.INVALID_POD_TEMPLATE, f"podTemplate: {field} must be {wanted}")


def customised(rendered: dict[str, Any], patch: dict[str, Any] | None, field: str) -> dict[str, Any]:
    """The rendered template with the user's ``field`` (``worker.podTemplate``) merged over it.

    Raises PlanError(InvalidPodTemplate) where the merge would take away what the operator needs.
    """
    if not patch:
        return rendered
    unknown = sorted(set(patch) - {"metadata", "spec"})
    if unknown:
        raise _refused(field, f"unknown field {unknown[0]!r}; a PodTemplateSpec has metadata and spec")
    try:
        merged: dict[str, Any] = strategic_merge(rendered, patch)
    except PlanError as error:
        raise PlanError(error.reason, error.message.replace("podTemplate", field, 1)) from error
    for name, value in rendered["metadata"]["labels"].items():
        if merged.get("metadata", {}).get("labels", {}).get(name) != value:
            raise _refused(field, f"metadata.labels: {name} is set by the operator; remove it")
    _check_main(_main(rendered), _main(merged), field)
    _check_token(rendered, merged, field)
    if merged["spec"].get("serviceAccountName") != rendered["spec"].get("serviceAccountName"):
        instead = "use worker.serviceAccountName" if field == "worker.podTemplate" else "remove it"
        raise _refused(field, f"spec.serviceAccountName is set by the operator; {instead}")
    return merged


def _check_main(before: dict[str, Any] | None, after: dict[str, Any] | None, field: str) -> None:
    if after is None or before is None:
        raise _refused(field, "spec.containers: the container main must stay; remove its $patch")
    ours, theirs = _owned(before), _owned(after)
    for name in ours.keys() | theirs.keys():
        if ours.get(name) != theirs.get(name):
            raise _refused(field, f"container main, env: {name} is the operator's; leave it as it is")
    for part in ("command", "args"):
        if after.get(part) != before.get(part):
            raise _refused(field, f"container main: {part} is set by the operator; use engine.args")


def _check_token(before: dict[str, Any], after: dict[str, Any], field: str) -> None:
    """Dynamo finds the other pods through the API server, with the account's token."""
    automount = before["spec"].get("automountServiceAccountToken")
    if after["spec"].get("automountServiceAccountToken") == automount:
        return
    mounts = (_main(after) or {}).get("volumeMounts") or []
    paths = [PurePosixPath(str(mount.get("mountPath"))) for mount in mounts if isinstance(mount, dict)]
    if not any(_TOKEN_DIR.is_relative_to(path) for path in paths if path.is_absolute()):
        raise _refused(
            field,
            "spec.automountServiceAccountToken must be true, because Dynamo finds the endpoint's pods "
            f"through the API server; remove it, or mount a projected "
            f"serviceAccountToken at {_TOKEN_DIR} in main",
        )


def _owned(container: dict[str, Any]) -> dict[str, Any]:
    """The environment of the operator's own, by name."""
    env = container.get("env") or []
    if not isinstance(env, list):
        raise _misshapen("env", "a list")
    named = [item for item in env if isinstance(item, dict) and isinstance(item.get("name"), str)]
    return {item["name"]: item for item in named if owned_env(item["name"])}


def _main(template: dict[str, Any]) -> dict[str, Any] | None:
    containers = (template.get("spec") or {}).get("containers") or []
    return next((c for c in containers if c.get("name") == names.MAIN_CONTAINER), None)


def _refused(field: str, message: str) -> PlanError:
    return PlanError(Reason.INVALID_POD_TEMPLATE, f"{field}: {message}")
