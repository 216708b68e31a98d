"""Which payload the guide's functions give and send: the worker's own precedence, seen from code."""

import copy
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from vllmendpoint_api import Mode, ModelType, PayloadSource, Reason
from vllmendpoint_worker.config.merge import ABSENT, ENV_ENABLED, PayloadSources, Rejected, Resolved, merge
from vllmendpoint_worker.config.sources import REMOVED_VARIABLES, ConfigSources
from vllmendpoint_worker.payload.forms import Form
from vllmendpoint_worker.payload.validation import with_token_limit
from vllmendpoint_worker.setting_origin import SettingOrigin

from ._dynamo import HEALTH_CHECK_KEY, log_message
from ._errors import HealthCheckRejectedError
from ._model_type import detect_model_type

__all__ = ["announce", "configured", "sent"]

logger = logging.getLogger(__name__)

_GENERATE: Final = "generate"
_TYPES: Final = {model_type.value.lower(): model_type for model_type in ModelType}
_TOKENS: Final = "token_ids"


def configured(config: object, model_type: str | None) -> dict[str, Any] | None:
    """``get_health_check_payload()``: levels 2 to 5, and 1 where a VLLMEndpoint says something."""
    sources, _ = _read(config)
    told = _model_type(config, model_type)
    resolved = _resolve(sources, told)
    if resolved is None:
        announce("Health check payload: disabled")
        return None
    _announce(resolved, "")
    return copy.deepcopy(dict(resolved.payload))


def sent(payload: object, endpoint: str) -> dict[str, Any] | None:
    """What ``serve_endpoint()`` gives to Dynamo: ``payload`` at level 1, else the other levels; or none.

    Both markers are set: the guide's, and the one that Dynamo's own handlers look for.
    """
    sources, model_type = _read(None)
    runtime = ABSENT if payload is None else payload
    resolved = _resolve(replace(sources, runtime=_as_prompt(runtime)), model_type)
    if resolved is None:
        announce("Health check payload: disabled, endpoint=%s", endpoint)
        return None
    _announce(resolved, f" endpoint={endpoint}")
    # Dynamo's own form, which is checked as a prompt, is sent as it is.
    chosen: Any = runtime if resolved.source is PayloadSource.RUNTIME else resolved.payload
    chosen = with_token_limit(chosen)
    # Through JSON: a copy of our own, of nothing that Dynamo's Rust side does not take.
    return {**json.loads(json.dumps(chosen)), "_health_check": True, HEALTH_CHECK_KEY: True}


def announce(text: str, *values: object) -> None:
    """Log at INFO; through Dynamo's own log where the program has set up none, as the guide's example."""
    if logger.hasHandlers():
        logger.info(text, *values)
    else:
        log_message("info", text % values, __package__, __file__, 0)


def _announce(resolved: Resolved, where: str) -> None:
    shown = "not shown, it may hold a secret" if resolved.confidential else dict(resolved.payload)
    announce(
        "Health check payload: source=%s level=%s%s payload=%s",
        resolved.source,
        resolved.level,
        where,
        shown,
    )
    for ignored in resolved.ignored:
        announce("Health check payload: ignored %s: %s", ignored.source, ignored.reason)


def _read(config: object) -> tuple[PayloadSources, ModelType | None]:
    """What is set now, and ``VLLMENDPOINT_MODEL_TYPE``. ``config`` stands in the place of the config file."""
    reader = ConfigSources({**REMOVED_VARIABLES, **os.environ})
    sources = reader.load().sources
    if config is not None:
        sources = replace(
            sources,
            config_level=_setting(config, "health_check_level"),
            config_payload=_setting(config, "health_check_payload"),
            config_problems=(),
        )
    return sources, reader.model_type()[0]


def _setting(config: object, name: str) -> object:
    """A field of the guide's Config object, where None says nothing, or of a mapping like a config file's."""
    if isinstance(config, Mapping):
        return config.get(name, config.get(name.replace("_", "-"), ABSENT))
    if isinstance(config, str | bytes | os.PathLike | int | float | list | tuple | set):
        origin = SettingOrigin(PayloadSource.CONFIG_FILE, "config")
        what = f"is of type {type(config).__name__}"
        fix = "give an object or a mapping with model, health_check_level, health_check_payload; or None"
        raise HealthCheckRejectedError([origin.violation(what, fix, reason=Reason.INVALID_CONFIG_FILE)])
    value = getattr(config, name, None)
    return ABSENT if value is None else value


def _model_type(config: object, model_type: str | None) -> ModelType | None:
    """The guide's ``model_type``; None where it cannot be told, which means the generic default."""
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
    raise HealthCheckRejectedError([origin.violation("is no type of model", f"use one of {known}")])


def _resolve(sources: PayloadSources, model_type: ModelType | None) -> Resolved | None:
    """None where payloads are turned off: by ``DYN_HEALTH_CHECK_PAYLOAD_DISABLED``, or by a VLLMEndpoint."""
    resolved = merge(sources, None, model_type)
    if isinstance(resolved, Rejected):
        raise HealthCheckRejectedError(resolved.problems)
    # DYN_HEALTH_CHECK_ENABLED=false is Dynamo's to obey: it then asks nothing, and calls an endpoint ready
    # that has a payload.
    others = {name: value for name, value in sources.environment.items() if name != ENV_ENABLED}
    switched = merge(replace(sources, environment=others), None, model_type)
    return None if isinstance(switched, Resolved) and switched.mode is Mode.DISABLED else resolved


def _as_prompt(payload: object) -> object:
    """Dynamo's own form (``VllmHealthCheckPayload(...).to_dict()``) is checked as a prompt of tokens."""
    if not isinstance(payload, Mapping) or _TOKENS not in payload or any(form in payload for form in Form):
        return payload
    tokens = payload[_TOKENS]
    if not isinstance(tokens, list) or not tokens or not all(type(token) is int for token in tokens):
        origin = SettingOrigin(PayloadSource.RUNTIME, "health_check_payload")
        what, fix = "is no list of token ids", "give at least one whole number"
        raise HealthCheckRejectedError([origin.violation(what, fix, field=_TOKENS)])
    return {**{name: value for name, value in payload.items() if name != _TOKENS}, Form.PROMPT.value: tokens}
