"""LoRA adapters on the real engine: loaded through SageMaker's ``/adapters``, named by ``/invocations``; a
script's own handlers of adapters and sessions. The tests share one process and run in the order of the file.
"""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from vllmendpoint_api import ConfigurationState, script_digest

from .conftest import WorkerProcess

pytestmark = pytest.mark.timeout(300)
HEADER = "X-Amzn-SageMaker-Adapter-Identifier"
ASKED = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True}
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "hello", **ASKED}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], **ASKED}),
]
SCRIPT = """
import model_hosting_container_standards.sagemaker as standards
from fastapi import Response

@standards.register_load_adapter_handler(request_shape={"name": "body.name"})
async def load(adapter, request):
    return Response(status_code=409, content="NAME takes no " + adapter.name)

@standards.register_create_session_handler(engine_response_session_id_path="body.id")
async def create(request):
    return {"id": "NAME"}
"""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of the toy model, in peft's format, whose weights change every answer."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    weights = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.v_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(8, 256).bfloat16()
        weights[f"{name}.lora_B.weight"] = torch.randn(128, 8).bfloat16()
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "target_modules": ["v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def worker(make_worker: Callable[..., WorkerProcess]) -> WorkerProcess:
    worker = make_worker(
        {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true"}, ["--enable-lora", "--max-lora-rank", "8"]
    )
    worker.settings({"periodSeconds": 30, "timeoutSeconds": 10, "restartAfterSeconds": 0})
    worker.start()
    worker.until_ready()
    return worker


def text(answer: bytes) -> str:
    choice = json.loads(answer)["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def invoke(worker: WorkerProcess, body: dict[str, Any], **headers: str) -> tuple[int, bytes, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{worker.ports['http']}/invocations",
        json.dumps(body).encode(),
        {"content-type": "application/json"} | headers,
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), answer.headers
    except HTTPError as error:
        return error.code, error.read(), error.headers


@pytest.mark.parametrize(("path", "body"), FORMS)
def test_an_unknown_model_is_vllms_own_404(worker: WorkerProcess, path: str, body: dict[str, Any]) -> None:
    expected = worker.request("http", path, body | {"model": "typo"})
    assert (expected[0], "The model `typo` does not exist." in expected[1].decode()) == (404, True)
    assert invoke(worker, body | {"model": "typo"})[:2] == expected
    assert invoke(worker, body, **{HEADER: "typo"})[:2] == expected
    for served in ({}, {"model": "toy"}, {"model": ""}, {"model": None}):
        assert invoke(worker, body | served)[0] == 200


def test_an_adapter_is_loaded_by_sagemakers_route_and_answers_by_its_name(
    worker: WorkerProcess, adapter: Path
) -> None:
    wrong = worker.request("http", "/adapters", {"name": "sql"})
    assert (wrong[0], "src" in wrong[1].decode()) == (400, True)
    missing = worker.request("http", "/adapters", {"name": "sql", "src": str(adapter / "none")})
    assert missing[0] == 404, missing
    assert worker.request("http", "/adapters", {"name": "sql", "src": str(adapter)}) == (
        200,
        b"Adapter sql registered",
    )
    for path, body in FORMS:
        plain, named = (
            text(worker.request("http", path, body | {"model": name})[1]) for name in ("toy", "sql")
        )
        assert plain != named
        assert text(invoke(worker, body)[1]) == plain
        assert text(invoke(worker, body | {"model": "sql"})[1]) == named
        assert text(invoke(worker, body, **{HEADER: "sql"})[1]) == named
        assert text(invoke(worker, body | {"model": "toy"}, **{HEADER: "sql"})[1]) == named


def test_an_unloaded_adapter_is_not_served(worker: WorkerProcess) -> None:
    assert worker.request("http", "/adapters/sql", method="DELETE") == (200, b"Adapter sql unregistered")
    assert invoke(worker, FORMS[0][1] | {"model": "sql"})[0] == 404
    assert worker.request("http", "/adapters/sql", method="DELETE")[0] == 404


def take(worker: WorkerProcess, script: str) -> None:
    (worker.settings_file.parent / "model.py").write_text(script)
    digest = worker.settings(
        {"periodSeconds": 30, "timeoutSeconds": 10, "restartAfterSeconds": 0},
        handlers={"scriptDigest": script_digest(script.encode())},
    )
    worker.until(lambda report: report.configuration.settings_hash == digest, 30)


def test_registered_handlers_change_with_the_script_and_remain_if_it_is_rejected(
    worker: WorkerProcess, adapter: Path
) -> None:
    for name in ("one", "two"):
        take(worker, SCRIPT.replace("NAME", name))
        status, body = worker.request("http", "/adapters", {"name": "sql", "src": str(adapter)})
        assert (status, body.decode()) == (409, f"{name} takes no sql")
        status, _, headers = invoke(worker, {"requestType": "NEW_SESSION"})
        assert (status, headers["X-Amzn-SageMaker-New-Session-Id"]) == (200, name)
        assert text(invoke(worker, FORMS[0][1])[1]), "vLLM's own invocations go on"
    take(worker, SCRIPT.replace("NAME", "three") + "\nraise ValueError\n")
    worker.until(lambda report: report.configuration.state == ConfigurationState.REJECTED, 30)
    assert invoke(worker, {"requestType": "NEW_SESSION"})[2]["X-Amzn-SageMaker-New-Session-Id"] == "two"
    take(worker, "")
    worker.until(lambda report: report.configuration.state == ConfigurationState.RESOLVED, 30)
    status, answer, _ = invoke(worker, {"requestType": "NEW_SESSION"})
    assert (status, "stateful sessions not enabled" in answer.decode()) == (400, True)
    assert worker.request("http", "/adapters", {"name": "sql", "src": str(adapter)})[0] == 200, (
        "vLLM's own again"
    )
