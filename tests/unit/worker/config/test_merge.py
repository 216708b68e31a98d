"""merge: the precedence of the guide over every pair of levels, and that nothing invalid falls through."""

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
from vllmendpoint_worker.config.resolved import Rejected, Resolved
from vllmendpoint_worker.payload.token_limits import DEFAULT_MAX_TOKENS

S = PayloadSource
PAYLOADS: dict[PayloadSource, dict[str, Any]] = {
    source: {"prompt": source.value, "max_tokens": 1}
    for source in (S.SPEC, S.RUNTIME, S.ENVIRONMENT, S.CONFIG_FILE, S.CUSTOM_DEFAULT)
}
BAD: Any = {"max_tokens": 1}


def sources(said: dict[PayloadSource, Any], **more: Any) -> PayloadSources:
    fields: dict[str, Any] = {}
    if S.SPEC in said:
        fields["spec"] = HealthCheckSettings(payload=said[S.SPEC])
    if S.RUNTIME in said:
        fields["runtime"] = said[S.RUNTIME]
    if S.ENVIRONMENT in said:
        fields["environment_payload"] = EnvironmentPayload(said[S.ENVIRONMENT])
    if S.CONFIG_FILE in said:
        fields["config_payload"] = said[S.CONFIG_FILE]
    if S.CUSTOM_DEFAULT in said:
        fields["custom_default"] = said[S.CUSTOM_DEFAULT]
    return PayloadSources(**(fields | more))


def resolved(given: PayloadSources, model_type: ModelType | None = ModelType.COMPLETION) -> Resolved:
    result = merge(given, None, model_type)
    assert isinstance(result, Resolved), result
    return result


def refused(
    given: PayloadSources, model_type: ModelType | None = ModelType.COMPLETION
) -> tuple[Problem, ...]:
    result = merge(given, None, model_type)
    assert isinstance(result, Rejected), result
    return result.problems


SET_BY_USERS = [row.source for row in PRECEDENCE if row.source in PAYLOADS]
DEFAULTS = {S.MODEL_DEFAULT: ModelType.COMPLETION, S.GENERIC_DEFAULT: None}
"""What is in force where nobody says anything, by what is known of the model."""
PAIRS = [
    (strong.source, weak.source)
    for strong, weak in itertools.combinations(PRECEDENCE, 2)
    if (strong.source, weak.source) != (S.MODEL_DEFAULT, S.GENERIC_DEFAULT)
]
"""Every two levels of the one table. The two defaults never meet: the model's type is told, or it is not."""


def test_the_table_holds_every_source_and_the_guides_five_levels_in_order() -> None:
    assert {row.source for row in PRECEDENCE} == set(PayloadSource) == set(PAYLOADS) | set(DEFAULTS)
    assert [row.level for row in PRECEDENCE] == sorted(row.level for row in PRECEDENCE)
    assert {row.level for row in PRECEDENCE} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(("strong", "weak"), PAIRS)
@pytest.mark.parametrize("as_level", [False, True], ids=["payload", "level"])
def test_of_every_two_levels_the_stronger_is_in_force(
    strong: PayloadSource, weak: PayloadSource, as_level: bool
) -> None:
    """``as_level``: what the CR says it says as a level, which stands for a payload."""
    model_type = DEFAULTS.get(weak, ModelType.COMPLETION)
    said = {source: PAYLOADS[source] for source in (strong, weak) if source in PAYLOADS}
    expected = PAYLOADS.get(strong, payload_for(Level.MINIMAL, model_type))
    more: dict[str, Any] = {}
    if as_level and strong is S.SPEC:
        said.pop(S.SPEC)
        more["spec"] = HealthCheckSettings(level=Level.STANDARD)
        expected = payload_for(Level.STANDARD, model_type)
    result = resolved(sources(said, **more), model_type)
    assert (result.source, result.payload) == (strong, expected)
    # A default that is not needed is no setting that anyone made.
    assert [ignored.source for ignored in result.ignored] == ([] if weak in DEFAULTS else [weak])
    # ... and without the stronger one, the weaker is.
    alone = resolved(sources({weak: PAYLOADS[weak]} if weak in PAYLOADS else {}), model_type)
    assert alone.source is weak


@pytest.mark.parametrize(("strong", "weak"), list(itertools.combinations(SET_BY_USERS, 2)))
def test_an_invalid_stronger_level_never_makes_way(strong: PayloadSource, weak: PayloadSource) -> None:
    problems = refused(sources({strong: BAD, weak: PAYLOADS[weak]}))
    assert {problem.source for problem in problems} == {strong.value}


@pytest.mark.parametrize(("strong", "weak"), list(itertools.combinations(SET_BY_USERS, 2)))
def test_an_outranked_invalid_level_is_ignored_not_refused(
    strong: PayloadSource, weak: PayloadSource
) -> None:
    result = resolved(sources({strong: PAYLOADS[strong], weak: BAD}))
    assert result.source is strong
    assert [ignored.source for ignored in result.ignored] == [weak]


@pytest.mark.parametrize("source", SET_BY_USERS)
def test_every_level_outranks_the_defaults(source: PayloadSource) -> None:
    result = resolved(sources({source: PAYLOADS[source]}, environment={"DYN_HEALTH_CHECK_LEVEL": "standard"}))
    assert (result.source, result.level) == (source, None)
    assert result.payload == PAYLOADS[source]
    assert [ignored.source for ignored in result.ignored] == [S.ENVIRONMENT]
    assert "DYN_HEALTH_CHECK_LEVEL" in result.ignored[0].reason


def test_the_order_is_the_tables() -> None:
    said = dict(PAYLOADS)
    for row in PRECEDENCE:
        if row.source in said:
            assert resolved(sources(said)).source is row.source
            del said[row.source]
    assert resolved(sources(said)).source is S.MODEL_DEFAULT
    assert resolved(sources(said), None).source is S.GENERIC_DEFAULT


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("model_type", list(ModelType))
def test_a_level_in_the_cr_acts_as_its_payload(level: Level, model_type: ModelType) -> None:
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
def test_the_environments_level_chooses_the_default(raw: str) -> None:
    result = resolved(
        sources({}, environment={"DYN_HEALTH_CHECK_LEVEL": raw}, config_level="comprehensive"), ModelType.CHAT
    )
    assert (result.source, result.level) == (S.MODEL_DEFAULT, Level.STANDARD)
    assert result.payload == payload_for(Level.STANDARD, ModelType.CHAT)
    assert [ignored.source for ignored in result.ignored] == [S.CONFIG_FILE]


def test_the_config_files_level_chooses_where_the_environment_is_silent() -> None:
    result = resolved(sources({}, config_level="comprehensive"), None)
    assert (result.source, result.level) == (S.GENERIC_DEFAULT, Level.COMPREHENSIVE)
    assert result.payload == payload_for(Level.COMPREHENSIVE, None)


def test_nothing_set_is_the_guides_minimal() -> None:
    assert resolved(PayloadSources()).payload == payload_for(Level.MINIMAL, ModelType.COMPLETION)
    assert resolved(PayloadSources(), ModelType.CHAT).payload["messages"] == [
        {"role": "user", "content": "Hi"}
    ]


def test_an_embedding_model_reports_the_level_it_cannot_use() -> None:
    result = resolved(sources({}, environment={"DYN_HEALTH_CHECK_LEVEL": "standard"}), ModelType.EMBEDDING)
    assert result.payload == {"input": "test", "_health_check": True}
    assert result.level is None
    assert "one payload" in result.ignored[0].reason


@pytest.mark.parametrize(
    ("given", "source"),
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
def test_an_invalid_setting_in_force_is_refused(given: PayloadSources, source: str) -> None:
    problems = refused(given)
    assert [problem.source for problem in problems] == [source]
    assert "hunter2" not in problems[0].message


def test_what_could_not_be_read_is_refused_with_its_own_problem() -> None:
    problem = Problem(
        reason="InvalidPayload", source="Environment", field="DYN_HEALTH_CHECK_PAYLOAD", message="..."
    )
    assert refused(
        PayloadSources(
            environment_payload=EnvironmentPayload(problem=problem), config_payload=PAYLOADS[S.CONFIG_FILE]
        )
    ) == (problem,)
    assert refused(PayloadSources(spec_problems=(problem,))) == (problem,)
    assert refused(
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
def test_mode(environment: dict[str, str], spec: Mode | None, mode: Mode) -> None:
    assert resolved(PayloadSources(environment=environment, spec=HealthCheckSettings(mode=spec))).mode is mode


def test_the_environments_switches_and_interval_are_ignored_aloud() -> None:
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


def test_a_payload_alone_does_not_turn_probing_on_again() -> None:
    given = sources({S.SPEC: {"prompt": "x"}}, environment={"DYN_HEALTH_CHECK_ENABLED": "false"})
    assert resolved(given).mode is Mode.DISABLED


def test_times_and_thresholds() -> None:
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
def test_what_the_text_must_match(model_type: ModelType | None) -> None:
    spec = HealthCheckSettings(expect=ExpectSettings(regex="(?i)paris"))
    assert resolved(PayloadSources(spec=spec), model_type).expect == "(?i)paris"
    assert resolved(sources({S.ENVIRONMENT: {"prompt": "x"}}, spec=spec), model_type).expect == "(?i)paris"
    assert resolved(PayloadSources(), model_type).expect is None


@pytest.mark.parametrize(
    ("regex", "model_type", "payload", "field", "says"),
    [
        ("(paris", ModelType.CHAT, None, "healthCheck.expect.regex", "RE2 syntax (missing ): (paris)"),
        ("(?=x)", None, None, "healthCheck.expect.regex", "RE2 syntax"),
        ("", ModelType.COMPLETION, None, "healthCheck.expect.regex", "is empty"),
        ("x", ModelType.EMBEDDING, None, "healthCheck.expect", "does not generate text"),
        ("x", None, {"input": "test"}, "healthCheck.expect", "does not generate text"),
    ],
)
def test_an_expectation_that_cannot_be_met_is_refused(
    regex: str, model_type: ModelType | None, payload: dict[str, Any] | None, field: str, says: str
) -> None:
    spec = HealthCheckSettings(expect=ExpectSettings(regex=regex), payload=payload)
    (problem,) = refused(PayloadSources(spec=spec), model_type)
    assert (problem.reason, problem.source, problem.field) == ("InvalidSettings", "Spec", field)
    assert says in problem.message


def test_the_form_is_held_against_the_model_once_it_is_known() -> None:
    given = sources({S.ENVIRONMENT: {"messages": [{"role": "user", "content": "x"}]}})
    assert resolved(given, None).source is S.ENVIRONMENT
    assert refused(given, ModelType.COMPLETION)[0].field == "DYN_HEALTH_CHECK_PAYLOAD.messages"


def test_a_chat_without_a_limit_is_asked_and_reported_with_one() -> None:
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
def test_a_probe_that_may_generate_much_is_warned_of(source: PayloadSource) -> None:
    payload = {"messages": [{"role": "user", "content": "Hi"}], "min_tokens": 1234, "n": 7}
    bounded, many = resolved(sources({source: payload}), ModelType.CHAT).warnings
    assert "at most as many tokens as min_tokens" in bounded
    assert "Set a smaller max_tokens, min_tokens or n" in many
    assert ("8638" in many) is (source is S.SPEC)
    assert "1234" not in bounded + many
