"""Option rules, numbers for Dynamo and shared options: the checks that run before the engine is imported."""

from pathlib import Path

import pytest

from vllmendpoint_api import FrontendMode
from vllmendpoint_worker.config.configuration import Configuration
from vllmendpoint_worker.config.sources import ConfigSources
from vllmendpoint_worker.errors import ConfigurationRejectedError
from vllmendpoint_worker.options.arguments import clear_environment
from vllmendpoint_worker.options.dynamo_numbers import NUMERIC_VARIABLES, invalid_numbers
from vllmendpoint_worker.options.option_setting import from_arguments
from vllmendpoint_worker.options.rules import frontend_mode
from vllmendpoint_worker.options.shared_options import ParserNames, engine_arguments, share_options
from vllmendpoint_worker.serving.state import WorkerState

MODE = "VLLMENDPOINT_FRONTEND_MODE"


async def rejected_fields(
    tmp_path: Path, argv: list[str], environ: dict[str, str], config: str = ""
) -> set[str]:
    """The fields of the problems that are found without an import of the engine."""
    if config:
        (tmp_path / "config.yaml").write_text(config)
        environ = environ | {"VLLMENDPOINT_CONFIG_FILE": str(tmp_path / "config.yaml")}
    sources = ConfigSources({"SM_VLLM_MODEL": "org/name", **environ}, argv)
    configuration = Configuration(sources, WorkerState(worker_version="0"))
    try:
        configuration.check(await configuration.load())
    except ConfigurationRejectedError as error:
        return {problem.field for problem in error.problems if problem.message.startswith(problem.field)}
    return set()


@pytest.mark.parametrize(
    ("argv", "environ", "config", "field"),
    [
        (["-n", "2"], {}, "", "engine.args (-n)"),
        (["-n2"], {}, "", "engine.args (-n2)"),
        (["-r=1"], {}, "", "engine.args (-r)"),
        (["--nnod", "2"], {}, "", "engine.args (--nnod)"),
        ([], {}, "nnodes: 2", "nnodes of the config file"),
        ([], {}, "data_parallel_rank: 0", "data_parallel_rank of the config file"),
        ([], {}, "load-format: gms", "load-format of the config file"),
        ([], {"SM_VLLM_NODE_RANK": "1"}, "", "SM_VLLM_NODE_RANK"),
        ([], {"SM_VLLM_LOAD_FORMAT": "gms"}, "", "SM_VLLM_LOAD_FORMAT"),
        ([], {"SM_VLLM_API_KEY": "k"}, "", "SM_VLLM_API_KEY"),
        ([], {"DYN_ENDPOINT": "dyn://a.b.c"}, "", "DYN_ENDPOINT"),
        ([], {"DYN_COMPONENT": "c"}, "", "DYN_COMPONENT"),
        ([], {"VLLM_DP_RANK": "0"}, "", "VLLM_DP_RANK"),
        ([], {"VLLM_DP_MASTER_PORT": "1"}, "", "VLLM_DP_MASTER_PORT"),
        ([], {"VLLM_API_KEY": "k"}, "", "VLLM_API_KEY"),
        ([], {"DYN_ENABLE_RL": "true"}, "", "DYN_ENABLE_RL"),
        ([], {"DYN_SYSTEM_PORT": "55467"}, "", "DYN_SYSTEM_PORT"),
    ],
)
async def test_a_rejected_option_is_named_before_the_engine_is_imported(
    tmp_path: Path, argv: list[str], environ: dict[str, str], config: str, field: str
) -> None:
    rejected = await rejected_fields(tmp_path, argv, environ | {MODE: "Managed"}, config)
    assert rejected == {field}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"DYN_ENABLE_RL": "false", "DYN_VLLM_HEADLESS": "0", "VLLM_API_KEY": "", "DYN_ENDPOINT": ""},
        {"DYN_NAMESPACE": "rendered", "DYN_NAMESPACE_WORKER_SUFFIX": "rendered", "POD_NAME": "rendered"},
        {"DYN_TOOL_CALL_PARSER": "hermes", "SM_VLLM_ENABLE_SLEEP_MODE": "false", "DYN_SYSTEM_PORT": "9090"},
    ],
)
async def test_rendered_and_disabled_options_are_accepted(tmp_path: Path, environ: dict[str, str]) -> None:
    argv = ["--served-model-name", "m", "--model", "org/name", "--revision", "r"]
    assert await rejected_fields(tmp_path, argv, environ | {MODE: "Managed"}) == set()


@pytest.mark.parametrize(("mode", "count"), [("Managed", 2), ("Newer", 2), ("None", 1), ("", 0)])
async def test_the_mode_of_the_frontend_selects_the_rejected_options(
    tmp_path: Path, mode: str, count: int
) -> None:
    argv = ["--api-key", "k", "--nnodes", "2"]
    assert len(await rejected_fields(tmp_path, argv, {MODE: mode})) == count
    assert frontend_mode({MODE: mode}) == {"": None, "None": FrontendMode.NONE}.get(
        mode, FrontendMode.MANAGED
    )


ROUTING = "VLLMENDPOINT_ROUTING_MODE"
KV_EVENTS = ["--kv-events-config", '{"enable_kv_cache_events": true}']


@pytest.mark.parametrize(
    ("argv", "environ", "config", "field"),
    [
        (["--no-enable-prefix-caching"], {}, "", "engine.args (--no-enable-prefix-caching)"),
        (["--router-mode", "kv"], {}, "", "engine.args (--router-mode)"),
        ([], {"SM_VLLM_ENABLE_PREFIX_CACHING": "false"}, "", "SM_VLLM_ENABLE_PREFIX_CACHING"),
        ([], {"SM_VLLM_ROUTER_MODE": "random"}, "", "SM_VLLM_ROUTER_MODE"),
        ([], {"DYN_ROUTER_MODE": "random"}, "", "DYN_ROUTER_MODE"),
        ([], {}, "enable-prefix-caching: false", "enable-prefix-caching of the config file"),
        ([], {}, "kv-events-config: {}", "kv-events-config of the config file"),
    ],
)
async def test_an_option_that_contradicts_kv_routing_is_named(
    tmp_path: Path, argv: list[str], environ: dict[str, str], config: str, field: str
) -> None:
    environ = environ | {MODE: "Managed"}
    given = [*KV_EVENTS, *argv]
    assert field in await rejected_fields(tmp_path, given, environ | {ROUTING: "KV"}, config)
    assert await rejected_fields(tmp_path, argv, environ, config) == set()


async def test_the_arguments_of_the_operator_are_accepted(tmp_path: Path) -> None:
    environ = {MODE: "Managed", ROUTING: "KV", "SM_VLLM_ENABLE_PREFIX_CACHING": "true"}
    assert await rejected_fields(tmp_path, KV_EVENTS, environ) == set()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DYN_SYSTEM_PORT", "55467"),
        ("DYN_SYSTEM_PORT", "32768"),
        ("DYN_SYSTEM_PORT", "9090.0"),
        ("DYN_SYSTEM_PORT", "0x1"),
        ("DYN_TCP_RPC_PORT", "65536"),
        ("DYN_TCP_RPC_PORT", "-1"),
        ("DYN_RUNTIME_NUM_WORKER_THREADS", "0"),
        ("DYN_RUNTIME_NUM_WORKER_THREADS", "1" * 25),
        ("DYN_NVTX", "true"),
        ("DYN_MM_IMAGE_CACHE_SIZE", "8.5"),
        ("DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", "5s"),
        ("DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", "nan"),
        ("DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", "inf"),
        ("DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD", "1.5"),
        ("DYN_BENCHMARK_PREFILL_GRANULARITY", "1025"),
    ],
)
def test_a_number_that_dynamo_cannot_parse_is_rejected(name: str, value: str) -> None:
    (problem,) = invalid_numbers({name: value})
    assert (problem.source, problem.field, problem.reason) == ("Environment", name, "InvalidEnvironment")
    assert problem.message.endswith(f". Use {NUMERIC_VARIABLES[name]}.")


def test_a_value_that_is_not_a_number_is_not_repeated() -> None:
    (problem,) = invalid_numbers({"DYN_SYSTEM_PORT": "hunter2"})
    assert problem.message == (
        "DYN_SYSTEM_PORT is not a number. "
        "Use an integer from -32768 to 32767 (a negative number disables it)."
    )


def test_numbers_that_dynamo_can_parse_are_accepted() -> None:
    values = {
        "DYN_SYSTEM_PORT": "-1",
        "DYN_TCP_RPC_PORT": " 0 ",
        "DYN_NVTX": "0",
        "DYN_ROUTER_TTL_SECS": "1e2",
    }
    values |= {"DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD": "None", "DYN_COMPUTE_THREADS": "", "DYN_LOG": "debug"}
    assert invalid_numbers(values) == []


NAMES = {
    option: option.lstrip("-").replace("-", "_")
    for option in (
        *("--tool-call-parser", "--enable-auto-tool-choice", "--dyn-tool-call-parser", "--chat-template"),
        *("--reasoning-parser", "--dyn-reasoning-parser", "--custom-jinja-template"),
    )
}
PARSERS = (
    ParserNames(frozenset({"hermes", "openai", "xlam"}), frozenset({"qwen3"})),
    ParserNames(frozenset({"hermes", "harmony"}), frozenset({"qwen3", "gpt_oss"})),
)


def test_automatic_tool_choice_without_a_parser_is_rejected_before_the_engine_loads() -> None:
    (problem,) = share_options(from_arguments(["--enable-auto-tool-choice"]), NAMES, *PARSERS).problems
    assert problem.message == (
        "engine.args (--enable-auto-tool-choice) requires a parser. Also set --tool-call-parser."
    )
    both = ["--enable-auto-tool-choice", "--dyn-tool-call-parser", "harmony"]
    shared = share_options(from_arguments(both), NAMES, *PARSERS)
    assert (shared.problems, shared.frontend) == ((), ("--tool-call-parser", "openai"))


def test_an_inline_template_becomes_a_file_for_dynamo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shared = share_options(from_arguments(["--chat-template", "{{ messages }}"]), NAMES, *PARSERS)
    option, path = engine_arguments(shared)
    assert option == "--custom-jinja-template"
    assert Path(path).read_text() == "{{ messages }}"
    file = tmp_path / "t.jinja"
    file.write_text("x")
    shared = share_options(from_arguments(["--chat-template", str(file)]), NAMES, *PARSERS)
    assert engine_arguments(shared) == ["--custom-jinja-template", str(file)]


@pytest.mark.parametrize(("given", "closed"), [(None, True), ("", True), ("0", True), ("true", False)])
def test_adapters_are_loaded_at_run_time_only_if_the_user_allows_it(given: str | None, closed: bool) -> None:
    environ = {} if given is None else {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": given}
    clear_environment(environ, [], [])
    # Dynamo sets the variable if it is unset.
    assert (environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] in ("", "0")) is closed
