"""compat: the guide's functions, level by level; real Dynamo is tests/worker/test_python_api.py's."""

import asyncio
import itertools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vllmendpoint_api import HandlerSettings, Level, ModelType, payload_for
from vllmendpoint_worker.board import Board
from vllmendpoint_worker.compat import (
    HealthCheckRefusedError,
    get_health_check_payload,
    set_custom_health_check_payload,
)
from vllmendpoint_worker.compat._environment import dynamo_environment, dynamo_variables
from vllmendpoint_worker.compat._model import told_type
from vllmendpoint_worker.compat._payloads import sent
from vllmendpoint_worker.compat.runtime import _callable
from vllmendpoint_worker.config_sources import TAKEN, ConfigSources
from vllmendpoint_worker.configuration import Configuration
from vllmendpoint_worker.custom_default import CUSTOM_DEFAULT
from vllmendpoint_worker.errors import ConfigurationRefusedError, WorkerError
from vllmendpoint_worker.handler_sources import read as read_handlers
from vllmendpoint_worker.handlers import HandlerRoom
from vllmendpoint_worker.merge import ABSENT

PAYLOAD = {"prompt": "What is 1+1?", "max_tokens": 2, "temperature": 0.0}
OTHER = {"prompt": "ping", "max_tokens": 1, "temperature": 0.0}
MINIMAL = {"prompt": "1", "max_tokens": 1, "temperature": 0.0, "stream": False, "_health_check": True}
STANDARD = MINIMAL | {"prompt": "The sky is", "max_tokens": 5, "temperature": 0.7}
CHAT = {
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 1,
    "temperature": 0.0,
    "stream": False,
    "_health_check": True,
}
MARKERS = {"_health_check": True, "_HEALTH_CHECK": True}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("DYN_", "VLLMENDPOINT_", "SM_VLLM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VLLMENDPOINT_SETTINGS_DIR", str(tmp_path / "settings"))
    yield
    set_custom_health_check_payload(None)


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
def test_defaults_are_the_guides(
    monkeypatch: pytest.MonkeyPatch, level: Level, word: str | None, model_type: ModelType | None
) -> None:
    monkeypatch.setenv("DYN_HEALTH_CHECK_LEVEL", level.value.lower())
    assert get_health_check_payload(config=Plain(), model_type=word) == payload_for(level, model_type)


def test_minimal_without_any_setting() -> None:
    assert get_health_check_payload(config=Plain(), model_type="generate") == MINIMAL
    assert get_health_check_payload(config=None, model_type="chat") == CHAT


def test_a_new_dict_every_time() -> None:
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
    # from the highest that this function knows to the lowest: what sets it, and what then is in force
    "Environment": {"env": PAYLOAD | {"seed": 2}},
    "ConfigFile": {"config": PAYLOAD | {"seed": 3}},
    "CustomDefault": {"custom": PAYLOAD | {"seed": 4}},
    "ModelDefault": {},
}


@pytest.mark.parametrize(("stronger", "weaker"), [*itertools.combinations(LEVELS, 2)])
def test_every_pair_of_levels(monkeypatch: pytest.MonkeyPatch, stronger: str, weaker: str) -> None:
    said = LEVELS[weaker] | LEVELS[stronger]
    config = {"model": "gpt2", "health_check_level": "standard"}
    if "env" in said:
        monkeypatch.setenv("DYN_HEALTH_CHECK_PAYLOAD", json.dumps(said["env"]))
    if "config" in said:
        config["health_check_payload"] = said["config"]
    set_custom_health_check_payload(said.get("custom"))
    expected = next(iter(LEVELS[stronger].values()), STANDARD)
    assert get_health_check_payload(config, "completion") == expected


@pytest.mark.parametrize(
    "config",
    [Config, Config(), {"health_check_payload": PAYLOAD}, {"health-check-payload": PAYLOAD}],
    ids=["class", "object", "mapping", "dashes"],
)
def test_forms_of_config(config: object) -> None:
    assert get_health_check_payload(config=config, model_type="generate") == PAYLOAD


def test_level_of_the_config_and_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    class Levelled:
        health_check_level = "standard"
        health_check_payload = None  # as Dynamo's own Config has it where nothing is set

    assert get_health_check_payload(Levelled, "completion") == STANDARD
    monkeypatch.setenv("DYN_HEALTH_CHECK_LEVEL", "minimal")
    assert get_health_check_payload(Levelled, "completion") == MINIMAL


def test_config_file_where_no_config_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: gpt2\nhealth_check_level: standard\n")
    monkeypatch.setenv("VLLMENDPOINT_CONFIG_FILE", str(file))
    assert get_health_check_payload(None, "completion") == STANDARD
    assert get_health_check_payload(Plain(), "completion") == MINIMAL
    file.write_text("{")
    with pytest.raises(HealthCheckRefusedError, match=r"ConfigFile: config.yaml is not YAML"):
        get_health_check_payload(None, "completion")
    assert get_health_check_payload(Plain(), "completion") == MINIMAL


def test_payload_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "health_check.json"
    monkeypatch.setenv("DYN_HEALTH_CHECK_PAYLOAD", f"@{file}")
    with pytest.raises(HealthCheckRefusedError, match="names a file that does not exist: mount it"):
        get_health_check_payload(Config, "generate")
    file.write_text(json.dumps(OTHER))
    assert get_health_check_payload(Config, "generate") == OTHER


@pytest.mark.parametrize("value", ["true", "TRUE", "1"])
def test_disabled_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DYN_HEALTH_CHECK_PAYLOAD_DISABLED", value)
    assert get_health_check_payload(Config, "generate") is None
    assert sent(None, "e") is None
    assert sent(PAYLOAD, "e") is None  # a payload alone does not turn it on again


def test_not_enabled_is_dynamos_to_obey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_HEALTH_CHECK_ENABLED", "false")
    assert get_health_check_payload(Config, "generate") == PAYLOAD


def test_what_a_vllmendpoint_says_outranks_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings/settings.json").write_text('{"healthCheck": {"level": "Standard"}, "hash": "h"}')
    monkeypatch.setenv("DYN_HEALTH_CHECK_PAYLOAD", json.dumps(PAYLOAD))
    assert get_health_check_payload(Config, "completion") == STANDARD
    assert sent(PAYLOAD, "e") == STANDARD | MARKERS


def test_in_the_worker_the_environment_that_it_took_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TAKEN, "DYN_HEALTH_CHECK_LEVEL", "standard")
    assert get_health_check_payload(Plain(), "completion") == STANDARD


@pytest.mark.parametrize(
    ("environ", "config", "model_type", "sentence"),
    [
        ({"PAYLOAD": '{"secret'}, Plain, "chat", "Environment: DYN_HEALTH_CHECK_PAYLOAD is not JSON"),
        ({"PAYLOAD": '["secret"]'}, Plain, "chat", "Environment: DYN_HEALTH_CHECK_PAYLOAD is a list: give"),
        ({"PAYLOAD": "{}"}, Plain, "chat", "Environment: DYN_HEALTH_CHECK_PAYLOAD is an empty object: give"),
        (
            {"PAYLOAD": '{"prompt": "secret"}'},
            Plain,
            "embedding",
            "Environment: DYN_HEALTH_CHECK_PAYLOAD.prompt does not fit an embedding model: ask with input",
        ),
        (
            {"LEVEL": "secret"},
            Plain,
            "chat",
            "Environment: DYN_HEALTH_CHECK_LEVEL is not a health-check level: use minimal, standard or",
        ),
        ({"PAYLOAD_DISABLED": "secret"}, Plain, "chat", "Environment: DYN_HEALTH_CHECK_PAYLOAD_DISABLED is"),
        ({"ENABLED": "secret"}, Plain, "chat", "Environment: DYN_HEALTH_CHECK_ENABLED is neither true nor"),
        ({"INTERVAL": "secret"}, Plain, "chat", "Environment: DYN_HEALTH_CHECK_INTERVAL is not a number"),
        (
            {},
            {"health_check_payload": None},
            "chat",
            "ConfigFile: health_check_payload is null: give a JSON object",
        ),
        (
            {},
            {"health_check_level": "huge"},
            "chat",
            "ConfigFile: health_check_level is not a health-check level: use",
        ),
        (
            {},
            {"health_check_payload": {"promt": "1"}},
            "chat",
            "ConfigFile: health_check_payload has none of prompt, messages and input: did you mean prompt",
        ),
        ({}, "secret.yaml", "chat", "ConfigFile: config is of type str: give an object or a mapping"),
        (
            {},
            Plain,
            "secret",
            "Runtime: model_type is no type of model: use one of generate, chat, completion, embedding",
        ),
        ({}, Plain, 7, "Runtime: model_type is no type of model"),
    ],
)
def test_refused_with_source_field_and_fix(
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    config: object,
    model_type: Any,
    sentence: str,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(f"DYN_HEALTH_CHECK_{name}", value)
    with pytest.raises(HealthCheckRefusedError) as refused:
        get_health_check_payload(config, model_type)
    assert isinstance(refused.value, ValueError)
    assert isinstance(refused.value, WorkerError)
    assert str(refused.value).startswith(sentence)
    assert "secret" not in str(refused.value)


def test_the_log_says_level_and_source(
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
    assert "ignored CustomDefault: `set_custom_health_check_payload()` is outranked by" in caplog.text
    assert "secret'" not in caplog.text


# --- model_type="generate"


@pytest.mark.parametrize(
    ("files", "told"),
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
def test_generate_is_told_by_the_chat_template(
    tmp_path: Path, files: dict[str, str], told: ModelType | None
) -> None:
    model = tmp_path / "model"
    for name, text in files.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(text)
    assert told_type(str(model)) is told
    assert told_type(model) is told
    payload = get_health_check_payload({"model": str(model)}, "generate")
    assert payload == payload_for(Level.MINIMAL, told)


def test_generate_looks_into_the_hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert told_type("org/model") is None
    revision = tmp_path / "models--org--model" / "snapshots" / "abc"
    revision.mkdir(parents=True)
    (revision / "config.json").write_text("{}")
    (revision / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    (tmp_path / "models--org--model/refs").mkdir()
    (tmp_path / "models--org--model/refs/main").write_text("abc")
    assert told_type("org/model") is ModelType.CHAT


@pytest.mark.parametrize("model", ["", None, 7, "a/b/c/d", "\0", "x" * 5000, "../..//"])
def test_a_model_that_is_none_cannot_be_told(model: object) -> None:
    assert told_type(model) is None


# --- set_custom_health_check_payload


async def test_the_worker_takes_the_custom_default_in(tmp_path: Path) -> None:
    sources = ConfigSources({"VLLMENDPOINT_SETTINGS_DIR": str(tmp_path)})
    assert sources.load().sources.custom_default is ABSENT
    configuration = Configuration(sources, Board(worker_version="test"))
    await configuration.load()
    changed = asyncio.create_task(configuration.changed())
    mine = dict(OTHER)
    set_custom_health_check_payload(mine)
    mine["prompt"] = "changed after the call"
    assert sources.load().sources.custom_default == OTHER
    configuration.watch(frozenset())  # as after the import of a handler script: no change of the files
    await asyncio.wait_for(changed, 20)
    set_custom_health_check_payload(None)
    assert sources.load().sources.custom_default is ABSENT


@pytest.mark.parametrize("payload", [{}, [], "text", {"max_tokens": 1}, {"prompt": object()}, {"prompt": ""}])
def test_a_bad_custom_default_is_refused_at_once_and_changes_nothing(payload: Any) -> None:
    set_custom_health_check_payload(OTHER)
    with pytest.raises(HealthCheckRefusedError, match=r"^CustomDefault: set_custom_health_check_payload\(\)"):
        set_custom_health_check_payload(payload)
    assert CUSTOM_DEFAULT.value == OTHER


def test_the_same_again_is_no_change() -> None:
    """Or a script that is read again at every change would be one itself."""
    set_custom_health_check_payload(OTHER)
    version = CUSTOM_DEFAULT.version
    set_custom_health_check_payload(dict(OTHER))
    assert CUSTOM_DEFAULT.version == version


def test_a_script_that_is_imported_takes_the_place_of_the_one_before() -> None:
    with CUSTOM_DEFAULT.importing():
        set_custom_health_check_payload(OTHER)
        assert get_health_check_payload(None, "completion") == OTHER
        with ThreadPoolExecutor() as others:
            assert others.submit(lambda: CUSTOM_DEFAULT.value).result() is ABSENT
    assert CUSTOM_DEFAULT.value == OTHER
    with pytest.raises(KeyError), CUSTOM_DEFAULT.importing():  # noqa: PT012
        set_custom_health_check_payload(PAYLOAD)
        raise KeyError
    assert CUSTOM_DEFAULT.value == OTHER
    with CUSTOM_DEFAULT.importing():
        pass  # a script that sets none
    assert CUSTOM_DEFAULT.value is ABSENT


SCRIPT = """
import vllmendpoint_worker.compat
from dynamo.vllm.health_check import set_custom_health_check_payload

set_custom_health_check_payload({"prompt": "ping", "max_tokens": 1, "temperature": 0.0})

async def ping():
    return "pong"
"""


async def test_a_handler_script_of_the_worker_sets_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    script = tmp_path / "model.py"

    async def load(text: str) -> object:
        script.write_text(text)
        environ = {"SAGEMAKER_MODEL_PATH": str(tmp_path)}
        wanted, problems = read_handlers(HandlerSettings(), tmp_path / "settings", environ)
        assert problems == ()
        await HandlerRoom(lambda: None).load(wanted)
        return CUSTOM_DEFAULT.value

    assert await load(SCRIPT) == OTHER
    with pytest.raises(ConfigurationRefusedError):
        await load(SCRIPT.replace("ping", "other") + "raise RuntimeError")
    assert CUSTOM_DEFAULT.value == OTHER
    assert await load(SCRIPT.replace("set_custom_health_check_payload(", "print(")) is ABSENT


# --- serve_endpoint


def test_a_payload_passed_outranks_all_and_carries_both_markers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_HEALTH_CHECK_PAYLOAD", "not even JSON")
    set_custom_health_check_payload(OTHER)
    mine = dict(PAYLOAD)
    assert sent(mine, "e") == PAYLOAD | MARKERS
    assert mine == PAYLOAD


def test_none_passed_the_other_levels_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sent(None, "e") == MINIMAL | MARKERS
    monkeypatch.setenv("DYN_HEALTH_CHECK_LEVEL", "standard")
    assert sent(None, "e") == STANDARD | MARKERS
    monkeypatch.setenv("VLLMENDPOINT_MODEL_TYPE", "Embedding")
    assert sent(None, "e") == {"input": "test"} | MARKERS
    monkeypatch.delenv("VLLMENDPOINT_MODEL_TYPE")
    set_custom_health_check_payload(OTHER)
    assert sent(None, "e") == OTHER | MARKERS
    monkeypatch.setenv("DYN_HEALTH_CHECK_PAYLOAD", json.dumps(PAYLOAD))
    assert sent(None, "e") == PAYLOAD | MARKERS


def test_dynamos_own_form_passes() -> None:
    from dynamo.vllm.health_check import VllmEmbeddingHealthCheckPayload, VllmHealthCheckPayload

    theirs = VllmHealthCheckPayload().to_dict()
    assert "token_ids" in theirs
    assert sent(theirs, "e") == theirs | MARKERS
    theirs = VllmEmbeddingHealthCheckPayload("m").to_dict()
    assert sent(theirs, "e") == theirs | MARKERS


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ("text", "Runtime: health_check_payload is text: give a JSON object"),
        ({}, "Runtime: health_check_payload is an empty object"),
        ({"prompt": "1", "input": "1"}, "Runtime: health_check_payload has both prompt and input"),
        (
            {"prompt": "1", "max_tokens": "1"},
            "Runtime: health_check_payload.max_tokens is not a whole number",
        ),
        ({"token_ids": []}, "Runtime: health_check_payload.token_ids is no list of token ids: give"),
        ({"token_ids": [1], "x": {1, 2}}, "Runtime: health_check_payload holds something that JSON cannot"),
    ],
)
def test_a_bad_payload_is_refused_before_anything_is_served(payload: object, sentence: str) -> None:
    with pytest.raises(HealthCheckRefusedError) as refused:
        sent(payload, "e")
    assert str(refused.value).startswith(sentence)


async def _one(request: Any) -> Any:
    yield request


async def _named(request: Any, context: Any) -> Any:
    yield request, context


async def _other(request: Any, ctx: Any) -> Any:
    yield request, ctx


async def _positional(request: Any, context: Any, /) -> Any:
    yield request, context


async def _optional(request: Any, temperature: float = 1.0) -> Any:
    yield request, temperature


class Methods:
    async def generate(self, request: Any, ctx: Any) -> Any:
        yield request, ctx

    async def __call__(self, request: Any, context: Any) -> Any:
        yield request, context


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (_one, "r"),
        (_named, ("r", "c")),
        (_other, ("r", "c")),
        (_positional, ("r", "c")),
        (_optional, ("r", 1.0)),
        (Methods().generate, ("r", "c")),
        (Methods(), ("r", "c")),
    ],
)
async def test_handlers_of_one_and_of_two_arguments(handler: Any, expected: object) -> None:
    """As Dynamo calls: the context by name, and only where the handler has a parameter of that name."""
    import inspect

    served = _callable(handler)
    named = "context" in inspect.signature(served).parameters
    answer = served("r", context="c") if named else served("r")
    assert [item async for item in answer] == [expected]


def test_a_handler_that_dynamo_can_call_is_not_wrapped() -> None:
    assert _callable(_one) is _one
    assert _callable(_named) is _named
    assert _callable(print) is print


# --- the environment


@pytest.mark.parametrize(
    ("environ", "variables"),
    [
        ({}, {}),
        ({"DYN_CANARY_WAIT_TIME": "7"}, {}),
        (
            {"DYN_HEALTH_CHECK_ENABLED": "1", "DYN_SYSTEM_PORT": "0"},
            {"DYN_HEALTH_CHECK_ENABLED": "true"},
        ),
        ({"DYN_HEALTH_CHECK_ENABLED": "Off"}, {"DYN_HEALTH_CHECK_ENABLED": "false"}),
        ({"DYN_HEALTH_CHECK_ENABLED": " "}, {"DYN_HEALTH_CHECK_ENABLED": ""}),
        (
            {"DYN_HEALTH_CHECK_ENABLED": "true"},
            {"DYN_HEALTH_CHECK_ENABLED": "true", "DYN_SYSTEM_PORT": "8082", "DYN_SYSTEM_HOST": "127.0.0.1"},
        ),
        (
            {"DYN_HEALTH_CHECK_ENABLED": "yes", "DYN_SYSTEM_HOST": "::"},
            {"DYN_HEALTH_CHECK_ENABLED": "true", "DYN_SYSTEM_PORT": "8082"},
        ),
        (
            {"DYN_HEALTH_CHECK_INTERVAL": "30"},
            {"DYN_HEALTH_CHECK_INTERVAL": "", "DYN_CANARY_WAIT_TIME": "30"},
        ),
        (
            {"DYN_HEALTH_CHECK_INTERVAL": "1.5", "DYN_CANARY_WAIT_TIME": "7"},
            {"DYN_HEALTH_CHECK_INTERVAL": "", "DYN_CANARY_WAIT_TIME": "2"},
        ),
        ({"DYN_HEALTH_CHECK_INTERVAL": ""}, {"DYN_HEALTH_CHECK_INTERVAL": ""}),
        ({"DYN_HEALTH_CHECK_PAYLOAD_DISABLED": "1"}, {"DYN_HEALTH_CHECK_ENABLED": "true"}),
        ({"DYN_HEALTH_CHECK_PAYLOAD_DISABLED": "0"}, {}),
        (
            {"DYN_HEALTH_CHECK_PAYLOAD_DISABLED": "true", "DYN_HEALTH_CHECK_ENABLED": "false"},
            {"DYN_HEALTH_CHECK_ENABLED": "true"},
        ),
    ],
)
def test_what_dynamo_reads(environ: dict[str, str], variables: dict[str, str]) -> None:
    assert dynamo_variables(environ) == variables


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INTERVAL", "0.5"),
        ("INTERVAL", "0"),
        ("INTERVAL", "nan"),
        ("INTERVAL", "thirty"),
        ("ENABLED", "maybe"),
        ("PAYLOAD_DISABLED", "maybe"),
    ],
)
def test_what_dynamo_must_not_read(name: str, value: str) -> None:
    with pytest.raises(HealthCheckRefusedError, match=f"^Environment: DYN_HEALTH_CHECK_{name} is n"):
        dynamo_variables({f"DYN_HEALTH_CHECK_{name}": value})


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_HEALTH_CHECK_ENABLED", "1")
    monkeypatch.setenv("DYN_HEALTH_CHECK_INTERVAL", "30")
    before = dict(os.environ)
    with pytest.raises(KeyError), dynamo_environment():  # noqa: PT012
        assert os.environ["DYN_HEALTH_CHECK_ENABLED"] == "true"
        assert os.environ["DYN_CANARY_WAIT_TIME"] == "30"
        raise KeyError
    assert dict(os.environ) == before


# --- the import


IMPORT_BEFORE = "import dynamo.vllm.health_check"
SNAPSHOT = """
import importlib, sys
BEFORE
MODULES = ["dynamo", "dynamo._core", "dynamo.health_check", "dynamo.runtime", "dynamo.vllm", "dynamo.common"]
upstream = [importlib.import_module(name) for name in MODULES]
if "dynamo.vllm.health_check" in sys.modules:
    upstream.append(sys.modules["dynamo.vllm.health_check"])
classes = [value for module in upstream for value in vars(module).values() if isinstance(value, type)]
objects = [*upstream, *classes]

def attributes():
    return [{name: id(value) for name, value in vars(thing).items()} for thing in objects]

before = attributes()
import vllmendpoint_worker.compat
from dynamo import DistributedRuntime
from dynamo.vllm.health_check import get_health_check_payload, set_custom_health_check_payload
assert DistributedRuntime.from_settings and get_health_check_payload(None, "chat")
import dynamo.vllm.health_check as module
assert BEFORE_IT or module.get_health_check_payload is get_health_check_payload
from dynamo.vllm.health_check import HEALTH_CHECK_KEY, VllmHealthCheckPayload, _make_default_payload
assert "VllmHealthCheckPayload" in dir(sys.modules["dynamo.vllm.health_check"])
try:
    from dynamo.vllm.health_check import no_such_name
except ImportError:
    pass
else:
    raise AssertionError
assert attributes() == before, [
    (thing, set(now.items()) ^ set(then.items()))
    for thing, now, then in zip(objects, attributes(), before) if now != then
]
assert len(objects) > 20, len(objects)
import pickle
assert type(pickle.loads(pickle.dumps(VllmHealthCheckPayload()))) is VllmHealthCheckPayload
assert "vllm" not in sys.modules and "torch" not in sys.modules
"""


@pytest.mark.parametrize("before", ["", IMPORT_BEFORE])
def test_the_import_changes_no_upstream_object_and_needs_no_engine(before: str) -> None:
    program = SNAPSHOT.replace("BEFORE_IT", repr(bool(before))).replace("BEFORE\n", f"{before}\n", 1)
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
