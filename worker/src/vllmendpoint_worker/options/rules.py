"""Options that this worker refuses from every source, by the parsers' own names for them. Pure.

What is refused, and what to do instead, is the table in ``vllmendpoint_api``. What depends on the operator is
refused only where :data:`names.ENV_FRONTEND_MODE` is set, which the operator renders.
"""

from collections.abc import Iterable, Mapping
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
    names,
)
from vllmendpoint_worker.setting_origin import SettingOrigin

from .conflicts import FALSE, REASON_BY_SOURCE, OptionSetting, canonical_form, destination

__all__ = ["frontend_mode", "rejected_options", "rejected_variables"]

_RENDERED_FROM_SPEC: Final = frozenset({"--model", "--served-model-name", "--revision"})
"""The operator renders these as arguments; the spec gives them."""

_BY_DESTINATION: Final = {destination(name): name for name in ENGINE_OPTIONS}
_STATIC_NAMES: Final = {
    **{name: destination(name) for name in ENGINE_OPTIONS},
    **{short: destination(name) for short, name in SHORT_OPTIONS.items()},
}
"""The table's own names, before the parsers are imported."""

_FALSE_VALUES: Final = frozenset({"", "0", "false", "no", "off"})
"""What Dynamo reads as a switch that is off."""


def frontend_mode(environ: Mapping[str, str]) -> FrontendMode | None:
    """``frontend.mode`` of the endpoint; None where no operator runs this worker. An unknown value is that of
    a newer operator, and counts as Managed, the stricter mode.
    """
    mode = environ.get(names.ENV_FRONTEND_MODE, "").strip()
    if not mode:
        return None
    return FrontendMode.NONE if mode == FrontendMode.NONE else FrontendMode.MANAGED


def rejected_options(
    given: Iterable[OptionSetting], parser_names: Mapping[str, str], mode: FrontendMode | None
) -> list[Problem]:
    """One problem for each option that is refused here. ``parser_names``: option -> the parser's name for it;
    empty before the engine's parsers are imported.
    """
    problems = []
    for each in given:
        name, value = canonical_form(each, parser_names or _STATIC_NAMES)
        whole = _BY_DESTINATION.get(name, "")
        if whole and not _is_exempt(each, whole):
            option = ENGINE_OPTIONS[whole]
            if (what := _rejection(option, mode)) and _applies(option, value):
                fix = f"remove it ({option.instead})"
                problems.append(each.origin.violation(what, fix, reason=REASON_BY_SOURCE[each.origin.source]))
    return problems


def _is_exempt(given: OptionSetting, whole: str) -> bool:
    """Whether another check compares it with the operator's own value."""
    match given.origin.source:
        case PayloadSource.SPEC:
            return whole in _RENDERED_FROM_SPEC
        case PayloadSource.ENVIRONMENT:
            own = not given.origin.field.startswith("SM_VLLM_")  # the operator's variable itself
            return own or whole in COMPARED_OPTIONS or whole in SERVED_OPTIONS
        case _:
            return whole in COMPARED_OPTIONS


def _rejection(option: EngineOption, mode: FrontendMode | None) -> str:
    """What is wrong with the option; empty where it is not refused."""
    if option.rule is OptionRule.UNSUPPORTED:
        return "is not supported by the worker"
    if option.rule is OptionRule.OWNED and mode is not None:
        return "is set by the operator"
    if option.rule is OptionRule.FRONTEND and mode is FrontendMode.MANAGED:
        return "is read by the server on port 8080, not at status.url"
    return ""


def _applies(option: EngineOption, value: tuple[str, ...]) -> bool:
    if option.values:
        return any(token.strip('"') in option.values for token in value)
    return not (option.switch and value == FALSE)


def rejected_variables(environ: Mapping[str, str], mode: FrontendMode | None) -> list[Problem]:
    """One problem for each variable that Dynamo or vLLM reads as an option that is refused here."""
    problems = []
    for variable, (what, why, switch, values) in sorted(_variables(mode).items()):
        raw = environ.get(variable, "").strip()
        off = raw.lower() in _FALSE_VALUES if switch else not raw
        if off or (values and raw.lower() not in values):
            continue
        origin = SettingOrigin(PayloadSource.ENVIRONMENT, variable, confidential=True)
        problems.append(origin.violation(what, f"remove it ({why})", reason=Reason.INVALID_ENVIRONMENT))
    return problems


def _variables(mode: FrontendMode | None) -> dict[str, tuple[str, str, bool, tuple[str, ...]]]:
    """Variable -> what is wrong with it, why, whether it is a switch, and the values that are refused."""
    found = {
        variable: (what, option.instead, option.switch, option.values)
        for option in ENGINE_OPTIONS.values()
        if (what := _rejection(option, mode))
        for variable in option.env
        if variable not in RENDERED_ENV
    }
    unsupported = {name: ("is not supported by the worker", why) for name, why in UNSUPPORTED_ENV.items()}
    owned = {
        name: ("is set by the operator", why)
        for name, why in OWNED_ENV.items()
        if mode is not None and name not in RENDERED_ENV
    }
    for name, (what, why) in (unsupported | owned).items():
        found.setdefault(name, (what, why, name in UNSUPPORTED_ENV, ()))
    return found
