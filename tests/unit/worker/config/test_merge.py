"""The precedence of payload sources, for every pair of them. An invalid source is never skipped."""

import itertools
from typing import Any

import pytest

from vllmendpoint_api import (
    POOLED,
    PRECEDENCE,
    ExpectSettings,
    HealthCheckSettings,
    Level,
    Mode,
    ModelType,
    PayloadSource,
    Problem,
    payload_for,
)
from vllmendpoint_worker.config.merge import merge
from vllmendpoint_worker.config.payload_sources import EnvironmentPayload, PayloadSources
from vllmendpoint_worker.config.resolved import Resolved, Unresolved
from vllmendpoint_worker.payload.token_limits import DEFAULT_MAX_TOKENS

S = PayloadSource
PAYLOADS: dict[PayloadSource, dict[str, Any]] = {
    source: {"prompt": source.value, "max_tokens": 1}
    for source in (S.SPEC, S.RUNTIME, S.ENVIRONMENT, S.CONFIG_FILE, S.CUSTOM_DEFAULT)
}
BAD: Any = {"max_tokens": 1}


def sources(payloads: dict[PayloadSource, Any], **more: Any) -> PayloadSources:
    fields: dict[str, Any] = {}
    if S.SPEC in payloads:
        fields["spec"] = HealthCheckSettings(payload=payloads[S.SPEC])
    if S.RUNTIME in payloads:
        fields["runtime"] = payloads[S.RUNTIME]
    if S.ENVIRONMENT in payloads:
        fields["environment_payload"] = EnvironmentPayload(payloads[S.ENVIRONMENT])
    if S.CONFIG_FILE in payloads:
        fields["config_payload"] = payloads[S.CONFIG_FILE]
    if S.CUSTOM_DEFAULT in payloads:
        fields["custom_default"] = payloads[S.CUSTOM_DEFAULT]
    return PayloadSources(**(fields | more))


def resolved(
    payload_sources: PayloadSources, model_type: ModelType | None = ModelType.COMPLETION
) -> Resolved:
    result = merge(payload_sources, None, model_type)
    assert isinstance(result, Resolved), result
    return result


def rejected(
    payload_sources: PayloadSources, model_type: ModelType | None = ModelType.COMPLETION
) -> tuple[Problem, ...]:
    result = merge(payload_sources, None, model_type)
    assert isinstance(result, Unresolved), result
    return result.problems


SET_BY_USERS = [row.source for row in PRECEDENCE if row.source in PAYLOADS]
DEFAULTS = {S.MODEL_DEFAULT: ModelType.COMPLETION, S.GENERIC_DEFAULT: None}
"""The source that is used without any setting, and the type of the model."""
PAIRS = [
    (higher.source, lower.source)
    for higher, lower in itertools.combinations(PRECEDENCE, 2)
    if (higher.source, lower.source) != (S.MODEL_DEFAULT, S.GENERIC_DEFAULT)
]
"""Every two sources of the table except the two defaults, of which the model type selects one."""


def test_the_table_contains_every_source_and_five_ordered_levels() -> None:
    assert {row.source for row in PRECEDENCE} == set(PayloadSource) == set(PAYLOADS) | set(DEFAULTS)
    assert [row.level for row in PRECEDENCE] == sorted(row.level for row in PRECEDENCE)
    assert {row.level for row in PRECEDENCE} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(("higher", "lower"), PAIRS)
@pytest.mark.parametrize("as_level", [False, True], ids=["payload", "level"])
def test_of_two_sources_the_one_with_the_higher_priority_is_used(
    higher: PayloadSource, lower: PayloadSource, as_level: bool
) -> None:
    """``as_level``: the resource sets a level instead of a payload."""
    model_type = DEFAULTS.get(lower, ModelType.COMPLETION)
    payloads = {source: PAYLOADS[source] for source in (higher, lower) if source in PAYLOADS}
    expected = PAYLOADS.get(higher, payload_for(Level.MINIMAL, model_type))
    more: dict[str, Any] = {}
    if as_level and higher is S.SPEC:
        payloads.pop(S.SPEC)
        more["spec"] = HealthCheckSettings(level=Level.STANDARD)
        expected = payload_for(Level.STANDARD, model_type)
    result = resolved(sources(payloads, **more), model_type)
    assert (result.source, result.payload) == (higher, expected)
    # An unused default is not an ignored setting of a user.
    assert [ignored.source for ignored in result.ignored] == ([] if lower in DEFAULTS else [lower])
    # Without the higher source, the lower one is used.
    alone = resolved(sources({lower: PAYLOADS[lower]} if lower in PAYLOADS else {}), model_type)
    assert alone.source is lower


@pytest.mark.parametrize(("higher", "lower"), list(itertools.combinations(SET_BY_USERS, 2)))
def test_an_invalid_source_of_higher_priority_is_never_skipped(
    higher: PayloadSource, lower: PayloadSource
) -> None:
    problems = rejected(sources({higher: BAD, lower: PAYLOADS[lower]}))
    assert {problem.source for problem in problems} == {higher.value}


@pytest.mark.parametrize(("higher", "lower"), list(itertools.combinations(SET_BY_USERS, 2)))
def test_an_invalid_source_of_lower_priority_is_ignored(higher: PayloadSource, lower: PayloadSource) -> None:
    result = resolved(sources({higher: PAYLOADS[higher], lower: BAD}))
    assert result.source is higher
    assert [ignored.source for ignored in result.ignored] == [lower]


@pytest.mark.parametrize("source", SET_BY_USERS)
def test_every_source_has_priority_over_the_defaults(source: PayloadSource) -> None:
    result = resolved(sources({source: PAYLOADS[source]}, environment={"DYN_HEALTH_CHECK_LEVEL": "standard"}))
    assert (result.source, result.level) == (source, None)
    assert result.payload == PAYLOADS[source]
    assert [ignored.source for ignored in result.ignored] == [S.ENVIRONMENT]
    assert "DYN_HEALTH_CHECK_LEVEL" in result.ignored[0].reason


def test_sources_are_used_in_the_order_of_the_table() -> None:
    payloads = dict(PAYLOADS)
    for row in PRECEDENCE:
        if row.source in payloads:
            assert resolved(sources(payloads)).source is row.source
            del payloads[row.source]
    assert resolved(sources(payloads)).source is S.MODEL_DEFAULT
    assert resolved(sources(payloads), None).source is S.GENERIC_DEFAULT


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("model_type", list(ModelType))
def test_a_level_of_the_resource_selects_its_payload(level: Level, model_type: ModelType) -> None:
    result = resolved(
        sources(dict(list(PAYLOADS.items())[1:]), spec=HealthCheckSettings(level=level)), model_type
    )
    assert result.source is S.SPEC
    assert result.payload == payload_for(level, model_type)
    if model_type in POOLED:
        assert result.level is None
        assert any("healthCheck.level" in ignored.reason for ignored in result.ignored)
    else:
        assert result.level is level


@pytest.mark.parametrize("raw", ["standard", "Standard", " STANDARD "])
def test_the_level_of_the_environment_selects_the_default(raw: str) -> None:
    result = resolved(
        sources({}, environment={"DYN_HEALTH_CHECK_LEVEL": raw}, config_level="comprehensive"), ModelType.CHAT
    )
    assert (result.source, result.level) == (S.MODEL_DEFAULT, Level.STANDARD)
    assert result.payload == payload_for(Level.STANDARD, ModelType.CHAT)
    assert [ignored.source for ignored in result.ignored] == [S.CONFIG_FILE]


def test_the_level_of_the_config_file_applies_if_the_environment_has_none() -> None:
    result = resolved(sources({}, config_level="comprehensive"), None)
    assert (result.source, result.level) == (S.GENERIC_DEFAULT, Level.COMPREHENSIVE)
    assert result.payload == payload_for(Level.COMPREHENSIVE, None)


def test_without_settings_the_minimal_payload_is_used() -> None:
    assert resolved(PayloadSources()).payload == payload_for(Level.MINIMAL, ModelType.COMPLETION)
    assert resolved(PayloadSources(), ModelType.CHAT).payload["messages"] == [
        {"role": "user", "content": "Hi"}
    ]


def test_an_embedding_model_reports_that_it_ignores_the_level() -> None:
    result = resolved(sources({}, environment={"DYN_HEALTH_CHECK_LEVEL": "standard"}), ModelType.EMBEDDING)
    assert result.payload == {"input": "test", "_health_check": True}
    assert result.level is None
    assert "one payload" in result.ignored[0].reason


@pytest.mark.parametrize(
    ("payload_sources", "source"),
    [
        (sources({}, environment={"DYN_HEALTH_CHECK_LEVEL": "hunter2"}), "Environment"),
        (sources({}, environment={"DYN_HEALTH_CHECK_INTERVAL": "hunter2"}), "Environment"),
        (sources({}, environment={"DYN_HEALTH_CHECK_INTERVAL": "0"}), "Environment"),
        (sources({}, environment={"DYN_HEALTH_CHECK_INTERVAL": "nan"}), "Environment"),
        (sources({}, environment={"DYN_HEALTH_CHECK_ENABLED": "hunter2"}), "Environment"),
        (sources({}, environment={"DYN_HEALTH_CHECK_PAYLOAD_DISABLED": "hunter2"}), "Environment"),
        (sources({}, config_level="hunter2"), "ConfigFile"),
        (sources({}, config_level=3), "ConfigFile"),
        (sources({}, config_level=None), "ConfigFile"),
        (sources({S.CONFIG_FILE: None}), "ConfigFile"),
        (sources({}, spec=HealthCheckSettings(level=Level.MINIMAL, payload={"prompt": "x"})), "Spec"),
    ],
)
def test_an_invalid_active_setting_is_rejected(payload_sources: PayloadSources, source: str) -> None:
    problems = rejected(payload_sources)
    assert [problem.source for problem in problems] == [source]
    assert "hunter2" not in problems[0].message


def test_an_unreadable_source_is_rejected_with_its_problem() -> None:
    problem = Problem(
        reason="InvalidPayload", source="Environment", field="DYN_HEALTH_CHECK_PAYLOAD", message="..."
    )
    assert rejected(
        PayloadSources(
            environment_payload=EnvironmentPayload(problem=problem), config_payload=PAYLOADS[S.CONFIG_FILE]
        )
    ) == (problem,)
    assert rejected(PayloadSources(spec_problems=(problem,))) == (problem,)
    assert rejected(
        PayloadSources(config_problems=(problem,), spec=HealthCheckSettings(payload={"prompt": "x"}))
    ) == (problem,)
    repaired = resolved(
        PayloadSources(
            environment_payload=EnvironmentPayload(problem=problem),
            spec=HealthCheckSettings(payload={"prompt": "x"}),
        )
    )
    assert repaired.source is S.SPEC
    assert "It is also invalid." in repaired.ignored[0].reason


@pytest.mark.parametrize(
    ("environment", "spec", "mode"),
    [
        ({}, None, Mode.ENFORCE),
        ({"DYN_HEALTH_CHECK_PAYLOAD_DISABLED": "true"}, None, Mode.DISABLED),
        ({"DYN_HEALTH_CHECK_PAYLOAD_DISABLED": "1"}, None, Mode.DISABLED),
        ({"DYN_HEALTH_CHECK_PAYLOAD_DISABLED": "false"}, None, Mode.ENFORCE),
        ({"DYN_HEALTH_CHECK_ENABLED": "false"}, None, Mode.DISABLED),
        ({"DYN_HEALTH_CHECK_ENABLED": "0"}, None, Mode.DISABLED),
        ({"DYN_HEALTH_CHECK_ENABLED": "True"}, None, Mode.ENFORCE),
        ({"DYN_HEALTH_CHECK_ENABLED": "1"}, None, Mode.ENFORCE),
        (
            {"DYN_HEALTH_CHECK_ENABLED": "true", "DYN_HEALTH_CHECK_PAYLOAD_DISABLED": "true"},
            None,
            Mode.DISABLED,
        ),
        ({"DYN_HEALTH_CHECK_PAYLOAD_DISABLED": "true"}, Mode.ENFORCE, Mode.ENFORCE),
        ({"DYN_HEALTH_CHECK_PAYLOAD_DISABLED": "hunter2"}, Mode.OBSERVE, Mode.OBSERVE),
        ({}, Mode.DISABLED, Mode.DISABLED),
    ],
)
def test_the_resource_sets_the_mode_and_else_the_environment(
    environment: dict[str, str], spec: Mode | None, mode: Mode
) -> None:
    assert resolved(PayloadSources(environment=environment, spec=HealthCheckSettings(mode=spec))).mode is mode


def test_ignored_variables_of_the_environment_are_reported() -> None:
    environment = {
        "DYN_HEALTH_CHECK_PAYLOAD_DISABLED": "true",
        "DYN_HEALTH_CHECK_ENABLED": "hunter2",
        "DYN_HEALTH_CHECK_INTERVAL": "60",
    }
    spec = HealthCheckSettings(mode=Mode.ENFORCE, period_seconds=7)
    ignored = resolved(PayloadSources(environment=environment, spec=spec)).ignored
    assert {each.source for each in ignored} == {S.ENVIRONMENT}
    assert [each.reason for each in ignored] == [
        "`DYN_HEALTH_CHECK_PAYLOAD_DISABLED` has a lower priority than `healthCheck.mode`.",
        "`DYN_HEALTH_CHECK_ENABLED` has a lower priority than `healthCheck.mode`.",
        "`DYN_HEALTH_CHECK_INTERVAL` has a lower priority than `healthCheck.periodSeconds`.",
    ]
    del environment["DYN_HEALTH_CHECK_ENABLED"]
    assert resolved(PayloadSources(environment=environment)).ignored == ()


def test_a_payload_does_not_enable_disabled_probing() -> None:
    payload_sources = sources({S.SPEC: {"prompt": "x"}}, environment={"DYN_HEALTH_CHECK_ENABLED": "false"})
    assert resolved(payload_sources).mode is Mode.DISABLED


def test_the_resource_sets_times_and_thresholds() -> None:
    defaults = resolved(PayloadSources())
    assert (defaults.period_seconds, defaults.timeout_seconds, defaults.restart_after_seconds) == (
        30.0,
        5.0,
        600.0,
    )
    assert (defaults.failure_threshold, defaults.success_threshold) == (2, 1)
    interval = {"DYN_HEALTH_CHECK_INTERVAL": "60"}
    assert resolved(PayloadSources(environment=interval)).period_seconds == 60.0
    spec = HealthCheckSettings(
        period_seconds=7, timeout_seconds=3, failure_threshold=4, success_threshold=5, restart_after_seconds=0
    )
    result = resolved(PayloadSources(environment=interval, spec=spec))
    assert (result.period_seconds, result.timeout_seconds, result.restart_after_seconds) == (7.0, 3.0, 0.0)
    assert (result.failure_threshold, result.success_threshold) == (4, 5)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (S.SPEC, True),
        (S.RUNTIME, False),
        (S.ENVIRONMENT, False),
        (S.CONFIG_FILE, False),
        (S.CUSTOM_DEFAULT, True),
    ],
)
def test_only_a_payload_that_cannot_be_secret_is_reported(source: PayloadSource, shown: bool) -> None:
    report = resolved(sources({source: PAYLOADS[source]})).report()
    assert (report.payload is not None) is shown
    assert report.payload_digest


@pytest.mark.parametrize("model_type", [ModelType.CHAT, ModelType.COMPLETION, None])
def test_the_expectation_of_the_resource_applies_to_every_payload(model_type: ModelType | None) -> None:
    spec = HealthCheckSettings(expect=ExpectSettings(regex="(?i)paris"))
    assert resolved(PayloadSources(spec=spec), model_type).expect == "(?i)paris"
    assert resolved(sources({S.ENVIRONMENT: {"prompt": "x"}}, spec=spec), model_type).expect == "(?i)paris"
    assert resolved(PayloadSources(), model_type).expect is None


@pytest.mark.parametrize(
    ("regex", "model_type", "payload", "field", "expected"),
    [
        ("(paris", ModelType.CHAT, None, "healthCheck.expect.regex", "RE2 syntax (missing ): (paris)"),
        ("(?=x)", None, None, "healthCheck.expect.regex", "RE2 syntax"),
        ("", ModelType.COMPLETION, None, "healthCheck.expect.regex", "is empty"),
        ("x", ModelType.EMBEDDING, None, "healthCheck.expect", "does not generate text"),
        ("x", None, {"input": "test"}, "healthCheck.expect", "does not generate text"),
    ],
)
def test_an_expectation_that_cannot_be_met_is_rejected(
    regex: str, model_type: ModelType | None, payload: dict[str, Any] | None, field: str, expected: str
) -> None:
    spec = HealthCheckSettings(expect=ExpectSettings(regex=regex), payload=payload)
    (problem,) = rejected(PayloadSources(spec=spec), model_type)
    assert (problem.reason, problem.source, problem.field) == ("InvalidSettings", "Spec", field)
    assert expected in problem.message


def test_the_form_must_fit_a_known_model_type() -> None:
    payload_sources = sources({S.ENVIRONMENT: {"messages": [{"role": "user", "content": "x"}]}})
    assert resolved(payload_sources, None).source is S.ENVIRONMENT
    assert rejected(payload_sources, ModelType.COMPLETION)[0].field == "DYN_HEALTH_CHECK_PAYLOAD.messages"


def test_a_chat_payload_without_a_limit_gets_the_default_limit() -> None:
    payload = {"messages": [{"role": "user", "content": "Hi"}]}
    found = resolved(PayloadSources(spec=HealthCheckSettings(payload=payload)), ModelType.CHAT)
    assert found.payload == payload
    assert found.report().payload == payload | {"max_tokens": DEFAULT_MAX_TOKENS}
    (note,) = found.warnings
    assert note.startswith(
        "healthCheck.payload does not set max_tokens, so the probe generates at most 16 tokens."
    )
    assert resolved(PayloadSources(), ModelType.CHAT).warnings == ()


@pytest.mark.parametrize("source", [S.SPEC, S.ENVIRONMENT])
def test_a_probe_that_can_generate_many_tokens_is_a_warning(source: PayloadSource) -> None:
    payload = {"messages": [{"role": "user", "content": "Hi"}], "min_tokens": 1234, "n": 7}
    bounded, many = resolved(sources({source: payload}), ModelType.CHAT).warnings
    assert "at most as many tokens as min_tokens" in bounded
    assert "Set a smaller max_tokens, min_tokens or n" in many
    assert ("8638" in many) is (source is S.SPEC)
    assert "1234" not in bounded + many
