"""The engine's arguments and environment, parsed and split by Dynamo's and vLLM's own parsers."""

import warnings
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn while they are imported

    from vllmendpoint_worker import upstream
    from vllmendpoint_worker.errors import EngineStartError
    from vllmendpoint_worker.options.arguments import clear_environment

pytestmark = pytest.mark.timeout(120)


async def test_the_download_ends_before_vllm_inspects_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    async def fetch(config: Any) -> None:
        done.append(f"fetched {config}")

    def inspect_model(engine_args: Any) -> upstream.ModelInspection:
        done.append(f"inspected {engine_args}")
        return upstream.ModelInspection("generate")

    monkeypatch.setattr(upstream._arguments, "_fetch", fetch)
    monkeypatch.setattr(upstream._arguments, "_inspect_model", inspect_model)

    class Config(str):
        embedding_worker = False
        engine_args = "the model"

    parsed = upstream.Arguments(Config("it"), None, ())
    prepared = upstream.prepare_engine(
        parsed, lambda: done.append("downloaded"), lambda look: done.append(f"it {look.runner}s")
    )
    assert await prepared is parsed
    assert done == ["fetched it", "downloaded", "inspected the model", "it generates"]


def test_arguments_are_split_between_engine_and_http_server() -> None:
    engine, frontend = upstream.split_frontend(
        [
            "--model",
            "m",
            "--chat-template",
            "t.jinja",
            "-tp",
            "2",
            "--api_key",
            "k1",
            "k2",
            "--max-model-len=64",
            "--allowed-origins",
            '["*"]',
            "--kv-cache-memory-bytes",
            "64M",
            "--seed",
            "-1",
        ]
    )
    assert engine == [
        "--model",
        "m",
        "-tp",
        "2",
        "--max-model-len=64",
        "--kv-cache-memory-bytes",
        "64M",
        "--seed",
        "-1",
    ]
    assert frontend == ["--chat-template", "t.jinja", "--api_key", "k1", "k2", "--allowed-origins", '["*"]']


def test_the_config_file_becomes_arguments() -> None:
    config = {
        "max_model_len": 64,
        "enforce-eager": True,
        "enable_prefix_caching": False,
        "served-model-name": ["a", "b"],
        "compilation-config": {"mode": 0},
        "quantization": None,
    }
    assert upstream.config_arguments(config) == [
        "--max-model-len",
        "64",
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--served-model-name",
        "a",
        "b",
        "--compilation-config",
        '{"mode": 0}',
    ]


async def test_a_positional_argument_is_rejected() -> None:
    """In the operator's order of arguments; the other way round vLLM would take it for one more name."""
    with pytest.raises(EngineStartError, match="unrecognized arguments: 512"):
        await upstream.parse_arguments(
            ["--served-model-name", "m", "--model", "m", "512", "--seed", "1"], None
        )


def test_the_environment_is_converted_for_upstream() -> None:
    environ = {"DYN_HEALTH_CHECK_ENABLED": "1", "DYN_CANARY_WAIT_TIME": "0.5", "VLLM_PLUGINS": "a", "X": "y"}
    clear_environment(environ, ["DYN_HEALTH_CHECK_LEVEL"], ["ours"])
    assert environ["DYN_HEALTH_CHECK_ENABLED"] == "true"
    assert environ["DYN_CANARY_WAIT_TIME"].isdecimal()
    assert environ["DYN_HEALTH_CHECK_REQUEST_TIMEOUT"].isdecimal()
    assert environ["VLLM_PLUGINS"] == "a,ours"
    assert environ["X"] == "y"
