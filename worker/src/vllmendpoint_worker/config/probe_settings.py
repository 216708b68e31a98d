"""Resolves the settings of a probe besides its payload: mode, period and expected answer. Pure.

The spec of the VLLMEndpoint has priority over the environment variables of
``docs/guide/health-check-payloads.md`` ("Environment variables"). An invalid value is rejected and never
replaced by one of a lower priority.
"""

from collections.abc import Iterator, Mapping
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
    """The mode of the spec, else the two switches of the environment, and problems.

    A payload alone does not enable probing.
    """
    if spec.mode is not None:
        return Mode(spec.mode), []
    problems = []
    disabled = False
    for name, disables in ((ENV_PAYLOAD_DISABLED, True), (ENV_ENABLED, False)):
        text = environment.get(name)
        if text is None:
            continue
        value = text.strip().lower()
        if value in _TRUE or (value in _FALSE and (value or disables)):
            disabled = disabled or (value in _TRUE) is disables
        elif value:
            origin = SettingOrigin(PayloadSource.ENVIRONMENT, name, confidential=True)
            problems.append(
                origin.violation("is not a boolean", "Use true or false.", reason=Reason.INVALID_ENVIRONMENT)
            )
    return (Mode.DISABLED if disabled else Mode.ENFORCE), problems


def resolve_period(spec: HealthCheckSettings, environment: Mapping[str, str]) -> tuple[float, list[Problem]]:
    """Seconds between two probes: from the spec, the environment or the default, and problems."""
    if spec.period_seconds is not None:
        return float(spec.period_seconds), []
    text = environment.get(ENV_INTERVAL)
    if text is None:
        return float(DEFAULT_PERIOD_SECONDS), []
    try:
        period = float(text)
    except ValueError:
        period = 0.0
    if not 1.0 <= period <= 86400.0:  # False for NaN too
        origin = SettingOrigin(PayloadSource.ENVIRONMENT, ENV_INTERVAL, confidential=True)
        fault, fix = "is not a number of seconds from 1 to 86400", "Use a number such as 30."
        return 0.0, [origin.violation(fault, fix, reason=Reason.INVALID_ENVIRONMENT)]
    return period, []


def oversized_numbers(spec: HealthCheckSettings) -> list[Problem]:
    """Numbers that the admission of Kubernetes bounds, but a ``settings.json`` written by hand does not."""
    return [
        SettingOrigin(PayloadSource.SPEC, f"healthCheck.{to_camel(name)}").violation(
            f"is greater than {MAX_NUMBER}", "Use a smaller number.", reason=Reason.INVALID_SETTINGS
        )
        for name in HealthCheckSettings.model_fields
        if isinstance(value := getattr(spec, name), int) and value > MAX_NUMBER
    ]


def expectation_problems(
    spec: HealthCheckSettings, payload: object, model_type: ModelType | None
) -> list[Problem]:
    """Problems of ``healthCheck.expect``. Only the spec can set an expectation."""
    expect = spec.expect
    if expect is None:
        return []
    origin = SettingOrigin(PayloadSource.SPEC, "healthCheck.expect")
    reason = Reason.INVALID_SETTINGS
    form = form_of(payload) if isinstance(payload, Mapping) else None
    if model_type in POOLED or (model_type is None and form in SCORE_FORMS | {Form.INPUT}):
        model = "an embedding model" if model_type in (ModelType.EMBEDDING, None) else "this type of model"
        fault = f"does not apply to {model}, which does not generate text"
        return [origin.violation(fault, "Remove it.", reason=reason)]
    if not expect.regex:
        fault = "is empty, and so matches every text"
        return [origin.violation(fault, "Remove it.", reason=reason, field="regex")]
    if (error := regex_error(expect.regex)) is not None:
        fault, fix = f"is not a regular expression in RE2 syntax ({error})", "Correct the expression."
        return [origin.violation(fault, fix, reason=reason, field="regex")]
    return []


def outranked_variables(spec: HealthCheckSettings, environment: Mapping[str, str]) -> Iterator[Ignored]:
    """The environment variables that the spec overrides. They may be invalid."""
    rows = (
        (ENV_PAYLOAD_DISABLED, "healthCheck.mode", spec.mode),
        (ENV_ENABLED, "healthCheck.mode", spec.mode),
        (ENV_INTERVAL, "healthCheck.periodSeconds", spec.period_seconds),
    )
    for name, field, value in rows:
        if name in environment and value is not None:
            yield Ignored(
                source=PayloadSource.ENVIRONMENT, reason=f"`{name}` has a lower priority than `{field}`."
            )
