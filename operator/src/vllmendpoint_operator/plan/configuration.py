"""The two ConfigMaps: settings that take effect without a restart, and the engine's config file. Pure."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

from vllmendpoint_api import (
    ConfigMapKeyRef,
    HandlerSettings,
    HealthCheckSettings,
    Reason,
    ScriptKeyRef,
    VLLMEndpointSpec,
    WorkerSettings,
    names,
    script_digest,
)
from vllmendpoint_operator.errors import PlanError
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed

__all__ = [
    "config_file",
    "config_map",
    "config_name",
    "digest",
    "handler_script",
    "health_check",
    "settings_map",
    "settings_name",
    "worker_settings",
]


def digest(value: Any) -> str:
    """Ten hex digits of the SHA-256 of ``value`` as JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def health_check(spec: VLLMEndpointSpec) -> HealthCheckSettings:
    """The health check of the spec."""
    check = spec.health_check
    return HealthCheckSettings.model_validate(check.wire()) if check else HealthCheckSettings()


def worker_settings(
    spec: VLLMEndpointSpec, script: str | None, check: HealthCheckSettings | None = None
) -> WorkerSettings:
    """``script``: text of the handlers' script. ``check``: a health check to use instead of the spec's."""
    hot, handlers = check or health_check(spec), spec.handlers
    if handlers is None:
        return WorkerSettings(health_check=hot).sealed()
    settings = HandlerSettings(
        script_digest=None if script is None else script_digest(script.encode()),
        ping=handlers.ping,
        invocations=handlers.invocations,
    )
    return WorkerSettings(health_check=hot, handlers=settings).sealed()


def settings_name(endpoint: Endpoint) -> str:
    return f"{endpoint.name}-settings"


def settings_map(
    endpoint: Endpoint, settings: WorkerSettings, script: str | None, annotations: Mapping[str, str]
) -> dict[str, Any]:
    """The ConfigMap with settings and script. In one ConfigMap, the kubelet updates both atomically."""
    # msgspec indents: with an indent, json.dumps creates reference cycles on each reconcile.
    text = msgspec.json.format(json.dumps(settings.wire(), sort_keys=True), indent=2) + "\n"
    data = {names.SETTINGS_FILE: text} | ({} if script is None else {names.SCRIPT_FILE: script})
    metadata: dict[str, Any] = {"name": settings_name(endpoint), "labels": endpoint.labels("settings")}
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def config_file(spec: VLLMEndpointSpec, observed: Observed) -> str | None:
    """Text of the engine's config file; None if the spec has none.

    Raises PlanError if the ConfigMap or its key does not exist.
    """
    config = spec.engine.config
    if config is None:
        return None
    if config.inline is not None:
        return yaml.safe_dump(config.inline, sort_keys=True)
    return _referenced_text(config.config_map_key_ref, "engine.config", observed)


def handler_script(spec: VLLMEndpointSpec, observed: Observed) -> str | None:
    """Text of the handlers' script; None if the spec has none.

    Raises PlanError if the ConfigMap or its key does not exist.
    """
    script = spec.handlers.script if spec.handlers is not None else None
    if script is None:
        return None
    if script.inline is not None:
        return script.inline
    return _referenced_text(script.config_map_key_ref, "handlers.script", observed)


def _referenced_text(reference: ConfigMapKeyRef | ScriptKeyRef | None, field: str, observed: Observed) -> str:
    if reference is None:
        raise PlanError(Reason.INVALID_SPEC, f"{field}: Set exactly one of inline and configMapKeyRef.")
    found = observed.config_maps.get(reference.name)
    if found is None:
        raise PlanError(
            Reason.CONFIG_MAP_NOT_FOUND,
            f"{field}.configMapKeyRef: The ConfigMap {reference.name!r} does not exist in this namespace. "
            "Create it, or set another name.",
        )
    if reference.key not in found.data:
        raise PlanError(
            Reason.CONFIG_MAP_KEY_NOT_FOUND,
            f"{field}.configMapKeyRef: The ConfigMap {reference.name!r} has no key {reference.key!r}. "
            f"Its keys: {', '.join(sorted(found.data)) or 'none'}.",
        )
    return found.data[reference.key]


def config_name(endpoint: Endpoint, text: str) -> str:
    return f"{endpoint.name}-config-{digest(text)}"


def config_map(endpoint: Endpoint, text: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": config_name(endpoint, text), "labels": endpoint.labels("config")},
        "immutable": True,
        "data": {names.CONFIG_FILE: text},
    }
