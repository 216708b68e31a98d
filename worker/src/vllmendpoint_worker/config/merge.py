"""Selects the health-check payload to run, and records why. Pure.

The order is ``vllmendpoint_api.PRECEDENCE``: the spec of the VLLMEndpoint, then the levels of
``docs/guide/health-check-payloads.md`` ("Configuration priority"). The first source that sets a payload wins;
the report lists the others as ignored. An invalid payload is rejected and never replaced by one of a lower
priority (``docs/decisions/0027-precedence-and-atomic-configuration.md``).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from vllmendpoint_api import (
    DEFAULT_FAILURE_THRESHOLD,
    DEFAULT_LEVEL,
    DEFAULT_RESTART_AFTER_SECONDS,
    DEFAULT_SUCCESS_THRESHOLD,
    DEFAULT_TIMEOUT_SECONDS,
    POOLED,
    PRECEDENCE,
    Ignored,
    Level,
    ModelType,
    PayloadSource,
    Problem,
    Reason,
    payload_for,
)
from vllmendpoint_worker.payload.forms import RequestFields
from vllmendpoint_worker.payload.validation import check_payload
from vllmendpoint_worker.setting_origin import SettingOrigin

from .payload_sources import ABSENT, ENV_LEVEL, PayloadSources
from .probe_settings import (
    expectation_problems,
    outranked_variables,
    oversized_numbers,
    resolve_mode,
    resolve_period,
)
from .resolved import ORIGINS, Resolved, Unresolved

__all__ = ["merge"]

_LEVELS: Final = {level.value.lower(): level for level in Level}
_DEFAULTS: Final = (PayloadSource.MODEL_DEFAULT, PayloadSource.GENERIC_DEFAULT)
_WHERE: Final = {row.source: row.where for row in PRECEDENCE}
_LEVEL_NOT_USED: Final = "has no effect, because a model that does not generate has only one payload."


@dataclass(frozen=True, slots=True)
class _Candidate:
    source: PayloadSource
    payload: object
    level: Level | None = None
    problems: tuple[Problem, ...] = ()


def merge(
    sources: PayloadSources, fields: RequestFields | None = None, model_type: ModelType | None = None
) -> Resolved | Unresolved:
    """Resolve the health check, or return all its problems.

    ``fields``: names that vLLM's request models know; None before vLLM is imported, then names are not
    checked. ``model_type``: None if it is unknown, then the generic default applies. Only the selected
    payload is checked; an invalid payload of a lower priority is reported as ignored.
    """
    problems = [*sources.spec_problems, *sources.config_problems, *oversized_numbers(sources.spec)]
    if sources.spec.payload is not None and sources.spec.level is not None:
        origin = ORIGINS[PayloadSource.SPEC]
        problems.append(origin.violation("and healthCheck.level are both set", "Remove one of them."))
    if problems:
        return Unresolved(tuple(problems))

    winner, *others = _candidates(sources, model_type)
    problems += winner.problems or check_payload(winner.payload, ORIGINS[winner.source], fields, model_type)
    mode, mode_problems = resolve_mode(sources.spec, sources.environment)
    period, period_problems = resolve_period(sources.spec, sources.environment)
    problems += [*mode_problems, *period_problems]
    problems += expectation_problems(sources.spec, winner.payload, model_type)
    if problems or not isinstance(winner.payload, Mapping):
        return Unresolved(tuple(problems))
    spec = sources.spec
    return Resolved(
        payload=dict(winner.payload),
        source=winner.source,
        level=winner.level,
        ignored=(
            *_ignored_payloads(winner, others),
            *_ignored_levels(sources, winner, model_type),
            *outranked_variables(spec, sources.environment),
        ),
        mode=mode,
        period_seconds=period,
        timeout_seconds=float(_or_default(spec.timeout_seconds, DEFAULT_TIMEOUT_SECONDS)),
        failure_threshold=_or_default(spec.failure_threshold, DEFAULT_FAILURE_THRESHOLD),
        success_threshold=_or_default(spec.success_threshold, DEFAULT_SUCCESS_THRESHOLD),
        restart_after_seconds=float(_or_default(spec.restart_after_seconds, DEFAULT_RESTART_AFTER_SECONDS)),
        expect=spec.expect.regex if spec.expect is not None else None,
    )


def _candidates(sources: PayloadSources, model_type: ModelType | None) -> list[_Candidate]:
    """Every source that sets a payload, highest priority first. The last one is always a default."""
    found: dict[PayloadSource, _Candidate] = {}
    spec = sources.spec
    if spec.payload is not None:
        found[PayloadSource.SPEC] = _Candidate(PayloadSource.SPEC, spec.payload)
    elif spec.level is not None:
        found[PayloadSource.SPEC] = _of_level(PayloadSource.SPEC, Level(spec.level), model_type)
    for source, value in (
        (PayloadSource.RUNTIME, sources.runtime),
        (PayloadSource.CONFIG_FILE, sources.config_payload),
        (PayloadSource.CUSTOM_DEFAULT, sources.custom_default),
    ):
        if value is not ABSENT:
            found[source] = _Candidate(source, value)
    if (environment := sources.environment_payload) is not None:
        unreadable = (environment.problem,) if environment.problem else ()
        found[PayloadSource.ENVIRONMENT] = _Candidate(
            PayloadSource.ENVIRONMENT, environment.value, problems=unreadable
        )
    level, problems = _default_level(sources)
    source = PayloadSource.GENERIC_DEFAULT if model_type is None else PayloadSource.MODEL_DEFAULT
    found[source] = _of_level(source, level, model_type, problems)
    return [found[row.source] for row in PRECEDENCE if row.source in found]


def _of_level(
    source: PayloadSource, level: Level, model_type: ModelType | None, problems: tuple[Problem, ...] = ()
) -> _Candidate:
    """A model that does not generate has one payload for all levels."""
    reported = None if model_type in POOLED else level
    return _Candidate(source, payload_for(level, model_type), reported, problems)


def _default_level(sources: PayloadSources) -> tuple[Level, tuple[Problem, ...]]:
    """The level of the default payload: environment, then config file, then minimal."""
    if (text := sources.environment.get(ENV_LEVEL)) is not None:
        origin = SettingOrigin(PayloadSource.ENVIRONMENT, ENV_LEVEL, confidential=True)
        return _parse_level(text, origin, Reason.INVALID_ENVIRONMENT)
    if (value := sources.config_level) is not ABSENT:
        origin = SettingOrigin(PayloadSource.CONFIG_FILE, "health_check_level")
        return _parse_level(value, origin, Reason.INVALID_CONFIG_FILE)
    return DEFAULT_LEVEL, ()


def _parse_level(value: object, origin: SettingOrigin, reason: Reason) -> tuple[Level, tuple[Problem, ...]]:
    level = _LEVELS.get(value.strip().lower()) if isinstance(value, str) else None
    if level is not None:
        return level, ()
    fix = "Use minimal, standard or comprehensive."
    return DEFAULT_LEVEL, (origin.violation("is not a health-check level", fix, reason=reason),)


def _ignored_payloads(winner: _Candidate, others: list[_Candidate]) -> Iterator[Ignored]:
    """No user sets a default, so it is not reported as ignored."""
    for candidate in others:
        if candidate.source not in _DEFAULTS:
            also = " It is also invalid." if candidate.problems else ""
            reason = f"{_lower_priority(_WHERE[candidate.source], _WHERE[winner.source])}{also}"
            yield Ignored(source=candidate.source, reason=reason)


def _ignored_levels(
    sources: PayloadSources, winner: _Candidate, model_type: ModelType | None
) -> Iterator[Ignored]:
    levels = []
    if ENV_LEVEL in sources.environment:
        levels.append((PayloadSource.ENVIRONMENT, f"`{ENV_LEVEL}`"))
    if sources.config_level is not ABSENT:
        levels.append((PayloadSource.CONFIG_FILE, "`health_check_level` of the config file"))
    for source, where in levels:
        if winner.source not in _DEFAULTS:
            yield Ignored(source=source, reason=_lower_priority(where, _WHERE[winner.source]))
        elif where != levels[0][1]:
            yield Ignored(source=source, reason=_lower_priority(where, levels[0][1]))
        elif model_type in POOLED:
            yield Ignored(source=source, reason=f"{where} {_LEVEL_NOT_USED}")
    if sources.spec.level is not None and model_type in POOLED:
        yield Ignored(source=PayloadSource.SPEC, reason=f"healthCheck.level {_LEVEL_NOT_USED}")


def _lower_priority(where: str, other: str) -> str:
    return f"{where} has a lower priority than {other}."


def _or_default(value: int | None, default: int) -> int:
    return default if value is None else value
