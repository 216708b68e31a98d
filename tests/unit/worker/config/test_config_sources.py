"""The configuration sources: what is read, how a change is detected, and that no value is repeated."""

import json
from pathlib import Path
from typing import Any

import pytest

from vllmendpoint_api import Level, ModelType, WorkerSettings
from vllmendpoint_worker.config.files import MAX_FILE_BYTES
from vllmendpoint_worker.config.merge import merge
from vllmendpoint_worker.config.payload_sources import ABSENT
from vllmendpoint_worker.config.resolved import Unresolved
from vllmendpoint_worker.config.sources import ConfigSources
from vllmendpoint_worker.options.arguments import config_to_arguments
from vllmendpoint_worker.options.conflicts import find_conflicts


def sources(tmp_path: Path, argv: list[str] | None = None, **environ: str) -> ConfigSources:
    return ConfigSources({"VLLMENDPOINT_SETTINGS_DIR": str(tmp_path), **environ}, argv or [])


def settings(tmp_path: Path, content: Any) -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (tmp_path / "settings.json").write_bytes(data)


def test_without_settings_nothing_is_loaded(tmp_path: Path) -> None:
    loaded = sources(tmp_path).load()
    assert loaded.settings_hash == ""
    assert loaded.sources.environment_payload is None
    assert loaded.sources.config_payload is ABSENT
    assert loaded.sources.spec_problems == ()


def test_the_worker_reads_the_settings_that_the_operator_writes(tmp_path: Path) -> None:
    sealed = WorkerSettings.model_validate(
        {"healthCheck": {"level": "Standard", "periodSeconds": 7}}
    ).sealed()
    settings(tmp_path, sealed.wire())
    loaded = sources(tmp_path).load()
    assert loaded.settings_hash == sealed.hash
    assert loaded.sources.spec.level == Level.STANDARD
    assert loaded.sources.spec.period_seconds == 7


def test_unknown_settings_of_a_newer_operator_are_a_warning(tmp_path: Path) -> None:
    newer = {"probeMode": 1, "expect": {"regex": "x", "language": "fr"}}
    settings(tmp_path, {"healthCheck": newer, "handlers": {"warmUp": "f"}, "tuning": {}, "hash": "h"})
    loaded = sources(tmp_path).load()
    assert loaded.settings_hash == "h"
    assert loaded.sources.spec_problems == ()
    prefix = "This version of the worker does not know the setting "
    assert {warning.removeprefix(prefix).rstrip(".") for warning in loaded.warnings} == {
        "tuning",
        "healthCheck.probeMode",
        "healthCheck.expect.language",
        "handlers.warmUp",
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "is not valid JSON (line 1, column 2)"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[]", "is not valid"),
        (b'{"hash": "h", "healthCheck": {"periodSeconds": 0}}', "healthCheck.periodSeconds"),
        (b'{"hash": "h", "healthCheck": {"level": "hunter2"}}', "healthCheck.level"),
        (b" " * (MAX_FILE_BYTES + 1), "is larger than"),
        (b"1" * 5000, "too many digits"),
    ],
)
def test_unreadable_settings_are_rejected(tmp_path: Path, content: bytes, expected: str) -> None:
    settings(tmp_path, content)
    loaded = sources(tmp_path).load()
    assert expected in loaded.sources.spec_problems[0].message
    assert "hunter2" not in loaded.sources.spec_problems[0].message
    assert isinstance(merge(loaded.sources), Unresolved)
    if b"hash" in content:
        assert loaded.settings_hash == "h"  # reported even if the settings are rejected


@pytest.mark.parametrize("value", ['{"prompt": "test", "max_tokens": 1, "temperature": 0}', "@file"])
def test_the_payload_of_the_environment_is_inline_or_in_a_file(tmp_path: Path, value: str) -> None:
    file = tmp_path / "payload.json"
    file.write_text('{"prompt": "test", "max_tokens": 1, "temperature": 0}')
    found = (
        sources(tmp_path, DYN_HEALTH_CHECK_PAYLOAD=value.replace("@file", f"@{file}"))
        .load()
        .sources.environment_payload
    )
    assert found is not None
    assert found.value == {"prompt": "test", "max_tokens": 1, "temperature": 0}


@pytest.mark.parametrize(
    "value",
    ["{hunter2", "hunter2", "@/nowhere/hunter2", "@bad", "@folder", "@\x00hunter2", "{'prompt': 'hunter2'}"]
    + ['{"prompt": "hunter2", "seed": ' + "1" * 5000 + "}"],
)
def test_an_unreadable_payload_is_rejected_and_not_repeated(tmp_path: Path, value: str) -> None:
    (tmp_path / "bad").write_bytes(b"\xffhunter2")
    value = value.replace("@bad", f"@{tmp_path}/bad").replace("@folder", f"@{tmp_path}")
    config_sources = sources(tmp_path, DYN_HEALTH_CHECK_PAYLOAD=value)
    result = merge(config_sources.load().sources)
    assert isinstance(result, Unresolved)
    assert result.problems[0].source == "Environment"
    assert result.problems[0].field == "DYN_HEALTH_CHECK_PAYLOAD"
    assert "hunter2" not in result.problems[0].message
    assert str(tmp_path) not in result.problems[0].message
    config_sources.fingerprints()


def test_an_empty_variable_is_unset(tmp_path: Path) -> None:
    loaded = sources(tmp_path, DYN_HEALTH_CHECK_PAYLOAD="", DYN_HEALTH_CHECK_LEVEL=" ").load()
    assert loaded.sources.environment_payload is None
    assert loaded.sources.environment == {}


def test_the_config_file_of_the_guide_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        'model: "gpt2"\nhealth_check_level: "standard"\nhealth_check_payload:\n'
        '  prompt: "The weather is"\n  max_tokens: 3\n  temperature: 0.5\n'
    )
    for config_sources in (
        sources(tmp_path, VLLMENDPOINT_CONFIG_FILE=str(file)),
        sources(tmp_path, ["--config", str(file)]),
        sources(tmp_path, [f"--config={file}", "--model", "gpt2"]),
    ):
        loaded = config_sources.load()
        assert loaded.sources.config_level == "standard"
        assert loaded.sources.config_payload == {
            "prompt": "The weather is",
            "max_tokens": 3,
            "temperature": 0.5,
        }
        assert loaded.engine_config == {"model": "gpt2"}
        assert "--config" not in " ".join(loaded.engine.arguments)
    file.write_text("health-check-level: minimal\n")
    assert sources(tmp_path, VLLMENDPOINT_CONFIG_FILE=str(file)).load().sources.config_level == "minimal"


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"a: [", "line 1"), (b"- 1", "mapping"), (b"\xff", "UTF-8"), (None, "does not exist")],
)
def test_an_invalid_config_file_is_rejected(tmp_path: Path, content: bytes | None, expected: str) -> None:
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_bytes(content)
    problems = sources(tmp_path, VLLMENDPOINT_CONFIG_FILE=str(file)).load().sources.config_problems
    assert problems[0].reason == "InvalidConfigFile"
    assert expected in problems[0].message


@pytest.mark.parametrize("values", [("hunter2", "comprehensive"), ("standard", "standard")])
@pytest.mark.parametrize("name", ["health_check_level", "health_check_payload"])
def test_a_key_in_both_spellings_is_rejected(tmp_path: Path, name: str, values: tuple[str, str]) -> None:
    file = tmp_path / "config.yaml"
    dashed = name.replace("_", "-")
    file.write_text(f"model: gpt2\n{name}: {values[0]}\n{dashed}: {values[1]}\n")
    (problem,) = sources(tmp_path, VLLMENDPOINT_CONFIG_FILE=str(file)).load().sources.config_problems
    assert (problem.source, problem.reason, problem.field) == ("ConfigFile", "InvalidConfigFile", name)
    assert problem.message == f"{name} is set more than once, as {name} and {dashed}. Keep only one of them."


@pytest.mark.parametrize("path", ["locked/hunter2", "hunter2/" * 600, "hunter2" * 50, "hunter2\x00"])
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("VLLMENDPOINT_CONFIG_FILE", "config.yaml"),
        ("VLLMENDPOINT_SETTINGS_DIR", "settings.json"),
        ("DYN_HEALTH_CHECK_PAYLOAD", ""),
        ("SAGEMAKER_MODEL_PATH", ""),
        ("CUSTOM_SCRIPT_FILENAME", ""),
    ],
)
def test_an_unusable_path_is_rejected_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, field: str, path: str
) -> None:
    """The path is too long, is not a file name, or is in a folder without read permission."""
    stat, opened = Path.stat, Path.open

    def deny(file: Path) -> None:
        if "locked" in file.parts:  # mode bits do not restrict root
            raise PermissionError(13, "Permission denied", str(file))

    def stat_(file: Path, **options: Any) -> Any:
        deny(file)
        return stat(file, **options)

    def open_(file: Path, *args: Any) -> Any:
        deny(file)
        return opened(file, *args)

    monkeypatch.setattr(Path, "stat", stat_)
    monkeypatch.setattr(Path, "open", open_)
    config_sources = sources(tmp_path, **{name: f"@{path}" if name == "DYN_HEALTH_CHECK_PAYLOAD" else path})
    loaded = config_sources.load()
    config_sources.fingerprints()
    merged = merge(loaded.sources)
    problems = [
        *loaded.handler_problems,
        *loaded.engine.problems,
        *(merged.problems if isinstance(merged, Unresolved) else ()),
    ]
    assert (field or name) in [problem.field for problem in problems]
    for problem in problems:
        assert "hunter2" not in problem.message
        assert "YAML" not in problem.message  # the file is not parsed


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{2026-01-01: hunter2}", "contains a date. Quote it"),
        ("{release: 2026-01-01}", "contains a date"),
        ("[{release: 2026-01-01 10:00:00}]", "contains a date"),
        ("&a {x: *a}", "nested more than 32 levels deep"),
        ("&a [*a]", "nested more than 32 levels deep"),
        ("!!binary aGk=", "JSON cannot represent"),
        ("{x: !!set {hunter2}}", "JSON cannot represent"),
        ("0x" + "f" * 5000, "more than 64 bits"),
        ("{x: 0x" + "f" * 5000 + "}", "more than 64 bits"),
        ('"\\uD800"', "UTF-8 cannot encode"),
    ],
)
def test_an_option_that_cannot_be_an_argument_is_rejected(tmp_path: Path, value: str, expected: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"model: gpt2\nhf_overrides: {value}\n")
    loaded = sources(tmp_path, VLLMENDPOINT_CONFIG_FILE=str(file)).load()
    (problem,) = loaded.sources.config_problems
    assert (problem.source, problem.reason) == ("ConfigFile", "InvalidConfigFile")
    assert problem.field == "hf_overrides of the config file"
    assert expected in problem.message
    assert "hunter2" not in problem.message
    assert isinstance(merge(loaded.sources), Unresolved)
    config_to_arguments(loaded.engine_config, set())


def test_an_option_with_exponential_yaml_aliases_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    rows = [f"  x{row}: &a{row} [{', '.join([f'*a{row - 1}'] * 10)}]" for row in range(1, 12)]
    file.write_text("\n".join(["hf_overrides:", f"  x0: &a0 [{'y' * 1000}]", *rows]))
    (problem,) = sources(tmp_path, VLLMENDPOINT_CONFIG_FILE=str(file)).load().sources.config_problems
    assert "is too large" in problem.message


def test_options_that_can_be_arguments_are_accepted(tmp_path: Path) -> None:
    """Dates become text. Keys can be numbers (``id2label``) and numbers infinite (``time_step_limit``)."""
    file = tmp_path / "config.yaml"
    file.write_text(
        "revision: 2026-01-01\nserved_model_name: [a, 2026-01-01]\n"
        "hf_overrides: {id2label: {0: a}, time_step_limit: [0.0, .inf], none: null, on: true}\n"
    )
    loaded = sources(tmp_path, VLLMENDPOINT_CONFIG_FILE=str(file)).load()
    assert loaded.sources.config_problems == ()
    assert config_to_arguments(loaded.engine_config, set()) == [
        *("--revision", "2026-01-01", "--served-model-name", "a", "2026-01-01", "--hf-overrides"),
        '{"id2label": {"0": "a"}, "time_step_limit": [0.0, Infinity], "none": null, "true": true}',
    ]


def test_two_config_files_or_two_models_are_rejected(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: gpt2\n")
    two = sources(tmp_path, ["--config", str(file)], VLLMENDPOINT_CONFIG_FILE=str(file))
    assert "twice" in two.load().sources.config_problems[0].message
    for argv in (["--model", "gpt2"], ["--seed", "1"], ["--model", "other"], ["--model=other"]):
        loaded = sources(tmp_path, argv, VLLMENDPOINT_CONFIG_FILE=str(file)).load()
        reasons = [problem.reason for problem in find_conflicts(loaded.engine.options, {})]
        assert reasons == (["InvalidConfigFile"] if "other" in argv[-1] else [])


def test_a_missing_model_is_rejected_until_its_folder_exists(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "toy"
    found = sources(tmp_path, ["--model", str(folder)])
    (problem,) = found.load().engine.problems
    assert problem.reason == "InvalidEngineArguments"
    assert problem.message == (
        f"model.uri (--model) names a path that does not exist ({folder}). "
        "Correct the path, or mount the model there."
    )
    before = found.fingerprints()
    folder.mkdir(parents=True)
    assert found.fingerprints() != before, "a missing folder is watched"
    assert found.load().engine.problems == ()
    before = found.fingerprints()
    (folder / "another-file").touch()
    assert found.fingerprints() == before, "an existing folder is not watched"


@pytest.mark.parametrize(
    ("argv", "environ"),
    [
        (["--model", "organisation/name"], {}),
        (["--model", "/not/there"], {"VLLMENDPOINT_MODEL_URI": "s3://bucket/model/"}),
        (["--model", "/not/there"], {"VLLMENDPOINT_ARTIFACTS_URI": "s3://bucket/model/"}),
    ],
)
def test_a_model_that_is_downloaded_need_not_exist(
    tmp_path: Path, argv: list[str], environ: dict[str, str]
) -> None:
    assert sources(tmp_path, argv, **environ).load().engine.problems == ()


def test_the_path_of_a_model_from_the_environment_is_not_repeated(tmp_path: Path) -> None:
    (problem,) = sources(tmp_path, SM_VLLM_MODEL="/hunter2").load().engine.problems
    assert "SM_VLLM_MODEL names a path that does not exist. " in problem.message


@pytest.mark.parametrize(
    ("raw", "expected"), [("", None), ("chat", ModelType.CHAT), ("Embedding", ModelType.EMBEDDING)]
)
def test_the_environment_sets_the_model_type(tmp_path: Path, raw: str, expected: ModelType | None) -> None:
    assert sources(tmp_path, VLLMENDPOINT_MODEL_TYPE=raw).model_type() == (expected, ())


def test_an_unknown_model_type_is_rejected(tmp_path: Path) -> None:
    assert isinstance(merge(sources(tmp_path, VLLMENDPOINT_MODEL_TYPE="hunter2").load().sources), Unresolved)


def test_the_update_of_a_projected_volume_is_detected(tmp_path: Path) -> None:
    """The kubelet writes a new folder and replaces the link ..data, but not the link settings.json."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.json").write_text(f'{{"hash": "{name}"}}')
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "settings.json").symlink_to("..data/settings.json")
    config_sources = sources(tmp_path)
    before = config_sources.fingerprints()
    assert config_sources.load().settings_hash == "one"
    (tmp_path / "..new").symlink_to("two")
    (tmp_path / "..new").replace(tmp_path / "..data")
    assert config_sources.fingerprints() != before
    assert config_sources.load().settings_hash == "two"


def test_a_created_changed_or_deleted_file_is_detected(tmp_path: Path) -> None:
    config_sources = sources(tmp_path)
    absent = config_sources.fingerprints()
    settings(tmp_path, {})
    present = config_sources.fingerprints()
    assert present != absent
    settings(tmp_path, {"hash": "x"})
    assert config_sources.fingerprints() != present
    (tmp_path / "settings.json").unlink()
    assert config_sources.fingerprints() == absent


def test_a_base_60_number_of_two_hundred_digits_is_rejected(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("seed: 1" + ":1" * 200 + ".5\n")
    loaded = sources(tmp_path, VLLMENDPOINT_CONFIG_FILE=str(config)).load()
    assert isinstance(merge(loaded.sources), Unresolved) or loaded.engine.problems
