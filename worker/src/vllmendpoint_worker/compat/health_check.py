"""Stands for ``dynamo.vllm.health_check``: the guide's two functions, and all that upstream has there."""

from collections.abc import Mapping
from typing import Any

from vllmendpoint_api import PayloadSource
from vllmendpoint_worker.config.custom_default import CUSTOM_DEFAULT
from vllmendpoint_worker.payload.validation import check_payload
from vllmendpoint_worker.setting_origin import SettingOrigin

from ._dynamo import upstream_health_check
from ._errors import HealthCheckRejectedError
from ._payloads import configured

__all__ = ["get_health_check_payload", "set_custom_health_check_payload"]


def get_health_check_payload(
    config: object = None, model_type: str | None = "generate"
) -> dict[str, Any] | None:
    """The payload in force by the guide's "Configuration Priority", a new dict, to the letter.

    ``config``: the guide's Config (an object, a class or a mapping) with ``model``, ``health_check_level``,
    ``health_check_payload``, all optional; None: the file that ``VLLMENDPOINT_CONFIG_FILE`` names, if any.
    ``model_type``: ``generate`` (chat where the model, found on this machine, has a chat template), ``chat``,
    ``completion`` or ``embedding``; None: the generic default. None is returned where
    ``DYN_HEALTH_CHECK_PAYLOAD_DISABLED`` is true; ``serve_endpoint()`` then sends none either. Names of
    fields are checked by the worker, not here, where no vLLM is needed. Raises HealthCheckRejectedError, a
    ValueError. Reads small files and blocks for that long.
    """
    return configured(config, model_type)


def set_custom_health_check_payload(payload: Mapping[str, Any] | None) -> None:
    """A default for all endpoints of this process, instead of the model's; None takes it back.

    In the worker (a handler script) it is in force within seconds, where nothing stronger is set. Raises
    HealthCheckRejectedError, a ValueError, and leaves what was set before.
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
