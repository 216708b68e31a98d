"""Which health-check payload is in force, and why. Pure.

The guide's "Configuration Priority", as ``vllmendpoint_api.PRECEDENCE`` and the design (section 4) settle it:
the first level that says something wins; what it outranks is reported as ignored; and **nothing invalid ever
falls through to the next level**: an invalid winner is refused, it does not make way.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vllmendpoint_api import (
    DEFAULT_FAILURE_THRESHOLD,
    DEFAULT_LEVEL,
    DEFAULT_RESTART_AFTER_SECONDS,
    DEFAULT_SUCCESS_THRESHOLD,
    DEFAULT_TIMEOUT_SECONDS,
    POOLED,
    PRECEDENCE,
    HealthCheckReport,
    HealthCheckSettings,
    Ignored,
    Level,
    Mode,
    ModelType,
    PayloadSource,
    Problem,
    Reason,
    payload_for,
)
from vllmendpoint_worker.payload.forms import RequestFields
from vllmendpoint_worker.payload.validation import (
    DEFAULT_MAX_TOKENS,
    HIGH_TOKEN_COUNT,
    check_payload,
    max_generated_tokens,
    with_token_limit,
)
from vllmendpoint_worker.setting_origin import SettingOrigin

from .probe_settings import (
    ENV_ENABLED,
    ENV_INTERVAL,
    ENV_PAYLOAD_DISABLED,
    expectation_problems,
    outranked_variables,
    oversized_numbers,
    resolve_mode,
    resolve_period,
)

__all__ = [
    "ABSENT",
    "ENV_ENABLED",
    "ENV_INTERVAL",
    "ENV_LEVEL",
    "ENV_PAYLOAD",
    "ENV_PAYLOAD_DISABLED",
    "EnvironmentPayload",
    "PayloadSources",
    "Rejected",
    "Resolved",
    "merge",
]

ENV_PAYLOAD: Final = "DYN_HEALTH_CHECK_PAYLOAD"
ENV_LEVEL: Final = "DYN_HEALTH_CHECK_LEVEL"

_LEVELS: Final = {level.value.lower(): level for level in Level}
_PUBLIC_SOURCES: Final = frozenset(
    {
        PayloadSource.SPEC,
        PayloadSource.CUSTOM_DEFAULT,
        PayloadSource.MODEL_DEFAULT,
        PayloadSource.GENERIC_DEFAULT,
    }
)
"""Sources whose payload may be shown: the others may hold a secret."""


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()
"""Nothing was set, which is not the same as null."""


@dataclass(frozen=True, slots=True)
class EnvironmentPayload:
    """What was set at a level: a value, or the problem that kept it from being read."""

    value: object = ABSENT
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class PayloadSources:
    """Everything that may speak, as it was read; ``config_sources`` fills it."""

    spec: HealthCheckSettings = field(default_factory=HealthCheckSettings)
    spec_problems: tuple[Problem, ...] = ()
    """``settings.json`` is there but cannot be read: then nobody knows what the CR says."""
    runtime: object = ABSENT
    """``health_check_payload=`` of ``serve_endpoint()``, called from code."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The guide's ``DYN_HEALTH_CHECK_*`` variables that are set."""
    environment_payload: EnvironmentPayload | None = None
    """``DYN_HEALTH_CHECK_PAYLOAD``, parsed (JSON or ``@file``)."""
    config_level: object = ABSENT
    config_payload: object = ABSENT
    config_problems: tuple[Problem, ...] = ()
    custom_default: object = ABSENT
    """``set_custom_health_check_payload()``."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The health check in force. Times in seconds."""

    payload: Mapping[str, Any]
    source: PayloadSource
    level: Level | None
    ignored: tuple[Ignored, ...]
    mode: Mode
    period_seconds: float
    timeout_seconds: float
    failure_threshold: int
    success_threshold: int
    restart_after_seconds: float
    expect: str | None = None
    """RE2 expression that the generated text must match."""

    @property
    def bounded_payload(self) -> dict[str, Any]:
        """The payload that is asked with and reported: with a limit on what is generated."""
        return with_token_limit(self.payload)

    @property
    def warnings(self) -> tuple[str, ...]:
        """For the report's warnings."""
        notes = []
        if self.bounded_payload != self.payload:
            most = self.bounded_payload["max_tokens"]
            limit = f"{most} tokens" if most == DEFAULT_MAX_TOKENS else "as many tokens as min_tokens says"
            notes.append(
                f"{self.origin.field} sets no max_tokens: the probe generates at most {limit}. "
                "Set max_tokens for another limit."
            )
        if (most := max_generated_tokens(self.bounded_payload)) > HIGH_TOKEN_COUNT:
            many = f"more than {HIGH_TOKEN_COUNT}" if self.confidential else most
            notes.append(
                f"{self.origin.field} lets every probe generate {many} tokens: set a smaller max_tokens, "
                "min_tokens or n."
            )
        return tuple(notes)

    @property
    def confidential(self) -> bool:
        """The payload is neither logged nor reported."""
        return self.source not in _PUBLIC_SOURCES

    @property
    def digest(self) -> str:
        text = json.dumps(self.bounded_payload, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def origin(self) -> SettingOrigin:
        return _ORIGINS[self.source]

    def report(self) -> HealthCheckReport:
        return HealthCheckReport(
            mode=self.mode,
            source=self.source,
            level=self.level,
            payload=None if self.confidential else self.bounded_payload,
            payload_digest=self.digest,
            ignored=self.ignored[:16],
            period_seconds=self.period_seconds,
            timeout_seconds=self.timeout_seconds,
            failure_threshold=self.failure_threshold,
            success_threshold=self.success_threshold,
            restart_after_seconds=self.restart_after_seconds,
        )


@dataclass(frozen=True, slots=True)
class Rejected:
    problems: tuple[Problem, ...]


_LEVEL_NOT_USED: Final = "a model that does not generate has one payload"

_DEFAULT_PAYLOAD_FIX: Final = (
    "Set healthCheck.payload to a request that the model answers, or correct model.type or engine.args"
)

_ORIGINS: Final = {
    PayloadSource.SPEC: SettingOrigin(PayloadSource.SPEC, "healthCheck.payload"),
    PayloadSource.RUNTIME: SettingOrigin(PayloadSource.RUNTIME, "health_check_payload"),
    PayloadSource.ENVIRONMENT: SettingOrigin(PayloadSource.ENVIRONMENT, ENV_PAYLOAD, confidential=True),
    PayloadSource.CONFIG_FILE: SettingOrigin(
        PayloadSource.CONFIG_FILE, "health_check_payload", confidential=True
    ),
    PayloadSource.CUSTOM_DEFAULT: SettingOrigin(
        PayloadSource.CUSTOM_DEFAULT, "set_custom_health_check_payload()"
    ),
    PayloadSource.MODEL_DEFAULT: SettingOrigin(
        PayloadSource.MODEL_DEFAULT, "the default payload", correct=_DEFAULT_PAYLOAD_FIX
    ),
    PayloadSource.GENERIC_DEFAULT: SettingOrigin(
        PayloadSource.GENERIC_DEFAULT, "the default payload", correct=_DEFAULT_PAYLOAD_FIX
    ),
}


@dataclass(frozen=True, slots=True)
class _Candidate:
    source: PayloadSource
    payload: object
    level: Level | None = None
    problems: tuple[Problem, ...] = ()


def merge(
    sources: PayloadSources, fields: RequestFields | None = None, model_type: ModelType | None = None
) -> Resolved | Rejected:
    """Resolve the health check, or say all that is wrong with it.

    ``fields``: names that vLLM's request models know, None before vLLM is imported (names are then not
    checked). ``model_type``: None where it is not told yet, or cannot be told (then the generic default).
    Only what is in force is checked: an outranked value that is invalid too is reported as ignored.
    """
    problems = [*sources.spec_problems, *sources.config_problems, *oversized_numbers(sources.spec)]
    if sources.spec.payload is not None and sources.spec.level is not None:
        problems.append(
            _ORIGINS[PayloadSource.SPEC].violation("and healthCheck.level are both set", "keep one of them")
        )
    if problems:
        return Rejected(tuple(problems))

    candidates = _candidates(sources, model_type)
    winner, outranked = candidates[0], candidates[1:]
    problems += winner.problems or check_payload(winner.payload, _ORIGINS[winner.source], fields, model_type)
    mode, mode_problems = resolve_mode(sources.spec, sources.environment)
    period, period_problems = resolve_period(sources.spec, sources.environment)
    problems += [
        *mode_problems,
        *period_problems,
        *expectation_problems(sources.spec, winner.payload, model_type),
    ]
    if problems or not isinstance(winner.payload, Mapping):
        return Rejected(tuple(problems))
    return Resolved(
        payload=dict(winner.payload),
        source=winner.source,
        level=winner.level,
        ignored=tuple(_ignored_settings(sources, winner, outranked, model_type)),
        mode=mode,
        period_seconds=period,
        timeout_seconds=float(_or_default(sources.spec.timeout_seconds, DEFAULT_TIMEOUT_SECONDS)),
        failure_threshold=_or_default(sources.spec.failure_threshold, DEFAULT_FAILURE_THRESHOLD),
        success_threshold=_or_default(sources.spec.success_threshold, DEFAULT_SUCCESS_THRESHOLD),
        restart_after_seconds=float(
            _or_default(sources.spec.restart_after_seconds, DEFAULT_RESTART_AFTER_SECONDS)
        ),
        expect=sources.spec.expect.regex if sources.spec.expect is not None else None,
    )


def _candidates(sources: PayloadSources, model_type: ModelType | None) -> list[_Candidate]:
    """Every level that says something, strongest first; the last is always a default."""
    found: dict[PayloadSource, _Candidate] = {}
    spec = sources.spec
    if spec.payload is not None:
        found[PayloadSource.SPEC] = _Candidate(PayloadSource.SPEC, spec.payload)
    elif spec.level is not None:
        level = Level(spec.level)
        found[PayloadSource.SPEC] = _Candidate(
            PayloadSource.SPEC, payload_for(level, model_type), _reported_level(level, model_type)
        )
    for source, value in (
        (PayloadSource.RUNTIME, sources.runtime),
        (PayloadSource.CONFIG_FILE, sources.config_payload),
        (PayloadSource.CUSTOM_DEFAULT, sources.custom_default),
    ):
        if value is not ABSENT:
            found[source] = _Candidate(source, value)
    if (environment := sources.environment_payload) is not None:
        wrong = (environment.problem,) if environment.problem else ()
        found[PayloadSource.ENVIRONMENT] = _Candidate(
            PayloadSource.ENVIRONMENT, environment.value, problems=wrong
        )
    default, wrong_level = _default_level(sources)
    source = PayloadSource.GENERIC_DEFAULT if model_type is None else PayloadSource.MODEL_DEFAULT
    found[source] = _Candidate(
        source, payload_for(default, model_type), _reported_level(default, model_type), wrong_level
    )
    return [found[row.source] for row in PRECEDENCE if row.source in found]


def _reported_level(level: Level, model_type: ModelType | None) -> Level | None:
    """A model that does not generate has one payload, whatever the level."""
    return None if model_type in POOLED else level


def _default_level(sources: PayloadSources) -> tuple[Level, tuple[Problem, ...]]:
    """The level that chooses levels 4 and 5: environment, then config file, then minimal."""
    if (raw := sources.environment.get(ENV_LEVEL)) is not None:
        level = _LEVELS.get(raw.strip().lower())
        if level is not None:
            return level, ()
        origin = SettingOrigin(PayloadSource.ENVIRONMENT, ENV_LEVEL, confidential=True)
        return DEFAULT_LEVEL, (_not_a_level(origin, Reason.INVALID_ENVIRONMENT),)
    if sources.config_level is not ABSENT:
        value = sources.config_level
        level = _LEVELS.get(value.strip().lower()) if isinstance(value, str) else None
        if level is not None:
            return level, ()
        return DEFAULT_LEVEL, (
            _not_a_level(
                SettingOrigin(PayloadSource.CONFIG_FILE, "health_check_level"), Reason.INVALID_CONFIG_FILE
            ),
        )
    return DEFAULT_LEVEL, ()


def _not_a_level(origin: SettingOrigin, reason: Reason) -> Problem:
    return origin.violation(
        "is not a health-check level", "use minimal, standard or comprehensive", reason=reason
    )


def _ignored_settings(
    sources: PayloadSources, winner: _Candidate, outranked: list[_Candidate], model_type: ModelType | None
) -> list[Ignored]:
    rows = {row.source: row for row in PRECEDENCE}
    by = rows[winner.source].where
    defaults = (PayloadSource.MODEL_DEFAULT, PayloadSource.GENERIC_DEFAULT)
    ignored = []
    for candidate in outranked:
        if candidate.source in defaults:
            continue  # a default is no setting that anyone made
        also = "; it could not be read either" if candidate.problems else ""
        ignored.append(
            Ignored(
                source=candidate.source, reason=f"{rows[candidate.source].where} is outranked by {by}{also}"
            )
        )
    used = winner.source in defaults
    levels = [
        (PayloadSource.ENVIRONMENT, f"`{ENV_LEVEL}`", ENV_LEVEL in sources.environment),
        (
            PayloadSource.CONFIG_FILE,
            "`health_check_level` of the config file",
            sources.config_level is not ABSENT,
        ),
    ]
    stronger = ""
    for source, where, there in levels:
        if not there:
            continue
        if not used:
            ignored.append(Ignored(source=source, reason=f"{where} is outranked by {by}"))
        elif stronger:
            ignored.append(Ignored(source=source, reason=f"{where} is outranked by {stronger}"))
        elif model_type in POOLED:
            ignored.append(Ignored(source=source, reason=f"{where}: {_LEVEL_NOT_USED}"))
        stronger = stronger or where
    ignored += outranked_variables(sources.spec, sources.environment)
    if sources.spec.level is not None and model_type in POOLED:
        ignored.append(Ignored(source=PayloadSource.SPEC, reason=f"healthCheck.level: {_LEVEL_NOT_USED}"))
    return ignored


def _or_default(value: int | None, default: int) -> int:
    return default if value is None else value
