"""Resolves the payloads that the guide's functions return and send, with the worker's own precedence."""

import copy
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from vllmendpoint_api import Mode, ModelType, PayloadSource, Reason
from vllmendpoint_worker.config.merge import merge
from vllmendpoint_worker.config.payload_sources import ABSENT, PayloadSources
from vllmendpoint_worker.config.probe_settings import ENV_ENABLED
from vllmendpoint_worker.config.resolved import Resolved, Unresolved
from vllmendpoint_worker.config.sources import REMOVED_VARIABLES, ConfigSources
from vllmendpoint_worker.payload.forms import Form
from vllmendpoint_worker.payload.token_limits import with_token_limit
from vllmendpoint_worker.setting_origin import SettingOrigin

from ._dynamo import HEALTH_CHECK_KEY, log_message
from ._errors import HealthCheckRejectedError
from ._model_type import detect_model_type

__all__ = ["configured_payload", "log_info", "payload_to_send"]

logger = logging.getLogger(__name__)

_GENERATE: Final = "generate"
_TYPES: Final = {model_type.value.lower(): model_type for model_type in ModelType}
_TOKENS: Final = "token_ids"


def configured_payload(config: object, model_type: str | None) -> dict[str, Any] | None:
    """The result of ``get_health_check_payload()``: levels 2 to 5, and 1 if a VLLMEndpoint sets a payload.

    The levels are those of docs/guide/health-check-payloads.md, "Configuration priority".
    """
    sources, _ = _read_sources(config)
    resolved = _resolve(sources, _parse_model_type(config, model_type))
    if resolved is None:
        log_info("Health check payload: disabled")
        return None
    _log_resolved(resolved, "")
    return copy.deepcopy(dict(resolved.payload))


def payload_to_send(payload: object, endpoint: str) -> dict[str, Any] | None:
    """The payload that ``serve_endpoint()`` passes to Dynamo: ``payload`` at level 1, otherwise the other
    levels.

    It has both markers: the guide's, and that of Dynamo's own handlers. None if payloads are disabled.
    """
    sources, model_type = _read_sources(None)
    runtime = ABSENT if payload is None else payload
    resolved = _resolve(replace(sources, runtime=_to_prompt(runtime)), model_type)
    if resolved is None:
        log_info("Health check payload: disabled, endpoint=%s", endpoint)
        return None
    _log_resolved(resolved, f" endpoint={endpoint}")
    # Dynamo's own form is checked as a prompt, but sent unchanged.
    chosen: Any = runtime if resolved.source is PayloadSource.RUNTIME else resolved.payload
    chosen = with_token_limit(chosen)
    # Copied through JSON, so that it has only types that Dynamo's Rust code accepts.
    return {**json.loads(json.dumps(chosen)), "_health_check": True, HEALTH_CHECK_KEY: True}


def log_info(text: str, *values: object) -> None:
    """Log at INFO. A program that sets up no logging, such as the guide's example, uses Dynamo's log."""
    if logger.hasHandlers():
        logger.info(text, *values)
    else:
        log_message("info", text % values, __package__, __file__, 0)


def _log_resolved(resolved: Resolved, endpoint: str) -> None:
    shown = "not shown, it may hold a secret" if resolved.confidential else dict(resolved.payload)
    log_info(
        "Health check payload: source=%s level=%s%s payload=%s",
        resolved.source,
        resolved.level,
        endpoint,
        shown,
    )
    for ignored in resolved.ignored:
        log_info("Health check payload: ignored %s: %s", ignored.source, ignored.reason)


def _read_sources(config: object) -> tuple[PayloadSources, ModelType | None]:
    """The current settings, and ``VLLMENDPOINT_MODEL_TYPE``. ``config`` replaces the config file."""
    reader = ConfigSources({**REMOVED_VARIABLES, **os.environ})
    sources = reader.load().sources
    if config is not None:
        sources = replace(
            sources,
            config_level=_config_field(config, "health_check_level"),
            config_payload=_config_field(config, "health_check_payload"),
            config_problems=(),
        )
    return sources, reader.model_type()[0]


def _config_field(config: object, name: str) -> object:
    """A field of the guide's Config object, in which None means unset, or of a mapping like a config file."""
    if isinstance(config, Mapping):
        return config.get(name, config.get(name.replace("_", "-"), ABSENT))
    if isinstance(config, str | bytes | os.PathLike | int | float | list | tuple | set):
        origin = SettingOrigin(PayloadSource.CONFIG_FILE, "config")
        what = f"is of type {type(config).__name__}"
        fix = "Use None, or an object or mapping with model, health_check_level and health_check_payload."
        raise HealthCheckRejectedError([origin.violation(what, fix, reason=Reason.INVALID_CONFIG_FILE)])
    value = getattr(config, name, None)
    return ABSENT if value is None else value


def _parse_model_type(config: object, model_type: str | None) -> ModelType | None:
    """The guide's ``model_type``. None, for the generic default, if it is not set or cannot be detected."""
    if model_type is None:
        return None
    word = model_type.lower() if isinstance(model_type, str) else ""
    if word == _GENERATE:
        return detect_model_type(
            config.get("model") if isinstance(config, Mapping) else getattr(config, "model", None)
        )
    if word in _TYPES:
        return _TYPES[word]
    origin = SettingOrigin(PayloadSource.RUNTIME, "model_type")
    known = ", ".join([_GENERATE, *_TYPES])
    raise HealthCheckRejectedError([origin.violation("is not a model type", f"Use one of {known}.")])


def _resolve(sources: PayloadSources, model_type: ModelType | None) -> Resolved | None:
    """None if ``DYN_HEALTH_CHECK_PAYLOAD_DISABLED`` or a VLLMEndpoint turns payloads off."""
    resolved = merge(sources, None, model_type)
    if isinstance(resolved, Unresolved):
        raise HealthCheckRejectedError(resolved.problems)
    # Dynamo itself obeys DYN_HEALTH_CHECK_ENABLED=false: it then sends no request, and reports an endpoint
    # that has a payload as ready.
    others = {name: value for name, value in sources.environment.items() if name != ENV_ENABLED}
    without_switch = merge(replace(sources, environment=others), None, model_type)
    return None if isinstance(without_switch, Resolved) and without_switch.mode is Mode.DISABLED else resolved


def _to_prompt(payload: object) -> object:
    """Dynamo's own form (``VllmHealthCheckPayload(...).to_dict()``) as a prompt of tokens, to be checked."""
    if not isinstance(payload, Mapping) or _TOKENS not in payload or any(form in payload for form in Form):
        return payload
    tokens = payload[_TOKENS]
    if not isinstance(tokens, list) or not tokens or not all(type(token) is int for token in tokens):
        origin = SettingOrigin(PayloadSource.RUNTIME, "health_check_payload")
        what, fix = "is not a list of token ids", "Use at least one integer."
        raise HealthCheckRejectedError([origin.violation(what, fix, field=_TOKENS)])
    return {**{name: value for name, value in payload.items() if name != _TOKENS}, Form.PROMPT.value: tokens}
