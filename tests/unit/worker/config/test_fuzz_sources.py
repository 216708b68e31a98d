"""Handlers, SageMaker's environment and the engine's options, drawn at random: no crash, nothing repeated.

As in ``test_fuzz``: what is invalid is refused, what is accepted is in force to the letter.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.unit.worker.fuzzing import SECRET, fuzz, raw_text, scalars, values
from vllmendpoint_api import (
    CONDITION_REASONS,
    Condition,
    ConfigurationReport,
    ConfigurationState,
    script_digest,
)
from vllmendpoint_operator.reports.streams import parse
from vllmendpoint_worker.config.handler_config import HANDLER_VARIABLES, MIDDLEWARE_VARIABLES, Route
from vllmendpoint_worker.config.merge import merge
from vllmendpoint_worker.config.resolved import Rejected
from vllmendpoint_worker.config.sources import ConfigSources, LoadedConfiguration
from vllmendpoint_worker.options.arguments import config_to_arguments, split_by_server
from vllmendpoint_worker.options.conflicts import find_conflicts, parser_rejection
from vllmendpoint_worker.options.sagemaker import container_environment
from vllmendpoint_worker.serving.state import WorkerState

REASONS = {reason.value for reason in CONDITION_REASONS[Condition.CONFIGURATION_RESOLVED]}
NAMES = {"-tp": "tensor_parallel_size", "--tensor-parallel-size": "tensor_parallel_size"}
LONG = "x" * 3000


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def read(folder: Path, environ: dict[str, str], argv: list[str] | None = None) -> LoadedConfiguration:
    environ = {"VLLMENDPOINT_SETTINGS_DIR": str(folder), "SAGEMAKER_MODEL_PATH": str(folder), **environ}
    container_environment(environ)
    sources = ConfigSources(environ, argv or [])
    loaded = sources.load()
    sources.fingerprints()
    return loaded


def told(loaded: LoadedConfiguration) -> dict[str, str]:
    """What is wrong, by field; it must be fit for a report that the operator can read."""
    merged = merge(loaded.sources)
    problems = [*(merged.problems if isinstance(merged, Rejected) else ()), *loaded.handler_problems]
    problems += [*loaded.engine.problems, *find_conflicts(loaded.engine.options, NAMES)]
    for problem in problems:
        assert problem.reason in REASONS
        assert problem.field in problem.message
        assert problem.message.endswith(".")
    state = ConfigurationState.REJECTED if problems else ConfigurationState.RESOLVED
    warnings = loaded.warnings[:16]
    worker = WorkerState(worker_version="1", pod_uid="uid")
    worker.update(
        configuration=ConfigurationReport(state=state, problems=tuple(problems[:16]), warnings=warnings)
    )
    line = json.dumps(worker.report().wire())
    assert parse(line.encode(), "uid").configuration.state == state
    return {problem.field: problem.message for problem in problems}


# --- handlers
# -----------------------------------------------------------------------------------------------------------

GOOD_PATHS = ["model:f", "handlers.py:f", "/a/b.py:C.m", "package.module:f", " model:f\n"]
BAD_PATHS = [SECRET, f"{SECRET}:", f":{SECRET}", f"{SECRET}:f:g", f"/{SECRET}", f"../{SECRET}.py:f", "a b:c"]
paths = st.sampled_from([*GOOD_PATHS, *BAD_PATHS]) | raw_text
scripts = st.sampled_from([b"x = 1\n", b"def f(:\n", b"\x00", b"\xff", b"# coding: hex\n"]) | st.binary(
    max_size=20
)


def in_force(
    loaded: LoadedConfiguration, said: dict[str, Any], fields: dict[Route, str], wrong: dict[str, str]
) -> None:
    """Each path is in force to the letter, or refused by its name."""
    assert loaded.handlers is not None
    for route, field in fields.items():
        text = said.get(field)
        if text is None or not text.strip():
            continue
        choice = loaded.handlers.references.get(route)
        if choice is None:
            assert field in wrong
            assert text not in GOOD_PATHS
        else:
            assert (choice.field, choice.path.text) == (field, text.strip())
            assert text not in BAD_PATHS


@given(
    handlers=st.fixed_dictionaries(
        {},
        optional={
            "scriptDigest": st.sampled_from([script_digest(b"x = 1\n"), "other"]) | scalars,
            "ping": paths | scalars,
            "invocations": paths | scalars,
            "unknown": values,
        },
    )
    | values,
    script=scripts,
)
@example(
    handlers={"scriptDigest": script_digest(b"x=" + b"-" * 99_999 + b"1")},
    script=b"x=" + b"-" * 99_999 + b"1",
)
@example(handlers={"scriptDigest": script_digest(b"x=1" + b"+1" * 99_999)}, script=b"x=1" + b"+1" * 99_999)
@example(handlers={"ping": "a\x00.py:f"}, script=b"")
@fuzz(400)
def test_the_resources_handlers(folder: Path, handlers: Any, script: bytes) -> None:
    (folder / "model.py").write_bytes(script)
    (folder / "settings.json").write_text(json.dumps({"handlers": handlers}))
    loaded = read(folder, {"SM_VLLM_MODEL": "m"})
    wrong = told(loaded)
    (folder / "settings.json").unlink()
    if loaded.sources.spec_problems or handlers is None:
        return
    in_force(loaded, handlers, {route: f"handlers.{route[1:]}" for route in Route}, wrong)
    assert loaded.handlers is not None
    if handlers.get("scriptDigest") is not None and loaded.handlers.script is None:
        assert "handlers.script" in wrong


@given(
    environ=st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys([*HANDLER_VARIABLES.values(), *MIDDLEWARE_VARIABLES], paths),
            "CUSTOM_SCRIPT_FILENAME": st.sampled_from(["model.py", SECRET, ".", "/"]) | raw_text,
            "SAGEMAKER_MODEL_PATH": st.sampled_from([SECRET, f"/{SECRET}" * 600, f"{SECRET}/" * 40])
            | raw_text,
            "SAGEMAKER_CONTAINER_LOG_LEVEL": st.sampled_from(["debug", "10", SECRET, "1" * 5000]) | raw_text,
        },
    ),
    script=scripts,
)
@example(environ={"CUSTOM_SCRIPT_FILENAME": SECRET * 30}, script=b"")
@fuzz(400)
def test_handlers_from_the_environment(folder: Path, environ: dict[str, str], script: bytes) -> None:
    (folder / "model.py").write_bytes(script)
    loaded = read(folder, {"SM_VLLM_MODEL": "m", **environ})
    wrong = told(loaded)
    assert SECRET not in json.dumps(wrong)
    in_force(loaded, environ, HANDLER_VARIABLES, wrong)
    assert loaded.handlers is not None
    level = environ.get("SAGEMAKER_CONTAINER_LOG_LEVEL", "").strip().upper()
    assert loaded.handlers.log_level == ("" if "SAGEMAKER_CONTAINER_LOG_LEVEL" in wrong else level)
    assert level not in (SECRET, "1" * 5000) or "SAGEMAKER_CONTAINER_LOG_LEVEL" in wrong


# --- SM_VLLM_*
# -----------------------------------------------------------------------------------------------------------

options = st.sampled_from(
    ["MODEL", "PORT", "HOST", "NAMESPACE", "SEED", "TENSOR_PARALLEL_SIZE", "MIDDLEWARE"]
)
option_values = (
    raw_text
    | values.map(json.dumps)
    | st.lists(values, max_size=3).map(json.dumps)
    | st.lists(st.dictionaries(st.just("a"), values), max_size=3).map(
        lambda objects: " ".join(json.dumps(each) for each in objects)
    )
    | st.sampled_from(
        ["true", " False", SECRET, f'["{SECRET}"]', "8080", "1" * 5000, "[" * 5000 + "]" * 5000]
    )
)


@given(
    variables=st.dictionaries(
        options | raw_text.filter(lambda name: "=" not in name), option_values, max_size=3
    ),
    argv=st.lists(st.sampled_from(["--seed", "1", "-tp", "--config", "--no-x", "-O3", "--a.b=c"]) | raw_text),
)
@example(variables={"PORT": "1" * 5000}, argv=[])
@example(variables={LONG: "1"}, argv=[f"--{LONG.replace('x', 'X')}", f"--{LONG}", "2"])
@example(variables={LONG: "[]"}, argv=[])
@fuzz(600)
def test_the_environments_options(folder: Path, variables: dict[str, str], argv: list[str]) -> None:
    environ = {f"SM_VLLM_{name}": value for name, value in variables.items()}
    loaded = read(folder, environ, argv)
    wrong = told(loaded)
    assert SECRET not in json.dumps([wrong, loaded.warnings])
    split_by_server(loaded.engine.arguments, frozenset(), frozenset())
    said = {each.option for each in loaded.engine.options if each.origin.source == "Spec"}
    for name, value in variables.items():
        option = "--" + name.lower().replace("_", "-")
        plain = (
            value.strip() and value.strip()[0] not in "[{" and value.strip().lower() not in ("true", "false")
        )
        if plain and option not in {*said, "--", "--config"}:
            at = loaded.engine.arguments.index(option)
            assert value in loaded.engine.arguments[at:]
        if SECRET in value and option != "--":
            sentence = f"argument {option}: invalid choice: '{SECRET}'"
            assert SECRET not in parser_rejection(sentence, loaded.engine.options).message


@pytest.mark.parametrize("text", ["[{}]", '["a", {}]', '{{"a": {}}} {{}}', '{{"a": {}}}'])
def test_options_nested_about_as_deep_as_python_goes(folder: Path, text: str) -> None:
    for levels in range(sys.getrecursionlimit() - 150, sys.getrecursionlimit() + 10):
        nested = text.format("[" * levels + "]" * levels)
        told(read(folder, {"SM_VLLM_MODEL": "m", "SM_VLLM_HF_OVERRIDES": nested}))


# --- the config file's options
# -----------------------------------------------------------------------------------------------------------

names = st.sampled_from(["hf_overrides", "max-model-len", "x_y", "", "-", "a b", "a=b"]) | st.text(max_size=6)
keys = names | st.integers() | st.dates() | st.binary(max_size=2) | st.none() | st.floats()
yaml_values = st.recursive(
    scalars
    | st.dates()
    | st.datetimes()
    | st.binary(max_size=3)
    | st.frozensets(st.integers(), max_size=2).map(set),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


def check_config(folder: Path, content: bytes) -> None:
    file = folder / "config.yaml"
    file.write_bytes(content)
    loaded = read(folder, {"SM_VLLM_MODEL": "m", "VLLMENDPOINT_CONFIG_FILE": str(file)})
    wrong = told(loaded)
    assert SECRET not in json.dumps(wrong)
    arguments = config_to_arguments(loaded.engine_config, {"--no-x-y"})
    assert all(isinstance(argument, str) for argument in arguments)
    split_by_server(arguments, frozenset(), frozenset())
    for key, value in loaded.engine_config.items():
        if isinstance(value, dict):
            at = arguments.index(f"--{key.replace('_', '-')}")
            assert any(
                json.dumps(value) == argument and isinstance(json.loads(argument), dict)
                for argument in arguments[at:]
            )
        elif isinstance(value, str | date) or (
            isinstance(value, int | float) and not isinstance(value, bool)
        ):
            assert str(value) in arguments


@given(config=st.dictionaries(names, yaml_values, max_size=3))
@example(config={LONG: 1, LONG.replace("x", "_"): 2, LONG.replace("x", "-"): {1: date(2026, 1, 1)}})
@example(config={LONG.replace("x", "_"): 2, LONG.replace("x", "-"): 1})
@example(config={"health_check_payload": {LONG: float("nan")}})
@fuzz(500)
def test_a_config_files_options(folder: Path, config: dict[str, Any]) -> None:
    try:
        content = yaml.safe_dump(config, allow_unicode=True).encode()
    except Exception:  # noqa: BLE001  (PyYAML raises what it likes)
        assume(False)
    check_config(folder, content)


@given(text=st.text("a:-[]{}&*!?|>'\"%@`#\n 0_x2026.~", max_size=40))
@example(text="0x" + "f" * 5000)
@example(text="&a {a: *a}")
@example(text="{2026-01-01: 1}")
@fuzz(400)
def test_any_option_of_a_config_file(folder: Path, text: str) -> None:
    check_config(folder, f"a: {text}".encode())
