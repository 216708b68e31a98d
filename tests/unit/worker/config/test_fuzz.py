"""What users, files and workers may hand over, drawn at random: no crash, and no silent default.

Of every setting one of two things holds: what is invalid is refused, what is accepted is in force. The oracle
is written here anew, shorter than the code: what counts as valid is said once more, by other means.
Deterministic, so that a red run is red again.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.unit.worker.fuzzing import (
    SECRET,
    deep,
    fuzz,
    good,
    model_types,
    payloads,
    raw_text,
    scalars,
    values,
)
from vllmendpoint_api import (
    CONDITION_REASONS,
    PRECEDENCE,
    Condition,
    ConfigurationReport,
    ConfigurationState,
    Level,
    Mode,
    ModelType,
    PayloadSource,
    payload_for,
)
from vllmendpoint_operator.reports.streams import parse
from vllmendpoint_worker.config.merge import merge
from vllmendpoint_worker.config.payload_sources import EnvironmentPayload, PayloadSources
from vllmendpoint_worker.config.resolved import Rejected, Resolved
from vllmendpoint_worker.config.sources import ConfigSources, LoadedConfiguration
from vllmendpoint_worker.payload.forms import RequestFields
from vllmendpoint_worker.serving.state import WorkerState

S = PayloadSource
REASONS = {reason.value for reason in CONDITION_REASONS[Condition.CONFIGURATION_RESOLVED]}
SAMPLING = frozenset(
    {"model", "stream", "max_tokens", "temperature", "seed", "stop", "logit_bias", "top_p"}
    | {"frequency_penalty", "presence_penalty"}
)
FIELDS = RequestFields(
    completion=SAMPLING | {"prompt"},
    chat=SAMPLING | {"messages"},
    embedding=frozenset({"model", "input", "dimensions"}),
    classification=frozenset({"model", "input"}),
    pooling=frozenset({"model", "input"}),
    rerank=frozenset({"model", "query", "documents"}),
    score=frozenset({"model", "text_1", "text_2"}),
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# --- what must hold of every result
# -----------------------------------------------------------------------------------------------------------


def told(result: Resolved | Rejected, loaded: LoadedConfiguration | None = None) -> str:
    """All that is said of a result; it must be fit for a report that the operator can read."""
    state = WorkerState(worker_version="1", pod_uid="uid")
    common: dict[str, Any] = {}
    if loaded is not None:
        common = {"settings_hash": loaded.settings_hash, "warnings": loaded.warnings[:16]}
    if isinstance(result, Rejected):
        assert result.problems, "refused without a word"
        for problem in result.problems:
            assert problem.reason in REASONS
            assert problem.field in problem.message or len(problem.field) == 128
            assert problem.message.endswith(".")
        problems = result.problems[:16]
        refused = ConfigurationReport(state=ConfigurationState.REJECTED, problems=problems, **common)
        state.update(configuration=refused)
    else:
        resolved = ConfigurationReport(state=ConfigurationState.RESOLVED, **common)
        state.update(configuration=resolved, health_check=result.report())
    line = json.dumps(state.report().wire()).encode()
    report = parse(line, "uid")
    if isinstance(result, Resolved):
        assert report.health_check is not None
        assert report.health_check.source == result.source
        assert report.health_check.payload_digest == result.digest
    return line.decode()


def in_force(result: Resolved | Rejected, source: PayloadSource, payload: Any) -> None:
    """What was said at the strongest level is in force to the letter, or refused by that level's name."""
    said = told(result)
    if isinstance(result, Resolved):
        assert result.source is source
        assert result.payload == payload
    else:
        assert {problem.source for problem in result.problems} == {source.value}
    if source in (S.ENVIRONMENT, S.CONFIG_FILE):  # a value or a file may hold a secret
        assert SECRET not in said


def resolve(loaded: LoadedConfiguration, model_type: ModelType | None = None) -> Resolved | Rejected:
    return merge(loaded.sources, FIELDS, model_type)


# --- payloads
# -----------------------------------------------------------------------------------------------------------


@given(payload=payloads, source=st.sampled_from([S.RUNTIME, S.CONFIG_FILE]), model_type=model_types)
@example(payload={"prompt": "x", "stop": deep(40)}, source=S.RUNTIME, model_type=None)
@example(payload={"prompt": "x", "seed": 2**63}, source=S.RUNTIME, model_type=None)
@example(payload={"prompt": "x", "logit_bias": {1: 1, "a": 1}}, source=S.CONFIG_FILE, model_type=None)
@example(payload={"prompt": "\ud800"}, source=S.RUNTIME, model_type=None)
@fuzz(300)
def test_a_payload_from_code_or_a_config(payload: Any, source: PayloadSource, model_type: Any) -> None:
    field = "runtime" if source is S.RUNTIME else "config_payload"
    weaker = {"custom_default": {"prompt": "never"}}
    in_force(merge(PayloadSources(**{field: payload}, **weaker), FIELDS, model_type), source, payload)


@given(payload=good, model_type=st.sampled_from([ModelType.CHAT, ModelType.COMPLETION, None]))
@fuzz(120)
def test_a_good_payload_is_taken_from_every_source(payload: dict[str, Any], model_type: Any) -> None:
    for field in ("runtime", "config_payload", "custom_default"):
        result = merge(PayloadSources(**{field: payload}), FIELDS, model_type)
        assert isinstance(result, Resolved), result
        assert result.payload == payload


# --- the environment
# -----------------------------------------------------------------------------------------------------------


@given(text=raw_text | payloads.map(lambda value: json.dumps(value, default=str)), model_type=model_types)
@example(text="@", model_type=None)
@example(text="@/", model_type=None)
@example(text="@/dev/null", model_type=None)
@example(text="@" + "a" * 5000, model_type=None)
@example(text="[" * 5000, model_type=None)
@example(text='{"prompt": "x", "seed": 1e999}', model_type=None)
@example(text="\udcff", model_type=None)
@fuzz(400)
def test_the_environments_payload(folder: Path, text: str, model_type: Any) -> None:
    environ = {"DYN_HEALTH_CHECK_PAYLOAD": text, "VLLMENDPOINT_SETTINGS_DIR": str(folder / "none")}
    result = resolve(ConfigSources(environ).load(), model_type)
    if not text.strip():
        assert isinstance(result, Resolved)
        assert result.source in (S.MODEL_DEFAULT, S.GENERIC_DEFAULT)
        return
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError):
        payload = None
    in_force(result, S.ENVIRONMENT, payload)


@given(content=st.binary(max_size=40) | payloads.map(lambda value: json.dumps(value, default=str).encode()))
@fuzz(200)
def test_the_file_of_the_environments_payload(folder: Path, content: bytes) -> None:
    file = folder / "payload.json"
    file.write_bytes(content)
    environ = {"DYN_HEALTH_CHECK_PAYLOAD": f"@{file}", "VLLMENDPOINT_SETTINGS_DIR": str(folder / "none")}
    try:
        payload = json.loads(content.decode())
    except (ValueError, RecursionError):
        payload = None
    in_force(resolve(ConfigSources(environ).load()), S.ENVIRONMENT, payload)


switches = (
    st.sampled_from(["true", "False", " 1 ", "0", "yes", "off", "", "  ", SECRET, "maybe", "2"]) | raw_text
)
BOOLEAN = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


@given(
    level=st.sampled_from(["minimal", "Standard", " COMPREHENSIVE ", "", SECRET, "huge"]) | raw_text,
    enabled=switches,
    disabled=switches,
    interval=st.sampled_from(["30", "0", "-1", "nan", "inf", "1e3", "86401", "", SECRET, "1_0"]) | raw_text,
    model_type=st.sampled_from([ModelType.CHAT, ModelType.COMPLETION, None]),
)
@fuzz(500)
def test_the_other_variables(level: str, enabled: str, disabled: str, interval: str, model_type: Any) -> None:
    environ = {
        "DYN_HEALTH_CHECK_LEVEL": level,
        "DYN_HEALTH_CHECK_ENABLED": enabled,
        "DYN_HEALTH_CHECK_PAYLOAD_DISABLED": disabled,
        "DYN_HEALTH_CHECK_INTERVAL": interval,
        "VLLMENDPOINT_SETTINGS_DIR": "/nonexistent",
    }
    result = resolve(ConfigSources(environ).load(), model_type)
    said = told(result)
    assert SECRET not in said

    levels = {each.value.lower(): each for each in Level}
    wrong = set()
    if level.strip() and level.strip().lower() not in levels:
        wrong.add("DYN_HEALTH_CHECK_LEVEL")
    for name, value in (
        ("DYN_HEALTH_CHECK_ENABLED", enabled),
        ("DYN_HEALTH_CHECK_PAYLOAD_DISABLED", disabled),
    ):
        if value.strip() and value.strip().lower() not in BOOLEAN:
            wrong.add(name)
    try:
        seconds = float(interval) if interval.strip() else 30.0
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        wrong.add("DYN_HEALTH_CHECK_INTERVAL")

    if wrong:
        assert isinstance(result, Rejected)
        assert {problem.field for problem in result.problems} == wrong
        return
    assert isinstance(result, Resolved)
    chosen = levels.get(level.strip().lower(), Level.MINIMAL)
    assert (result.level, result.payload) == (chosen, payload_for(chosen, model_type))
    off = BOOLEAN.get(disabled.strip().lower(), False) or not BOOLEAN.get(enabled.strip().lower(), True)
    assert result.mode is (Mode.DISABLED if off else Mode.ENFORCE)
    assert result.period_seconds == seconds


# --- the config file
# -----------------------------------------------------------------------------------------------------------


def from_config(folder: Path, content: bytes) -> LoadedConfiguration:
    file = folder / "config.yaml"
    file.write_bytes(content)
    return ConfigSources(
        {"VLLMENDPOINT_CONFIG_FILE": str(file), "VLLMENDPOINT_SETTINGS_DIR": str(folder / "none")}
    ).load()


@given(
    content=st.binary(max_size=60) | st.text("a:-[]{}&*!?|>'\"%@`#\n 0_x2026.~", max_size=40).map(str.encode)
)
@example(content=b"health_check_level: 2026-13-45")
@example(content=b"max_model_len: !!int x")
@example(content=b"a: !!bool x")
@example(content=b"a: !!timestamp x")
@example(content=b"[" * 5000)
@example(content=b"health_check_payload: &a [*a]")
@example(content=b"health_check_payload: {prompt: 2026-01-01}")
@example(content=b"health-check-level: standard")
@fuzz(400)
def test_any_config_file_is_read_or_refused(folder: Path, content: bytes) -> None:
    loaded = from_config(folder, content)
    result = resolve(loaded)
    told(result, loaded)
    try:
        value = yaml.safe_load(content)
    except Exception:  # noqa: BLE001  (PyYAML raises what it likes)
        value = ...
    if not (value is None or isinstance(value, dict)):
        assert isinstance(result, Rejected)
        assert {(problem.source, problem.reason) for problem in result.problems} == {
            ("ConfigFile", "InvalidConfigFile")
        }


@given(payload=payloads, level=scalars | st.sampled_from(["standard", "Minimal"]), dashes=st.booleans())
@fuzz(200)
def test_the_config_files_health_check(folder: Path, payload: Any, level: Any, dashes: bool) -> None:
    content = {"health_check_payload": payload, "health_check_level": level, "model": "m"}
    if dashes:
        content = {name.replace("_", "-"): value for name, value in content.items()}
    try:
        text = yaml.safe_dump(content, allow_unicode=True).encode()
        back = yaml.safe_load(text)
    except Exception:  # noqa: BLE001
        assume(False)
    key = "health-check-payload" if dashes else "health_check_payload"
    loaded = from_config(folder, text)
    in_force(resolve(loaded), S.CONFIG_FILE, back[key])
    assert loaded.engine_config == {"model": "m"}  # vLLM sees nothing of ours


# --- settings.json
# -----------------------------------------------------------------------------------------------------------

numbers = st.integers(-2, 10**10) | st.sampled_from([2**31 - 1, 2**31, 10**400]) | scalars
regexes = st.sampled_from(["a", "(a", "", ".*", "(?=x)"]) | scalars
checks = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from([*Mode, "enforce"]) | scalars,
        "level": st.sampled_from([*Level, "minimal"]) | scalars,
        "payload": payloads,
        "expect": st.fixed_dictionaries({"regex": regexes}) | scalars,
        "periodSeconds": numbers,
        "timeoutSeconds": numbers,
        "failureThreshold": numbers,
        "successThreshold": numbers,
        "restartAfterSeconds": numbers,
        "unknown": scalars,
    },
)  # fmt: skip


def from_settings(folder: Path, content: bytes) -> LoadedConfiguration:
    (folder / "settings.json").write_bytes(content)
    return ConfigSources({"VLLMENDPOINT_SETTINGS_DIR": str(folder)}).load()


@given(content=st.binary(max_size=40) | values.map(lambda value: json.dumps(value).encode()))
@example(content=b'{"hash": "\\ud800", "healthCheck": 5}')
@example(content=b'{"\\ud800": 1}')
@example(content=b'{"hash": 5}')
@example(content=json.dumps({f"unknown{number}" + "x" * 500: 1 for number in range(40)}).encode())
@fuzz(240)
def test_any_settings_file_is_read_or_refused(folder: Path, content: bytes) -> None:
    loaded = from_settings(folder, content)
    result = resolve(loaded)
    told(result, loaded)
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError):
        value = ...
    if not isinstance(value, dict):
        assert isinstance(result, Rejected)
        assert {problem.source for problem in result.problems} == {"Spec"}


@given(check=checks, model_type=model_types)
@example(check={"periodSeconds": 10**400}, model_type=None)
@example(check={"timeoutSeconds": 2**31, "failureThreshold": 2**70}, model_type=None)
@example(check={"payload": {"prompt": "x", "stop": deep(40)}}, model_type=None)
@example(check={"payload": {"prompt": "x", "seed": 2**70}}, model_type=None)
@example(check={"payload": {"prompt": "\ud800"}}, model_type=None)
@example(check={"expect": {"regex": "(a"}}, model_type=None)
@fuzz(800)
def test_the_resources_health_check(folder: Path, check: dict[str, Any], model_type: Any) -> None:
    loaded = from_settings(folder, json.dumps({"healthCheck": check, "hash": "h"}).encode())
    assert loaded.settings_hash in ("h", "")
    result = resolve(loaded, model_type)
    told(result, loaded)
    if "unknown" in check and not loaded.sources.spec_problems:
        assert any("healthCheck.unknown" in warning for warning in loaded.warnings)
    if isinstance(result, Rejected):
        assert {problem.source for problem in result.problems} == {"Spec"}
        return
    said = {name: value for name, value in check.items() if value is not None}
    if "payload" in said:
        assert (result.source, result.payload) == (S.SPEC, said["payload"])
        assert "level" not in said
    elif "level" in said:
        assert (result.source, result.payload) == (S.SPEC, payload_for(Level(said["level"]), model_type))
    else:
        assert result.source in (S.MODEL_DEFAULT, S.GENERIC_DEFAULT)
    assert result.mode == said.get("mode", Mode.ENFORCE)
    assert result.expect == (said["expect"]["regex"] if "expect" in said else None)
    for name, value in (
        ("periodSeconds", result.period_seconds),
        ("timeoutSeconds", result.timeout_seconds),
        ("failureThreshold", result.failure_threshold),
        ("successThreshold", result.success_threshold),
        ("restartAfterSeconds", result.restart_after_seconds),
    ):
        if name in said:
            assert float(said[name]) == value
            assert 0 <= value < 2**31


# --- everything at once
# -----------------------------------------------------------------------------------------------------------


@given(
    said=st.dictionaries(st.sampled_from([row.source for row in PRECEDENCE]), payloads),
    model_type=model_types,
)
@fuzz(300)
def test_the_strongest_that_was_said_is_in_force_or_refused(
    said: dict[PayloadSource, Any], model_type: Any
) -> None:
    names = {S.RUNTIME: "runtime", S.CONFIG_FILE: "config_payload", S.CUSTOM_DEFAULT: "custom_default"}
    given_: dict[str, Any] = {names[source]: value for source, value in said.items() if source in names}
    if S.ENVIRONMENT in said:
        given_["environment_payload"] = EnvironmentPayload(said[S.ENVIRONMENT])
    order = [row.source for row in PRECEDENCE if row.source in (*names, S.ENVIRONMENT) and row.source in said]
    result = merge(PayloadSources(**given_), FIELDS, model_type)
    told(result)
    if not order:
        assert isinstance(result, Resolved)
        return
    in_force(result, order[0], said[order[0]])
    if isinstance(result, Resolved):
        assert [ignored.source for ignored in result.ignored] == order[1:]
