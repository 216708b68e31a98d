"""Merges the user's podTemplate over the operator's pod template and rejects conflicts between them. Pure."""

from pathlib import PurePosixPath
from typing import Any, Final

from vllmendpoint_api import Reason, names, owned_env
from vllmendpoint_operator.errors import PlanError

from .strategic_merge import MergeError, strategic_merge

__all__ = ["merge_user_template"]

_TOKEN_DIR: Final = PurePosixPath("/var/run/secrets/kubernetes.io/serviceaccount")


def merge_user_template(
    template: dict[str, Any],
    patch: dict[str, Any] | None,
    field: str,
    owned_variables: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """``template`` with ``patch``, the value of ``field`` (such as ``worker.podTemplate``), merged over it.

    ``owned_variables``: environment variables of the main container that only the operator may set, in
    addition to those that it always owns.

    Raises PlanError(InvalidPodTemplate) if the patch is not valid or removes what the operator needs.
    """
    if not patch:
        return template
    try:
        merged = _merge(template, patch)
        _check_labels(template, merged)
        _check_main_container(template, merged, owned_variables)
        _check_service_account_token(template, merged)
        _check_service_account(template, merged, field)
    except MergeError as error:
        raise PlanError(Reason.INVALID_POD_TEMPLATE, f"{field}: {error}") from error
    return merged


def _merge(template: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(patch) - {"metadata", "spec"})
    if unknown:
        raise MergeError(f"The field {unknown[0]} does not exist. A PodTemplateSpec has metadata and spec.")
    merged: dict[str, Any] = strategic_merge(template, patch)
    return merged


def _check_labels(template: dict[str, Any], merged: dict[str, Any]) -> None:
    labels = merged.get("metadata", {}).get("labels", {})
    for name, value in template["metadata"]["labels"].items():
        if labels.get(name) != value:
            raise MergeError(f"The operator sets the label {name}. Remove it from metadata.labels.")


def _check_main_container(
    template: dict[str, Any], merged: dict[str, Any], owned_variables: frozenset[str]
) -> None:
    before, after = _main_container(template), _main_container(merged)
    if after is None or before is None:
        raise MergeError("The container main must not be removed. Remove $patch from spec.containers.")
    expected, found = _operator_env(before, owned_variables), _operator_env(after, owned_variables)
    for name in expected.keys() | found.keys():
        if expected.get(name) != found.get(name):
            raise MergeError(f"In env of the container main, {name} is set by the operator. Remove it.")
    for part in ("command", "args"):
        if after.get(part) != before.get(part):
            raise MergeError(f"The operator sets {part} of the container main. Use engine.args instead.")


def _check_service_account_token(template: dict[str, Any], merged: dict[str, Any]) -> None:
    """Dynamo uses the token to find the other pods through the API server."""
    automount = template["spec"].get("automountServiceAccountToken")
    if merged["spec"].get("automountServiceAccountToken") == automount:
        return
    mounts = (_main_container(merged) or {}).get("volumeMounts") or []
    paths = [PurePosixPath(str(mount.get("mountPath"))) for mount in mounts if isinstance(mount, dict)]
    if not any(_TOKEN_DIR.is_relative_to(path) for path in paths if path.is_absolute()):
        raise MergeError(
            "spec.automountServiceAccountToken must be true, because Dynamo finds the endpoint's pods "
            "through the API server. Remove the field, or mount a projected serviceAccountToken at "
            f"{_TOKEN_DIR} in the container main."
        )


def _check_service_account(template: dict[str, Any], merged: dict[str, Any], field: str) -> None:
    if merged["spec"].get("serviceAccountName") != template["spec"].get("serviceAccountName"):
        remedy = "Remove it" if field == "frontend.podTemplate" else "Use worker.serviceAccountName instead"
        raise MergeError(f"The operator sets spec.serviceAccountName. {remedy}.")


def _operator_env(container: dict[str, Any], owned_variables: frozenset[str]) -> dict[str, Any]:
    """Name -> variable, of the variables that only the operator may set."""
    env = container.get("env") or []
    if not isinstance(env, list):
        raise MergeError("The field env must be a list.")
    variables = [item for item in env if isinstance(item, dict) and isinstance(item.get("name"), str)]
    return {
        item["name"]: item for item in variables if owned_env(item["name"]) or item["name"] in owned_variables
    }


def _main_container(template: dict[str, Any]) -> dict[str, Any] | None:
    containers = (template.get("spec") or {}).get("containers") or []
    return next((found for found in containers if found.get("name") == names.MAIN_CONTAINER), None)
