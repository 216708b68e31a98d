"""Rejects options that the worker or the operator does not allow, whichever place sets them. Pure.

The table in ``vllmendpoint_api`` gives the rule of each option and the alternative
(``docs/decisions/0014-one-table-of-options.md``). The rules that depend on
the operator apply only if :data:`names.ENV_FRONTEND_MODE` is set, which the operator renders.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from vllmendpoint_api import (
    COMPARED_OPTIONS,
    ENGINE_OPTIONS,
    OWNED_ENV,
    RENDERED_ENV,
    SERVED_OPTIONS,
    SHORT_OPTIONS,
    UNSUPPORTED_ENV,
    EngineOption,
    FrontendMode,
    OptionRule,
    PayloadSource,
    Problem,
    Reason,
    RoutingMode,
    names,
)
from vllmendpoint_worker.setting_origin import SettingOrigin

from .option_setting import FALSE, OptionSetting, canonical_form, destination

__all__ = ["frontend_mode", "rejected_options", "rejected_variables", "routes_by_kv"]

_UNSUPPORTED: Final = "is not supported by the worker"
_OWNED: Final = "is set by the operator"
_ROUTING: Final = "contradicts spec.frontend.routing"
_FRONTEND: Final = "is read by the server on port 8080, not at status.url"

_RENDERED_FROM_SPEC: Final = frozenset(
    {"--model", "--served-model-name", "--revision", "--kv-events-config", "--disaggregation-mode"}
)
"""The operator renders these arguments from fields of the spec."""

_BY_DESTINATION: Final = {destination(name): name for name in ENGINE_OPTIONS}
_STATIC_NAMES: Final = {
    **{name: destination(name) for name in ENGINE_OPTIONS},
    **{short: destination(name) for short, name in SHORT_OPTIONS.items()},
}
"""The names in the table, for the check before the parsers are imported."""

_FALSE_VALUES: Final = frozenset({"", "0", "false", "no", "off"})
"""Values of a variable that disable a switch in Dynamo."""


def frontend_mode(environ: Mapping[str, str]) -> FrontendMode | None:
    """``frontend.mode`` of the endpoint; None outside the operator.

    An unknown value comes from a newer operator and counts as Managed, the stricter mode.
    """
    mode = environ.get(names.ENV_FRONTEND_MODE, "").strip()
    if not mode:
        return None
    return FrontendMode.NONE if mode == FrontendMode.NONE else FrontendMode.MANAGED


def routes_by_kv(environ: Mapping[str, str]) -> bool:
    """Whether ``frontend.routing.mode`` of the endpoint is KV."""
    return environ.get(names.ENV_ROUTING_MODE, "").strip() == RoutingMode.KV


def rejected_options(
    settings: Iterable[OptionSetting],
    parser_names: Mapping[str, str],
    mode: FrontendMode | None,
    *,
    kv: bool = False,
) -> list[Problem]:
    """One problem for each setting of a rejected option.

    ``parser_names``: option -> ``dest``; empty before the engine's parsers are imported. ``kv``: from
    :func:`routes_by_kv`.
    """
    problems = []
    for setting in settings:
        name, value = canonical_form(setting, parser_names or _STATIC_NAMES)
        option_name = _BY_DESTINATION.get(name, "")
        if option_name and not _is_exempt(setting, option_name):
            option = ENGINE_OPTIONS[option_name]
            if (fault := _rejection(option, mode, kv=kv)) and _applies(option, value):
                problems.append(setting.violation(fault, _remove(option.instead)))
    return problems


def _remove(alternative: str) -> str:
    return f"Remove it ({alternative})."


def _is_exempt(setting: OptionSetting, option: str) -> bool:
    """Whether another check compares the setting with the operator's own value."""
    match setting.origin.source:
        case PayloadSource.SPEC:
            return option in _RENDERED_FROM_SPEC
        case PayloadSource.ENVIRONMENT:
            own = not setting.origin.field.startswith("SM_VLLM_")  # the operator's variable
            return own or option in COMPARED_OPTIONS or option in SERVED_OPTIONS
        case _:
            return option in COMPARED_OPTIONS


def _rejection(option: EngineOption, mode: FrontendMode | None, *, kv: bool) -> str:
    """Why the option is rejected, or ""."""
    if kv and option.rule in (OptionRule.ROUTING, OptionRule.KV_EVENTS):
        return _ROUTING
    if option.rule is OptionRule.UNSUPPORTED:
        return _UNSUPPORTED
    if option.rule is OptionRule.OWNED and mode is not None:
        return _OWNED
    if option.rule is OptionRule.FRONTEND and mode is FrontendMode.MANAGED:
        return _FRONTEND
    return ""


def _applies(option: EngineOption, value: tuple[str, ...]) -> bool:
    if option.only_disabled:
        return value == FALSE
    if option.values:
        return any(token.strip('"') in option.values for token in value)
    return not (option.switch and value == FALSE)


@dataclass(frozen=True, slots=True)
class _VariableRule:
    fault: str
    alternative: str
    switch: bool = False
    values: tuple[str, ...] = ()
    """Rejected values; empty: every value."""

    def rejects(self, text: str) -> bool:
        value = text.lower()
        if value in _FALSE_VALUES if self.switch else not value:
            return False
        return not self.values or value in self.values


def rejected_variables(
    environ: Mapping[str, str], mode: FrontendMode | None, *, kv: bool = False
) -> list[Problem]:
    """One problem for each variable that Dynamo or vLLM reads as a rejected option."""
    problems = []
    for variable, rule in sorted(_variable_rules(mode, kv=kv).items()):
        if rule.rejects(environ.get(variable, "").strip()):
            origin = SettingOrigin(PayloadSource.ENVIRONMENT, variable, confidential=True)
            fix = _remove(rule.alternative)
            problems.append(origin.violation(rule.fault, fix, reason=Reason.INVALID_ENVIRONMENT))
    return problems


def _variable_rules(mode: FrontendMode | None, *, kv: bool) -> dict[str, _VariableRule]:
    """The rules of options have priority over those of variables."""
    rules = {
        variable: _VariableRule(_UNSUPPORTED, alternative, switch=True)
        for variable, alternative in UNSUPPORTED_ENV.items()
    }
    if mode is not None:
        rules |= {
            variable: _VariableRule(_OWNED, alternative)
            for variable, alternative in OWNED_ENV.items()
            if variable not in RENDERED_ENV
        }
    return rules | {
        variable: _VariableRule(fault, option.instead, option.switch, option.values)
        for option in ENGINE_OPTIONS.values()
        if (fault := _rejection(option, mode, kv=kv))
        for variable in option.env
        if variable not in RENDERED_ENV
    }
