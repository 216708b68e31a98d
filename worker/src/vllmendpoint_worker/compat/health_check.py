"""Replaces ``dynamo.vllm.health_check``: the guide's two functions, and all names of upstream's module."""

from collections.abc import Mapping
from typing import Any

from vllmendpoint_api import PayloadSource
from vllmendpoint_worker.config.custom_default import CUSTOM_DEFAULT
from vllmendpoint_worker.payload.validation import check_payload
from vllmendpoint_worker.setting_origin import SettingOrigin

from ._dynamo import upstream_health_check
from ._errors import HealthCheckRejectedError
from ._payloads import configured_payload

__all__ = ["get_health_check_payload", "set_custom_health_check_payload"]


def get_health_check_payload(
    config: object = None, model_type: str | None = "generate"
) -> dict[str, Any] | None:
    """The active payload, as docs/guide/health-check-payloads.md, "Configuration priority", defines it.

    ``config``: the guide's Config (an object, a class or a mapping) with ``model``, ``health_check_level``,
    ``health_check_payload``, all optional. Default: the file that ``VLLMENDPOINT_CONFIG_FILE`` names, if any.
    ``model_type``: ``generate`` (chat if the model is on this machine and has a chat template), ``chat``,
    ``completion`` or ``embedding``; None for the generic default.

    Returns a new dict, without checking the names of its fields, which needs vLLM; the worker checks them.
    Returns None if ``DYN_HEALTH_CHECK_PAYLOAD_DISABLED`` is true; ``serve_endpoint()`` then sends no payload
    either. Raises HealthCheckRejectedError, a ValueError. Blocks while it reads small files.
    """
    return configured_payload(config, model_type)


def set_custom_health_check_payload(payload: Mapping[str, Any] | None) -> None:
    """Set a default for all endpoints of this process, which replaces the model's default. None removes it.

    In a handler script, it becomes active within seconds, unless a level with a higher priority is set.
    Raises HealthCheckRejectedError, a ValueError, and keeps the former default.
    """
    if payload is not None:
        origin = SettingOrigin(PayloadSource.CUSTOM_DEFAULT, "set_custom_health_check_payload()")
        if problems := check_payload(payload, origin, None, None):
            raise HealthCheckRejectedError(problems)
    CUSTOM_DEFAULT.set(payload)


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(upstream_health_check(), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *vars(upstream_health_check())})
