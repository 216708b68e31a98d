"""Random environment variables, config files and ``settings.json``: each value is used or rejected.

The expected result is computed independently of the worker's code. The examples are deterministic.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.unit.worker.config.fuzz_checks import assert_used_or_rejected, report_of, resolve
from tests.unit.worker.fuzzing import SECRET, deep, fuzz, model_types, payloads, raw_text, scalars, values
from vllmendpoint_api import Level, Mode, ModelType, PayloadSource, payload_for
from vllmendpoint_worker.config.resolved import Resolved, Unresolved
from vllmendpoint_worker.config.sources import ConfigSources, LoadedConfiguration

S = PayloadSource

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
def test_the_other_variables_are_used_or_rejected(
    level: str, enabled: str, disabled: str, interval: str, model_type: Any
) -> None:
    environ = {
        "DYN_HEALTH_CHECK_LEVEL": level,
        "DYN_HEALTH_CHECK_ENABLED": enabled,
        "DYN_HEALTH_CHECK_PAYLOAD_DISABLED": disabled,
        "DYN_HEALTH_CHECK_INTERVAL": interval,
        "VLLMENDPOINT_SETTINGS_DIR": "/nonexistent",
    }
    result = resolve(ConfigSources(environ).load(), model_type)
    text = report_of(result)
    assert SECRET not in text

    levels = {each.value.lower(): each for each in Level}
    invalid = set()
    if level.strip() and level.strip().lower() not in levels:
        invalid.add("DYN_HEALTH_CHECK_LEVEL")
    for name, value in (
        ("DYN_HEALTH_CHECK_ENABLED", enabled),
        ("DYN_HEALTH_CHECK_PAYLOAD_DISABLED", disabled),
    ):
        if value.strip() and value.strip().lower() not in BOOLEAN:
            invalid.add(name)
    try:
        seconds = float(interval) if interval.strip() else 30.0
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        invalid.add("DYN_HEALTH_CHECK_INTERVAL")

    if invalid:
        assert isinstance(result, Unresolved)
        assert {problem.field for problem in result.problems} == invalid
        return
    assert isinstance(result, Resolved)
    chosen = levels.get(level.strip().lower(), Level.MINIMAL)
    assert (result.level, result.payload) == (chosen, payload_for(chosen, model_type))
    disabled_ = BOOLEAN.get(disabled.strip().lower(), False) or not BOOLEAN.get(enabled.strip().lower(), True)
    assert result.mode is (Mode.DISABLED if disabled_ else Mode.ENFORCE)
    assert result.period_seconds == seconds


def load_config(folder: Path, content: bytes) -> LoadedConfiguration:
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
def test_a_config_file_of_any_content_is_read_or_rejected(folder: Path, content: bytes) -> None:
    loaded = load_config(folder, content)
    result = resolve(loaded)
    report_of(result, loaded)
    try:
        value = yaml.safe_load(content)
    except Exception:  # noqa: BLE001  (PyYAML raises any exception)
        value = ...
    if not (value is None or isinstance(value, dict)):
        assert isinstance(result, Unresolved)
        assert {(problem.source, problem.reason) for problem in result.problems} == {
            ("ConfigFile", "InvalidConfigFile")
        }


@given(payload=payloads, level=scalars | st.sampled_from(["standard", "Minimal"]), dashes=st.booleans())
@fuzz(200)
def test_the_health_check_of_the_config_file_is_used_or_rejected(
    folder: Path, payload: Any, level: Any, dashes: bool
) -> None:
    content = {"health_check_payload": payload, "health_check_level": level, "model": "m"}
    if dashes:
        content = {name.replace("_", "-"): value for name, value in content.items()}
    try:
        text = yaml.safe_dump(content, allow_unicode=True).encode()
        back = yaml.safe_load(text)
    except Exception:  # noqa: BLE001
        assume(False)
    key = "health-check-payload" if dashes else "health_check_payload"
    loaded = load_config(folder, text)
    assert_used_or_rejected(resolve(loaded), S.CONFIG_FILE, back[key])
    assert loaded.engine_config == {"model": "m"}  # vLLM does not get the worker's own keys


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


def load_settings(folder: Path, content: bytes) -> LoadedConfiguration:
    (folder / "settings.json").write_bytes(content)
    return ConfigSources({"VLLMENDPOINT_SETTINGS_DIR": str(folder)}).load()


@given(content=st.binary(max_size=40) | values.map(lambda value: json.dumps(value).encode()))
@example(content=b'{"hash": "\\ud800", "healthCheck": 5}')
@example(content=b'{"\\ud800": 1}')
@example(content=b'{"hash": 5}')
@example(content=json.dumps({f"unknown{number}" + "x" * 500: 1 for number in range(40)}).encode())
@fuzz(240)
def test_a_settings_file_of_any_content_is_read_or_rejected(folder: Path, content: bytes) -> None:
    loaded = load_settings(folder, content)
    result = resolve(loaded)
    report_of(result, loaded)
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError):
        value = ...
    if not isinstance(value, dict):
        assert isinstance(result, Unresolved)
        assert {problem.source for problem in result.problems} == {"Spec"}


@given(check=checks, model_type=model_types)
@example(check={"periodSeconds": 10**400}, model_type=None)
@example(check={"timeoutSeconds": 2**31, "failureThreshold": 2**70}, model_type=None)
@example(check={"payload": {"prompt": "x", "stop": deep(40)}}, model_type=None)
@example(check={"payload": {"prompt": "x", "seed": 2**70}}, model_type=None)
@example(check={"payload": {"prompt": "\ud800"}}, model_type=None)
@example(check={"expect": {"regex": "(a"}}, model_type=None)
@fuzz(800)
def test_the_health_check_of_the_spec_is_used_or_rejected(
    folder: Path, check: dict[str, Any], model_type: Any
) -> None:
    loaded = load_settings(folder, json.dumps({"healthCheck": check, "hash": "h"}).encode())
    assert loaded.settings_hash in ("h", "")
    result = resolve(loaded, model_type)
    report_of(result, loaded)
    if "unknown" in check and not loaded.sources.spec_problems:
        assert any("healthCheck.unknown" in warning for warning in loaded.warnings)
    if isinstance(result, Unresolved):
        assert {problem.source for problem in result.problems} == {"Spec"}
        return
    fields = {name: value for name, value in check.items() if value is not None}
    if "payload" in fields:
        assert (result.source, result.payload) == (S.SPEC, fields["payload"])
        assert "level" not in fields
    elif "level" in fields:
        assert (result.source, result.payload) == (S.SPEC, payload_for(Level(fields["level"]), model_type))
    else:
        assert result.source in (S.MODEL_DEFAULT, S.GENERIC_DEFAULT)
    assert result.mode == fields.get("mode", Mode.ENFORCE)
    assert result.expect == (fields["expect"]["regex"] if "expect" in fields else None)
    for name, value in (
        ("periodSeconds", result.period_seconds),
        ("timeoutSeconds", result.timeout_seconds),
        ("failureThreshold", result.failure_threshold),
        ("successThreshold", result.success_threshold),
        ("restartAfterSeconds", result.restart_after_seconds),
    ):
        if name in fields:
            assert float(fields[name]) == value
            assert 0 <= value < 2**31
