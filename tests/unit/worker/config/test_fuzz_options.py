"""Random options in ``SM_VLLM_*``, the command line and the config file: each is passed on or rejected."""

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.unit.worker.config.fuzz_checks import load, problems_of
from tests.unit.worker.fuzzing import SECRET, fuzz, raw_text, scalars, values
from vllmendpoint_worker.options.arguments import config_to_arguments, split_by_server
from vllmendpoint_worker.options.conflicts import parser_rejection

LONG = "x" * 3000

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
def test_the_options_of_the_environment_are_passed_on_or_rejected(
    folder: Path, variables: dict[str, str], argv: list[str]
) -> None:
    environ = {f"SM_VLLM_{name}": value for name, value in variables.items()}
    loaded = load(folder, environ, argv)
    problems = problems_of(loaded)
    assert SECRET not in json.dumps([problems, loaded.warnings])
    split_by_server(loaded.engine.arguments, frozenset(), frozenset())
    in_spec = {each.option for each in loaded.engine.options if each.origin.source == "Spec"}
    for name, value in variables.items():
        option = "--" + name.lower().replace("_", "-")
        plain = (
            value.strip() and value.strip()[0] not in "[{" and value.strip().lower() not in ("true", "false")
        )
        if plain and option not in {*in_spec, "--", "--config"}:
            at = loaded.engine.arguments.index(option)
            assert value in loaded.engine.arguments[at:]
        if SECRET in value and option != "--":
            message = f"argument {option}: invalid choice: '{SECRET}'"
            assert SECRET not in parser_rejection(message, loaded.engine.options).message


@pytest.mark.parametrize("text", ["[{}]", '["a", {}]', '{{"a": {}}} {{}}', '{{"a": {}}}'])
def test_json_at_the_recursion_limit_does_not_fail(folder: Path, text: str) -> None:
    for levels in range(sys.getrecursionlimit() - 150, sys.getrecursionlimit() + 10):
        nested = text.format("[" * levels + "]" * levels)
        problems_of(load(folder, {"SM_VLLM_MODEL": "m", "SM_VLLM_HF_OVERRIDES": nested}))


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


def check_config_file(folder: Path, content: bytes) -> None:
    file = folder / "config.yaml"
    file.write_bytes(content)
    loaded = load(folder, {"SM_VLLM_MODEL": "m", "VLLMENDPOINT_CONFIG_FILE": str(file)})
    problems = problems_of(loaded)
    assert SECRET not in json.dumps(problems)
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
def test_the_options_of_the_config_file_are_passed_on_or_rejected(
    folder: Path, config: dict[str, Any]
) -> None:
    try:
        content = yaml.safe_dump(config, allow_unicode=True).encode()
    except Exception:  # noqa: BLE001  (PyYAML raises any exception)
        assume(False)
    check_config_file(folder, content)


@given(text=st.text("a:-[]{}&*!?|>'\"%@`#\n 0_x2026.~", max_size=40))
@example(text="0x" + "f" * 5000)
@example(text="&a {a: *a}")
@example(text="{2026-01-01: 1}")
@fuzz(400)
def test_any_value_in_the_config_file_is_passed_on_or_rejected(folder: Path, text: str) -> None:
    check_config_file(folder, f"a: {text}".encode())
