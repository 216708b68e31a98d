"""compat: the functions of the guide, level by level. tests/worker/test_python_api.py uses real Dynamo."""

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker.compat.compat_payloads import (
    CHAT,
    MARKERS,
    MINIMAL,
    OTHER,
    PAYLOAD,
    STANDARD,
)
from vllmendpoint_api import Level, ModelType, payload_for
from vllmendpoint_worker.compat import (
    HealthCheckRejectedError,
    get_health_check_payload,
    set_custom_health_check_payload,
)
from vllmendpoint_worker.compat._model_type import detect_model_type
from vllmendpoint_worker.compat._payloads import payload_to_send
from vllmendpoint_worker.config.sources import REMOVED_VARIABLES
from vllmendpoint_worker.errors import WorkerError


class Config:
    model = "gpt2"
    health_check_level = "standard"
    health_check_payload = PAYLOAD


class Plain:
    model = "no-such-organisation/no-such-model"


# --- get_health_check_payload


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize(
    ("word", "model_type"),
    [
        ("chat", ModelType.CHAT),
        ("Chat", ModelType.CHAT),
        ("completion", ModelType.COMPLETION),
        ("COMPLETION", ModelType.COMPLETION),
        ("embedding", ModelType.EMBEDDING),
        (ModelType.EMBEDDING, ModelType.EMBEDDING),
        ("generate", None),
        (None, None),
    ],
)
def test_default_payloads_are_the_guides(
    monkeypatch: pytest.MonkeyPatch, level: Level, word: str | None, model_type: ModelType | None
) -> None:
    monkeypatch.setenv("DYN_HEALTH_CHECK_LEVEL", level.value.lower())
    assert get_health_check_payload(config=Plain(), model_type=word) == payload_for(level, model_type)


def test_minimal_without_any_setting() -> None:
    assert get_health_check_payload(config=Plain(), model_type="generate") == MINIMAL
    assert get_health_check_payload(config=None, model_type="chat") == CHAT


def test_every_call_returns_a_new_dict() -> None:
    first = get_health_check_payload(Plain(), "chat")
    assert first is not None
    first["messages"][0]["content"] = "changed"
    assert get_health_check_payload(Plain(), "chat") == CHAT
    mine = {"messages": [{"role": "user", "content": "mine"}]}
    given = get_health_check_payload({"health_check_payload": mine}, "chat")
    assert given == mine
    given["messages"][0]["content"] = "changed"
    assert mine["messages"][0]["content"] == "mine"


LEVELS: dict[str, dict[str, Any]] = {
    # from the highest that this function knows to the lowest: the setting and the resulting payload
    "Environment": {"env": PAYLOAD | {"seed": 2}},
    "ConfigFile": {"config": PAYLOAD | {"seed": 3}},
    "CustomDefault": {"custom": PAYLOAD | {"seed": 4}},
    "ModelDefault": {},
}


@pytest.mark.parametrize(("stronger", "weaker"), [*itertools.combinations(LEVELS, 2)])
def test_the_level_with_the_higher_priority_is_used(
    monkeypatch: pytest.MonkeyPatch, stronger: str, weaker: str
) -> None:
    settings = LEVELS[weaker] | LEVELS[stronger]
    config = {"model": "gpt2", "health_check_level": "standard"}
    if "env" in settings:
        monkeypatch.setenv("DYN_HEALTH_CHECK_PAYLOAD", json.dumps(settings["env"]))
    if "config" in settings:
        config["health_check_payload"] = settings["config"]
    set_custom_health_check_payload(settings.get("custom"))
    expected = next(iter(LEVELS[stronger].values()), STANDARD)
    assert get_health_check_payload(config, "completion") == expected


@pytest.mark.parametrize(
    "config",
    [Config, Config(), {"health_check_payload": PAYLOAD}, {"health-check-payload": PAYLOAD}],
    ids=["class", "object", "mapping", "dashes"],
)
def test_all_forms_of_config_are_read(config: object) -> None:
    assert get_health_check_payload(config=config, model_type="generate") == PAYLOAD


def test_the_environments_level_has_priority_over_the_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Levelled:
        health_check_level = "standard"
        health_check_payload = None  # as Dynamo's own Config has it where nothing is set

    assert get_health_check_payload(Levelled, "completion") == STANDARD
    monkeypatch.setenv("DYN_HEALTH_CHECK_LEVEL", "minimal")
    assert get_health_check_payload(Levelled, "completion") == MINIMAL


def test_without_a_config_the_config_file_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: gpt2\nhealth_check_level: standard\n")
    monkeypatch.setenv("VLLMENDPOINT_CONFIG_FILE", str(file))
    assert get_health_check_payload(None, "completion") == STANDARD
    assert get_health_check_payload(Plain(), "completion") == MINIMAL
    file.write_text("{")
    with pytest.raises(HealthCheckRejectedError, match=r"ConfigFile: config.yaml is not valid YAML"):
        get_health_check_payload(None, "completion")
    assert get_health_check_payload(Plain(), "completion") == MINIMAL


def test_the_payload_is_read_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "health_check.json"
    monkeypatch.setenv("DYN_HEALTH_CHECK_PAYLOAD", f"@{file}")
    with pytest.raises(
        HealthCheckRejectedError, match=r"names a file that does not exist\. Mount the file\."
    ):
        get_health_check_payload(Config, "generate")
    file.write_text(json.dumps(OTHER))
    assert get_health_check_payload(Config, "generate") == OTHER


@pytest.mark.parametrize("value", ["true", "TRUE", "1"])
def test_a_disabled_payload_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DYN_HEALTH_CHECK_PAYLOAD_DISABLED", value)
    assert get_health_check_payload(Config, "generate") is None
    assert payload_to_send(None, "e") is None
    assert payload_to_send(PAYLOAD, "e") is None  # a payload alone does not turn it on again


def test_turned_off_checks_still_return_a_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_HEALTH_CHECK_ENABLED", "false")
    assert get_health_check_payload(Config, "generate") == PAYLOAD


def test_the_spec_of_a_vllmendpoint_has_the_highest_priority(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings/settings.json").write_text('{"healthCheck": {"level": "Standard"}, "hash": "h"}')
    monkeypatch.setenv("DYN_HEALTH_CHECK_PAYLOAD", json.dumps(PAYLOAD))
    assert get_health_check_payload(Config, "completion") == STANDARD
    assert payload_to_send(PAYLOAD, "e") == STANDARD | MARKERS


def test_environment_variables_that_the_worker_removed_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REMOVED_VARIABLES, "DYN_HEALTH_CHECK_LEVEL", "standard")
    assert get_health_check_payload(Plain(), "completion") == STANDARD


@pytest.mark.parametrize(
    ("environ", "config", "model_type", "sentence"),
    [
        ({"PAYLOAD": '{"secret'}, Plain, "chat", "Environment: DYN_HEALTH_CHECK_PAYLOAD is not valid JSON"),
        ({"PAYLOAD": '["secret"]'}, Plain, "chat", "Environment: DYN_HEALTH_CHECK_PAYLOAD is a list. Use"),
        ({"PAYLOAD": "{}"}, Plain, "chat", "Environment: DYN_HEALTH_CHECK_PAYLOAD is an empty object. Add"),
        (
            {"PAYLOAD": '{"prompt": "secret"}'},
            Plain,
            "embedding",
            "Environment: DYN_HEALTH_CHECK_PAYLOAD.prompt is not accepted by an embedding model. Use input.",
        ),
        (
            {"LEVEL": "secret"},
            Plain,
            "chat",
            "Environment: DYN_HEALTH_CHECK_LEVEL is not a health-check level. Use minimal, standard or",
        ),
        ({"PAYLOAD_DISABLED": "secret"}, Plain, "chat", "Environment: DYN_HEALTH_CHECK_PAYLOAD_DISABLED is"),
        ({"ENABLED": "secret"}, Plain, "chat", "Environment: DYN_HEALTH_CHECK_ENABLED is not a boolean"),
        ({"INTERVAL": "secret"}, Plain, "chat", "Environment: DYN_HEALTH_CHECK_INTERVAL is not a number"),
        (
            {},
            {"health_check_payload": None},
            "chat",
            "ConfigFile: health_check_payload is null. Use a JSON object",
        ),
        (
            {},
            {"health_check_level": "huge"},
            "chat",
            "ConfigFile: health_check_level is not a health-check level. Use",
        ),
        (
            {},
            {"health_check_payload": {"promt": "1"}},
            "chat",
            "ConfigFile: health_check_payload contains none of prompt, messages and input. Rename the",
        ),
        ({}, "secret.yaml", "chat", "ConfigFile: config is of type str. Use None, or an object or mapping"),
        (
            {},
            Plain,
            "secret",
            "Runtime: model_type is not a model type. Use one of generate, chat, completion, embedding",
        ),
        ({}, Plain, 7, "Runtime: model_type is not a model type"),
    ],
)
def test_an_invalid_setting_is_rejected_with_source_field_and_fix(
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    config: object,
    model_type: Any,
    sentence: str,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(f"DYN_HEALTH_CHECK_{name}", value)
    with pytest.raises(HealthCheckRejectedError) as refused:
        get_health_check_payload(config, model_type)
    assert isinstance(refused.value, ValueError)
    assert isinstance(refused.value, WorkerError)
    assert str(refused.value).startswith(sentence)
    assert "secret" not in str(refused.value)


def test_the_log_shows_level_and_source(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("vllmendpoint_worker"), "propagate", True)
    caplog.set_level(logging.INFO)
    get_health_check_payload({"health_check_level": "standard"}, "completion")
    assert f"Health check payload: source=ModelDefault level=Standard payload={STANDARD}" in caplog.text
    set_custom_health_check_payload(OTHER)
    monkeypatch.setenv("DYN_HEALTH_CHECK_PAYLOAD", '{"prompt": "secret"}')
    caplog.clear()
    get_health_check_payload(None, "completion")
    assert "source=Environment level=None payload=not shown" in caplog.text
    assert (
        "ignored CustomDefault: `set_custom_health_check_payload()` has a lower priority than" in caplog.text
    )
    assert "secret'" not in caplog.text


# --- model_type="generate"


@pytest.mark.parametrize(
    ("files", "detected"),
    [
        ({"tokenizer_config.json": '{"chat_template": "{{ messages }}"}'}, ModelType.CHAT),
        ({"tokenizer_config.json": '{"chat_template": [{"name": "default"}]}'}, ModelType.CHAT),
        ({"tokenizer_config.json": "{}", "chat_template.jinja": "x"}, ModelType.CHAT),
        ({"chat_template.json": "{}"}, ModelType.CHAT),
        ({"tokenizer.json": "{}", "additional_chat_templates/tools.jinja": "x"}, ModelType.CHAT),
        ({"tokenizer_config.json": '{"chat_template": null}'}, ModelType.COMPLETION),
        ({"tokenizer_config.json": "{}"}, ModelType.COMPLETION),
        ({"tokenizer.json": "{}"}, ModelType.COMPLETION),
        ({"config.json": "{}"}, None),
        ({}, None),
    ],
)
def test_generate_means_chat_if_the_model_has_a_chat_template(
    tmp_path: Path, files: dict[str, str], detected: ModelType | None
) -> None:
    model = tmp_path / "model"
    for name, text in files.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(text)
    assert detect_model_type(str(model)) is detected
    assert detect_model_type(model) is detected
    payload = get_health_check_payload({"model": str(model)}, "generate")
    assert payload == payload_for(Level.MINIMAL, detected)


def test_generate_finds_the_model_in_the_hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert detect_model_type("org/model") is None
    revision = tmp_path / "models--org--model" / "snapshots" / "abc"
    revision.mkdir(parents=True)
    (revision / "config.json").write_text("{}")
    (revision / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    (tmp_path / "models--org--model/refs").mkdir()
    (tmp_path / "models--org--model/refs/main").write_text("abc")
    assert detect_model_type("org/model") is ModelType.CHAT


@pytest.mark.parametrize("model", ["", None, 7, "a/b/c/d", "\0", "x" * 5000, "../..//"])
def test_the_type_of_an_invalid_model_is_unknown(model: object) -> None:
    assert detect_model_type(model) is None
