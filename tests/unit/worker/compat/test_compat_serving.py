"""compat: the custom default, the payload that Dynamo receives, and the effects of the import."""

import asyncio
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from tests.unit.worker.compat.compat_payloads import (
    MARKERS,
    MINIMAL,
    OTHER,
    PAYLOAD,
    STANDARD,
)
from vllmendpoint_api import HandlerSettings
from vllmendpoint_worker.compat import (
    HealthCheckRejectedError,
    get_health_check_payload,
    set_custom_health_check_payload,
)
from vllmendpoint_worker.compat._environment import dynamo_environment, dynamo_variables
from vllmendpoint_worker.compat._payloads import payload_to_send
from vllmendpoint_worker.compat.runtime import _with_named_context
from vllmendpoint_worker.config.configuration import Configuration
from vllmendpoint_worker.config.custom_default import CUSTOM_DEFAULT
from vllmendpoint_worker.config.handler_config import read_handler_config as read_handlers
from vllmendpoint_worker.config.payload_sources import ABSENT
from vllmendpoint_worker.config.sources import ConfigSources
from vllmendpoint_worker.errors import ConfigurationRejectedError
from vllmendpoint_worker.handlers import HandlerManager
from vllmendpoint_worker.serving.state import WorkerState

# --- set_custom_health_check_payload


async def test_the_worker_uses_the_custom_default(tmp_path: Path) -> None:
    sources = ConfigSources({"VLLMENDPOINT_SETTINGS_DIR": str(tmp_path)})
    assert sources.load().sources.custom_default is ABSENT
    configuration = Configuration(sources, WorkerState(worker_version="test"))
    await configuration.load()
    changed = asyncio.create_task(configuration.wait_for_change())
    mine = dict(OTHER)
    set_custom_health_check_payload(mine)
    mine["prompt"] = "changed after the call"
    assert sources.load().sources.custom_default == OTHER
    configuration.watch(frozenset())  # as after the import of a handler script: no change of the files
    await asyncio.wait_for(changed, 20)
    set_custom_health_check_payload(None)
    assert sources.load().sources.custom_default is ABSENT


@pytest.mark.parametrize("payload", [{}, [], "text", {"max_tokens": 1}, {"prompt": object()}, {"prompt": ""}])
def test_an_invalid_custom_default_is_rejected_and_changes_nothing(payload: Any) -> None:
    set_custom_health_check_payload(OTHER)
    with pytest.raises(
        HealthCheckRejectedError, match=r"^CustomDefault: set_custom_health_check_payload\(\)"
    ):
        set_custom_health_check_payload(payload)
    assert CUSTOM_DEFAULT.value == OTHER


def test_an_equal_custom_default_is_not_a_change() -> None:
    """A script is read again at each change; its unchanged default must not cause another change."""
    set_custom_health_check_payload(OTHER)
    version = CUSTOM_DEFAULT.version
    set_custom_health_check_payload(dict(OTHER))
    assert CUSTOM_DEFAULT.version == version


def test_an_imported_script_replaces_the_former_default() -> None:
    with CUSTOM_DEFAULT.capture_import() as first:
        set_custom_health_check_payload(OTHER)
        assert get_health_check_payload(None, "completion") == OTHER
        with ThreadPoolExecutor() as others:
            assert others.submit(lambda: CUSTOM_DEFAULT.value).result() is ABSENT
    assert CUSTOM_DEFAULT.value is ABSENT, "it becomes active only with its handlers"
    CUSTOM_DEFAULT.set(first.payload)
    assert CUSTOM_DEFAULT.value == OTHER
    with pytest.raises(KeyError), CUSTOM_DEFAULT.capture_import():  # noqa: PT012
        set_custom_health_check_payload(PAYLOAD)
        raise KeyError
    assert CUSTOM_DEFAULT.value == OTHER
    with CUSTOM_DEFAULT.capture_import() as last:
        pass  # a script that sets none
    assert last.payload is None


SCRIPT = """
import vllmendpoint_worker.compat
from dynamo.vllm.health_check import set_custom_health_check_payload

set_custom_health_check_payload({"prompt": "ping", "max_tokens": 1, "temperature": 0.0})

async def ping():
    return "pong"
"""


@pytest.mark.usefixtures("clean")
async def test_a_handler_script_sets_the_custom_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    script = tmp_path / "model.py"
    manager = HandlerManager(lambda: None)
    manager.attach(FastAPI())

    async def load(text: str) -> object:
        script.write_text(text)
        environ = {"SAGEMAKER_MODEL_PATH": str(tmp_path)}
        wanted, problems = read_handlers(HandlerSettings(), tmp_path / "settings", environ)
        assert problems == ()
        loaded, before = await manager.load(wanted), CUSTOM_DEFAULT.value
        generation = manager.bind(loaded)
        assert CUSTOM_DEFAULT.value == before, "it becomes active with its handlers"
        manager.activate(generation)
        return CUSTOM_DEFAULT.value

    assert await load(SCRIPT) == OTHER
    with pytest.raises(ConfigurationRejectedError):
        await load(SCRIPT.replace("ping", "other") + "raise RuntimeError")
    assert CUSTOM_DEFAULT.value == OTHER
    assert await load(SCRIPT.replace("set_custom_health_check_payload(", "print(")) is ABSENT


# --- serve_endpoint


def test_a_passed_payload_has_priority_and_both_markers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_HEALTH_CHECK_PAYLOAD", "not even JSON")
    set_custom_health_check_payload(OTHER)
    mine = dict(PAYLOAD)
    assert payload_to_send(mine, "e") == PAYLOAD | MARKERS
    assert mine == PAYLOAD


def test_without_a_passed_payload_the_other_levels_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    assert payload_to_send(None, "e") == MINIMAL | MARKERS
    monkeypatch.setenv("DYN_HEALTH_CHECK_LEVEL", "standard")
    assert payload_to_send(None, "e") == STANDARD | MARKERS
    monkeypatch.setenv("VLLMENDPOINT_MODEL_TYPE", "Embedding")
    assert payload_to_send(None, "e") == {"input": "test"} | MARKERS
    monkeypatch.delenv("VLLMENDPOINT_MODEL_TYPE")
    set_custom_health_check_payload(OTHER)
    assert payload_to_send(None, "e") == OTHER | MARKERS
    monkeypatch.setenv("DYN_HEALTH_CHECK_PAYLOAD", json.dumps(PAYLOAD))
    assert payload_to_send(None, "e") == PAYLOAD | MARKERS


def test_dynamos_own_form_is_accepted() -> None:
    from dynamo.vllm.health_check import VllmEmbeddingHealthCheckPayload, VllmHealthCheckPayload

    theirs = VllmHealthCheckPayload().to_dict()
    assert "token_ids" in theirs
    assert payload_to_send(theirs, "e") == theirs | MARKERS
    theirs = VllmEmbeddingHealthCheckPayload("m").to_dict()
    assert payload_to_send(theirs, "e") == theirs | MARKERS


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ("text", "Runtime: health_check_payload is a string. Use a JSON object"),
        ({}, "Runtime: health_check_payload is an empty object"),
        ({"prompt": "1", "input": "1"}, "Runtime: health_check_payload contains both prompt and input"),
        (
            {"prompt": "1", "max_tokens": "1"},
            "Runtime: health_check_payload.max_tokens is not a positive integer",
        ),
        ({"token_ids": []}, "Runtime: health_check_payload.token_ids is not a list of token ids. Use"),
        ({"token_ids": [1], "x": {1, 2}}, "Runtime: health_check_payload contains a value that JSON cannot"),
    ],
)
def test_an_invalid_payload_is_rejected_before_the_endpoint_is_served(payload: object, sentence: str) -> None:
    with pytest.raises(HealthCheckRejectedError) as refused:
        payload_to_send(payload, "e")
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
async def test_handlers_with_one_and_two_arguments_are_called(handler: Any, expected: object) -> None:
    """As Dynamo calls: the context by name, and only where the handler has a parameter of that name."""
    import inspect

    served = _with_named_context(handler)
    named = "context" in inspect.signature(served).parameters
    answer = served("r", context="c") if named else served("r")
    assert [item async for item in answer] == [expected]


def test_a_handler_that_dynamo_calls_correctly_is_not_wrapped() -> None:
    assert _with_named_context(_one) is _one
    assert _with_named_context(_named) is _named
    assert _with_named_context(print) is print


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
def test_the_guides_variables_are_converted_to_dynamos(
    environ: dict[str, str], variables: dict[str, str]
) -> None:
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
def test_invalid_variables_are_rejected(name: str, value: str) -> None:
    with pytest.raises(HealthCheckRejectedError, match=f"^Environment: DYN_HEALTH_CHECK_{name} is n"):
        dynamo_variables({f"DYN_HEALTH_CHECK_{name}": value})


def test_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
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
