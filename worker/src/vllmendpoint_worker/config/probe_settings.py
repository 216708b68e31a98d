"""How the engine is asked, besides the payload: whether, how often, and what the answer must be. Pure.

The CR outranks the guide's variables (design, section 4); nothing invalid falls through to what is weaker.
"""

from collections.abc import Mapping
from typing import Final

from pydantic.alias_generators import to_camel

from vllmendpoint_api import (
    DEFAULT_PERIOD_SECONDS,
    POOLED,
    HealthCheckSettings,
    Ignored,
    Mode,
    ModelType,
    PayloadSource,
    Problem,
    Reason,
)
from vllmendpoint_worker.payload.expect import regex_error
from vllmendpoint_worker.payload.forms import SCORE_FORMS, Form, form_of
from vllmendpoint_worker.setting_origin import SettingOrigin

__all__ = [
    "ENV_ENABLED",
    "ENV_INTERVAL",
    "ENV_PAYLOAD_DISABLED",
    "expectation_problems",
    "outranked_variables",
    "oversized_numbers",
    "resolve_mode",
    "resolve_period",
]

ENV_PAYLOAD_DISABLED: Final = "DYN_HEALTH_CHECK_PAYLOAD_DISABLED"
ENV_ENABLED: Final = "DYN_HEALTH_CHECK_ENABLED"
ENV_INTERVAL: Final = "DYN_HEALTH_CHECK_INTERVAL"

MAX_NUMBER: Final = 2**31 - 1
"""Largest threshold, and largest number of seconds."""

_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off", ""})


def resolve_mode(spec: HealthCheckSettings, environment: Mapping[str, str]) -> tuple[Mode, list[Problem]]:
    """The CR's mode, else the guide's two switches; a payload alone does not turn probing on again."""
    if spec.mode is not None:
        return Mode(spec.mode), []
    problems = []
    off = False
    for name, turns_off in ((ENV_PAYLOAD_DISABLED, True), (ENV_ENABLED, False)):
        raw = environment.get(name)
        if raw is None:
            continue
        value = raw.strip().lower()
        if value in _TRUE or (value in _FALSE and (value or turns_off)):
            off = off or (value in _TRUE) is turns_off
        elif value:
            origin = SettingOrigin(PayloadSource.ENVIRONMENT, name, confidential=True)
            problems.append(
                origin.violation(
                    "is neither true nor false", "use true or false", reason=Reason.INVALID_ENVIRONMENT
                )
            )
    return (Mode.DISABLED if off else Mode.ENFORCE), problems


def resolve_period(spec: HealthCheckSettings, environment: Mapping[str, str]) -> tuple[float, list[Problem]]:
    """Seconds between probes: the CR's, else the guide's interval, else the default."""
    if spec.period_seconds is not None:
        return float(spec.period_seconds), []
    raw = environment.get(ENV_INTERVAL)
    if raw is None:
        return float(DEFAULT_PERIOD_SECONDS), []
    try:
        period = float(raw)
    except ValueError:
        period = 0.0
    if not 1.0 <= period <= 86400.0:  # False for NaN too
        origin = SettingOrigin(PayloadSource.ENVIRONMENT, ENV_INTERVAL, confidential=True)
        return 0.0, [
            origin.violation(
                "is not a number of seconds from 1 to 86400",
                "use a number such as 30",
                reason=Reason.INVALID_ENVIRONMENT,
            )
        ]
    return period, []


def oversized_numbers(spec: HealthCheckSettings) -> list[Problem]:
    """What admission bounds; a file written by hand may not."""
    return [
        SettingOrigin(PayloadSource.SPEC, f"healthCheck.{to_camel(name)}").violation(
            f"is larger than {MAX_NUMBER}", "use a smaller number", reason=Reason.INVALID_SETTINGS
        )
        for name in HealthCheckSettings.model_fields
        if isinstance(value := getattr(spec, name), int) and value > MAX_NUMBER
    ]


def expectation_problems(
    spec: HealthCheckSettings, payload: object, model_type: ModelType | None
) -> list[Problem]:
    """The CR's alone: the guide has nothing like it."""
    expect = spec.expect
    if expect is None:
        return []
    origin = SettingOrigin(PayloadSource.SPEC, "healthCheck.expect")
    reason = Reason.INVALID_SETTINGS
    form = form_of(payload) if isinstance(payload, Mapping) else None
    if model_type in POOLED or (model_type is None and form in SCORE_FORMS | {Form.INPUT}):
        model = "an embedding" if model_type in (ModelType.EMBEDDING, None) else "this type of"
        what = f"does not fit {model} model, which generates no text to match"
        return [origin.violation(what, "remove it", reason=reason)]
    if not expect.regex:
        return [
            origin.violation("is empty, which every text matches", "remove it", reason=reason, field="regex")
        ]
    if (wrong := regex_error(expect.regex)) is not None:
        what = f"is not a regular expression in RE2 syntax ({wrong})"
        return [origin.violation(what, "correct it", reason=reason, field="regex")]
    return []


def outranked_variables(spec: HealthCheckSettings, environment: Mapping[str, str]) -> list[Ignored]:
    """The guide's variables that the CR outranks; they may be invalid too."""
    rows = (
        (ENV_PAYLOAD_DISABLED, "healthCheck.mode", spec.mode),
        (ENV_ENABLED, "healthCheck.mode", spec.mode),
        (ENV_INTERVAL, "healthCheck.periodSeconds", spec.period_seconds),
    )
    return [
        Ignored(source=PayloadSource.ENVIRONMENT, reason=f"`{name}` is outranked by `{setting}`")
        for name, setting, said in rows
        if name in environment and said is not None
    ]
