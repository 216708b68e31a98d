"""The engine's arguments and environment, parsed and split by Dynamo's and vLLM's own parsers."""

import warnings
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn while they are imported

    from vllmendpoint_worker import upstream
    from vllmendpoint_worker.errors import EngineStartError
    from vllmendpoint_worker.model_data.worker_set import worker_set
    from vllmendpoint_worker.options.arguments import clear_environment
    from vllmendpoint_worker.options.disaggregation import Role, connector_arguments

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


def for_phase(model: Path, role: Role, *more: str) -> list[str]:
    mode = ["--model", str(model), "--disaggregation-mode", role, *more]
    return [*mode, *connector_arguments(role, [], {})]


@pytest.mark.parametrize(
    ("role", "kv_role", "component"),
    [(Role.PREFILL, "kv_producer", "prefill"), (Role.DECODE, "kv_consumer", "backend")],
)
async def test_dynamo_and_vllm_accept_the_arguments_of_a_phase(
    toy_model: Path, monkeypatch: pytest.MonkeyPatch, role: Role, kv_role: str, component: str
) -> None:
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_HOST", "127.0.0.1")
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", "5700")
    parsed = await upstream.parse_arguments(for_phase(toy_model, role, "--data-parallel-size", "2"), None)
    assert parsed.dynamo.component == component
    config = parsed.dynamo.engine_args.kv_transfer_config
    assert (config.kv_connector, config.kv_role, config.kv_buffer_device) == ("NixlConnector", kv_role, "cpu")
    channel = upstream.side_channel(parsed)
    assert channel is not None
    assert (channel.host, list(channel.ports)) == ("127.0.0.1", [5700, 5701])


async def test_a_worker_without_nixl_has_no_side_channel(toy_model: Path) -> None:
    aggregated = await upstream.parse_arguments(["--model", str(toy_model)], None)
    assert upstream.side_channel(aggregated) is None
    other = ["--kv-transfer-config", '{"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both"}']
    decoding = ["--model", str(toy_model), "--disaggregation-mode", "decode", *other]
    assert upstream.side_channel(await upstream.parse_arguments(decoding, None)) is None


async def test_encode_workers_are_rejected(toy_model: Path) -> None:
    argv = ["--model", str(toy_model), "--disaggregation-mode", "encode", "--enable-multimodal"]
    with pytest.raises(EngineStartError, match="--disaggregation-mode encode is not supported"):
        await upstream.parse_arguments(argv, None)


async def test_the_workers_of_both_phases_join_one_set(
    toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their arguments differ. Workers that run both phases keep the digest of their arguments."""
    monkeypatch.setenv("DYN_NAMESPACE_WORKER_SUFFIX", "r1")
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_HOST", "127.0.0.1")
    namespaces = []
    for argv in (
        for_phase(toy_model, Role.PREFILL, "--max-num-seqs", "4"),
        for_phase(toy_model, Role.DECODE),
        ["--model", str(toy_model)],
        ["--model", str(toy_model), "--max-num-seqs", "4"],
    ):
        parsed = await upstream.parse_arguments(argv, None)
        await upstream._arguments._join_worker_set(parsed, str(toy_model))
        namespaces.append(parsed.dynamo.namespace)
    assert namespaces[0] == namespaces[1]
    assert len({*namespaces}) == 3
    assert namespaces[2].endswith(worker_set(toy_model, ["--model", str(toy_model)]))
