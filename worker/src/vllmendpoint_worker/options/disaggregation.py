"""The role of a worker whose endpoint has separate workers for prefill and decode, and the connector that
transfers the KV cache between them. Pure.

See docs/decisions/0043-prefill-and-decode.md.
"""

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

from vllmendpoint_api import POOLED, ModelType, PayloadSource, Problem, Reason
from vllmendpoint_worker.setting_origin import SettingOrigin

from .option_setting import OptionSetting, canonical_form, destination

__all__ = ["Role", "connector_arguments", "pooled_problem", "role", "transport_environment"]

_MODE: Final = "--disaggregation-mode"
_MODE_VARIABLE: Final = "DYN_VLLM_DISAGGREGATION_MODE"
"""Dynamo's default of the option. If an operator runs the worker, the variable is rejected."""

_CONNECTOR: Final = "--kv-transfer-config"
_TRANSPORTS: Final = "UCX_TLS"


class Role(StrEnum):
    """The values of Dynamo's ``--disaggregation-mode`` for workers of one phase."""

    PREFILL = "prefill"
    DECODE = "decode"


_KV_ROLES: Final = {Role.PREFILL: "kv_producer", Role.DECODE: "kv_consumer"}
"""vLLM's names of the roles."""


def role(
    settings: Iterable[OptionSetting], names: Mapping[str, str], environ: Mapping[str, str]
) -> Role | None:
    """None if the worker runs both phases. ``names``: option -> ``dest``.

    Other values, such as ``encode``, are left to Dynamo's parser and to the check of its result.
    """
    mode = next(iter(_values(settings, names, _MODE)), None) or environ.get(_MODE_VARIABLE, "").strip()
    return Role(mode) if mode in list(Role) else None


def connector_arguments(
    worker_role: Role, settings: Iterable[OptionSetting], names: Mapping[str, str]
) -> list[str]:
    """NixlConnector for the role; nothing if a connector is set in any place and in any notation.

    The device of its buffers is the platform's in vLLM. It frees the KV blocks of a prompt that no decode
    worker reads after 30 s (``kv_lease_duration``), so no time limit is set.
    """
    if any(True for _ in _values(settings, names, _CONNECTOR)):
        return []
    config = {"kv_connector": "NixlConnector", "kv_role": _KV_ROLES[worker_role]}
    return [_CONNECTOR, json.dumps(config)]


def _values(settings: Iterable[OptionSetting], names: Mapping[str, str], option: str) -> Iterable[str]:
    for setting in settings:
        name, value = canonical_form(setting, names)
        if name == names.get(option, destination(option)):
            yield value[-1] if value else ""


def transport_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables to add on a machine without a GPU, before NIXL is imported: UCX uses the transport that
    reaches other pods on every node. Others, such as RDMA, are the user's choice.
    """
    return {} if environ.get(_TRANSPORTS, "").strip() else {_TRANSPORTS: "tcp,self"}


def pooled_problem(worker_role: Role | None, model_type: ModelType | None, *, pools: bool) -> Problem | None:
    """The problem of a model without a prefill and a decode phase. ``pools``: whether vLLM pools it."""
    if worker_role is None or not (pools or model_type in POOLED):
        return None
    return SettingOrigin(PayloadSource.SPEC, "prefill").violation(
        f"is set ({_MODE} {worker_role}), but the model does not generate tokens, so it has no prefill and "
        "decode phases",
        "Remove spec.prefill.",
        reason=Reason.INVALID_SETTINGS,
    )
