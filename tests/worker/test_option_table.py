"""The table of options against the installed Dynamo and vLLM: every option is classified and exists."""

import argparse
import dataclasses
import inspect
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from vllmendpoint_api import (
    ENGINE_OPTIONS,
    FRONTEND_OPTIONS,
    OWNED_ENV,
    SHORT_OPTIONS,
    UNSUPPORTED_ENV,
    FrontendMode,
    OptionRule,
    frontend_arg,
    owned_engine_arg,
    unsupported_engine_arg,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn while they are imported
    import dynamo.vllm.main
    from dynamo.common.configuration.groups.router_args import add_worker_router_arguments
    from dynamo.common.configuration.groups.runtime_args import DynamoRuntimeArgGroup
    from dynamo.vllm.backend_args import DynamoVllmArgGroup
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs, make_arg_parser
    from vllm.entrypoints.serve.lora.api_router import attach_router
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from vllmendpoint_worker import upstream
    from vllmendpoint_worker.options.arguments import clear_environment
    from vllmendpoint_worker.options.conflicts import negative_flags
    from vllmendpoint_worker.options.dynamo_numbers import NUMERIC_VARIABLES
    from vllmendpoint_worker.options.option_setting import destination, from_arguments, from_config
    from vllmendpoint_worker.options.rules import rejected_options
    from vllmendpoint_worker.options.sagemaker import options as sagemaker_options
    from vllmendpoint_worker.options.shared_options import _DYNAMO_NAMES, engine_arguments, share_options

REVIEWED = Path(__file__).with_name("reviewed_options.txt")
NEWER_OR_OLDER = {"--is-prefill-worker", "--is-decode-worker"}
"""Options of the table that the installed versions do not have."""
ENV_OF_THE_USER = {"DYN_HEALTH_CHECK_PAYLOAD", "MODEL_EXPRESS_URL"}
"""Variables that are the documented alternative to the rejected options of the same name."""

NUMBERS_OF_OTHERS = {"DYN_TRTLLM_MAX_FILE_SIZE_MB", "DYN_TOKEN_IDS_AS_BYTES"}
"""A variable of another engine, and a switch."""


def actions() -> Iterator[argparse.Action]:
    """The actions of every parser that reads options of a worker."""
    groups: list[Any] = [
        DynamoRuntimeArgGroup().add_arguments,
        DynamoVllmArgGroup().add_arguments,
        add_worker_router_arguments,
        lambda parser: AsyncEngineArgs.add_cli_args(parser, async_args_only=False),
        FrontendArgs.add_cli_args,
    ]
    for add_arguments in groups:
        parser = FlexibleArgumentParser(add_help=False)
        add_arguments(parser)
        yield from (action for action in parser._actions if action.option_strings)


ACTIONS = list(actions())
BY_OPTION = {option: action for action in ACTIONS for option in action.option_strings}
NAMES = upstream.option_names()


def variable(action: argparse.Action) -> str:
    """The variable from which Dynamo reads the default of the option, by its help text."""
    found = re.search(r"env var: (\S+)", action.help or "")
    return found.group(1) if found else ""


def test_every_option_of_the_http_server_is_classified() -> None:
    fields = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(FrontendArgs)}
    assert fields - ENGINE_OPTIONS.keys() == set(), "Classify it in vllmendpoint_api/_engine_options.py"


def test_every_option_of_dynamo_and_the_engine_is_classified_or_reviewed() -> None:
    reviewed = set(REVIEWED.read_text().split())
    options = {action.option_strings[0] for action in ACTIONS}
    assert sorted(options - ENGINE_OPTIONS.keys() - reviewed) == [], (
        "Does it hang, have no effect, or open a port? Classify it in vllmendpoint_api/_engine_options.py, "
        f"otherwise add it to {REVIEWED.name}"
    )
    assert sorted(reviewed - options) == [], f"The option does not exist: remove it from {REVIEWED.name}"
    assert sorted(reviewed & ENGINE_OPTIONS.keys()) == []


def test_every_option_of_the_table_exists() -> None:
    parser = make_arg_parser(FlexibleArgumentParser(add_help=False))
    known = BY_OPTION.keys() | parser._option_string_actions.keys()
    assert ENGINE_OPTIONS.keys() - known == NEWER_OR_OLDER


@pytest.mark.parametrize("option", sorted(ENGINE_OPTIONS.keys() & BY_OPTION.keys()))
def test_the_parsers_agree_with_the_table(option: str) -> None:
    action, entry = BY_OPTION[option], ENGINE_OPTIONS[option]
    assert action.dest == destination(option)
    if entry.rule in (OptionRule.OWNED, OptionRule.UNSUPPORTED, OptionRule.FRONTEND):
        assert entry.short == tuple(name for name in action.option_strings if not name.startswith("--"))
        assert {variable(action)} - {"", *ENV_OF_THE_USER} <= {*entry.env, *OWNED_ENV, *UNSUPPORTED_ENV}
        if not entry.values:
            assert entry.switch == (action.nargs == 0 and not action.default)


@pytest.mark.parametrize("option", sorted({name for action in ACTIONS for name in action.option_strings}))
def test_only_owned_and_unsupported_options_are_rejected(option: str) -> None:
    """An option is not rejected because a rejected option begins with the same characters."""
    entry = ENGINE_OPTIONS.get(SHORT_OPTIONS.get(option, option))
    rejected = (
        entry is not None and not entry.values and entry.rule in (OptionRule.OWNED, OptionRule.UNSUPPORTED)
    )
    assert bool(owned_engine_arg(option) or unsupported_engine_arg(option)) == rejected
    assert (frontend_arg(option) is not None) == (option in FRONTEND_OPTIONS)


def test_every_numeric_variable_of_dynamos_parsers_has_bounds() -> None:
    numeric = {
        variable(action)
        for action in ACTIONS
        if getattr(action.type, "__name__", "") in {"int", "float", "nullable_int", "nullable_float"}
    }
    assert numeric - {""} - NUMERIC_VARIABLES.keys() == set()


def test_every_numeric_variable_in_dynamos_sources_has_bounds() -> None:
    """The sources are searched by name, because the packages read the variables in many places."""
    numeric = re.compile(
        r"DYN_[A-Z0-9_]*_(?:PORT|SECS|SECONDS|MS|US|S|BYTES|MB|GB|SIZE|TIMEOUT|INTERVAL|CAPACITY|THREADS|LIMIT)"
    )
    root = Path(dynamo.vllm.__file__).parent.parent
    sources = [path for name in ("vllm", "common") for path in (root / name).rglob("*.py")]
    found = {
        name
        for path in sources
        if not {"tests", "omni"} & set(path.parts)
        for name in re.findall(rf"[\"'`]({numeric.pattern})[\"'`]", path.read_text())
    }
    assert found - NUMERIC_VARIABLES.keys() - NUMBERS_OF_OTHERS == set()


SPELLINGS = [
    ["--data-parallel-rank", "0"], ["--data_parallel_rank=0"], ["--data-parallel-ra", "0"], ["-dpn", "0"],
    ["-dpn=0"], ["-n", "2"], ["-n2"], ["-n=2"], ["--nnodes", "2"], ["--nn", "2"], ["-r", "1"], ["-r1"],
    ["--node_rank=1"], ["--endpoint", "dyn://a.b.c"], ["--enable-rl"], ["--enable_sleep_mode"],
    ["--enable-sl"], ["--load-format", "gms"], ["--load_format=gms"], ["--load-f", "gms"],
    ["--route-to-encoder"], ["--gms-shadow-mode"], ["--data-parallel-external-lb"], ["-dpe"],
    ["--data-parallel-backend", "ray"], ["-dpb", "ray"], ["--health-check-payload", "{}"], ["--headless"],
    ["--ssl-keyfile", "k"], ["--port", "81"], ["--api-key", "k"], ["--api_key=k"], ["--lora-modules", "a=b"],
    ["--default-chat-template-kwargs.enable_thinking", "false"], ["--middleware=a.B"],
]  # fmt: skip


@pytest.mark.parametrize("argv", SPELLINGS, ids=" ".join)
def test_every_spelling_of_a_rejected_option_is_found(argv: list[str]) -> None:
    (problem,) = rejected_options(from_arguments(argv), NAMES, FrontendMode.MANAGED)
    assert (problem.source, problem.reason) == ("Spec", "InvalidEngineArguments")
    assert problem.field.startswith("engine.args (-")


@pytest.mark.parametrize(
    ("key", "value"),
    [("nnodes", 2), ("n", 2), ("node-rank", 1), ("data_parallel_rank", 0), ("enable-rl", True),
     ("load_format", "gms"), ("endpoint", "dyn://a.b.c"), ("api-key", ["k"]),
     ("ssl_keyfile", "k"), ("revision", "x"), ("port", 80),
     ("default-chat-template-kwargs", {"a": 1})],
)  # fmt: skip
def test_a_rejected_option_is_found_in_the_config_file_and_in_the_environment(key: str, value: Any) -> None:
    given = from_config({key: value})
    if key != "n":  # an argument --n is ambiguous to the parsers
        (problem,) = rejected_options(given, NAMES, FrontendMode.MANAGED)
        assert (problem.source, problem.reason) == ("ConfigFile", "InvalidConfigFile")
        assert problem.field == f"{key} of the config file"
    name = "SM_VLLM_" + key.upper().replace("-", "_")
    if key not in ("n", "port"):  # SM_VLLM_PORT is compared with the operator's
        found, _ = sagemaker_options({name: str(value)})
        (problem,) = rejected_options(found, NAMES, FrontendMode.MANAGED)
        assert (problem.source, problem.field) == ("Environment", name)


@pytest.mark.parametrize(
    "argv",
    [
        ["--served-model-name", "m", "--model", "m", "--revision", "r"],
        ["--data-parallel-size", "2", "-dp", "2", "-tp", "2", "--load-format", "safetensors", "-O3"],
        ["--no-enable-sleep-mode", "--no-headless", "--no-data-parallel-external-lb"],
        ["--data-parallel-backend", "mp", "--distributed-executor-backend", "mp"],
        ["--tool-call-parser", "hermes", "--enable-auto-tool-choice", "--reasoning-parser", "qwen3"],
        ["--chat-template", "t", "--max-log-len", "1", "--disable-fastapi-docs", "--seed", "-1"],
    ],
)
def test_supported_options_are_accepted(argv: list[str]) -> None:
    assert rejected_options(from_arguments(argv), NAMES, FrontendMode.MANAGED) == []


def test_the_rejected_options_depend_on_the_operator_and_its_frontend() -> None:
    served = from_arguments(["--api-key", "k", "--lora-modules", "a=b", "--root-path", "/x"])
    topology = from_arguments(["--nnodes", "2", "--namespace", "n", "--port", "80"])
    never = from_arguments(["--enable-rl", "--ssl-keyfile", "k"])
    for mode, counts in (
        (FrontendMode.MANAGED, (3, 3, 2)),
        (FrontendMode.NONE, (0, 3, 2)),
        (None, (0, 0, 2)),
    ):
        found = tuple(len(rejected_options(given, NAMES, mode)) for given in (served, topology, never))
        assert found == counts, mode


def test_false_becomes_the_negative_form_if_the_option_has_one() -> None:
    environ = {"SM_VLLM_ENABLE_PREFIX_CACHING": "false", "SM_VLLM_MAX_MODEL_LEN": "False"}
    no_effect = "is false, which has no effect, because the engine has no option"
    given, _ = sagemaker_options(environ)
    assert negative_flags(
        [*given, *from_config({"disable_log_stats": False, "enforce-eager": False})], NAMES
    ) == (
        ["--no-enable-prefix-caching"],
        [
            f"SM_VLLM_MAX_MODEL_LEN {no_effect} --no-max-model-len.",
            f"disable_log_stats of the config file {no_effect} --no-disable-log-stats.",
        ],
    )


async def test_vllm_accepts_the_negative_form(toy_model: Path) -> None:
    (argument,), _ = negative_flags(sagemaker_options({"SM_VLLM_ENABLE_PREFIX_CACHING": "false"})[0], NAMES)
    parsed = await upstream.parse_arguments(["--model", str(toy_model), argument], None)
    assert parsed.dynamo.engine_args.enable_prefix_caching is False


@pytest.mark.parametrize(
    ("argv", "engine", "frontend"),
    [
        (
            ["--tool-call-parser", "hermes", "--enable-auto-tool-choice"],
            ["--dyn-tool-call-parser", "hermes"],
            [],
        ),
        (["--tool-call-parser=deepseek_v31"], ["--dyn-tool-call-parser", "deepseek_v3_1"], []),
        (["--reasoning-parser", "qwen3"], ["--dyn-reasoning-parser", "qwen3"], []),
        (["--reasoning-parser", "openai_gptoss"], ["--dyn-reasoning-parser", "gpt_oss"], []),
        (
            ["--dyn-tool-call-parser", "harmony"],
            [],
            ["--enable-auto-tool-choice", "--tool-call-parser", "openai"],
        ),
        (["--dyn-reasoning-parser", "qwen3"], [], ["--reasoning-parser", "qwen3"]),
        (["--tool-call-parser", "xlam", "--dyn-tool-call-parser", "hermes"], [], []),
        (["--chat-template", "t.jinja", "--custom-jinja-template", "u.jinja"], [], []),
    ],
)
def test_shared_options_reach_both_servers(argv: list[str], engine: list[str], frontend: list[str]) -> None:
    shared = share_options(from_arguments(argv), NAMES, *upstream.parsers())
    assert (list(shared.engine), list(shared.frontend)) == (engine, frontend)
    assert (shared.problems, shared.warnings, shared.template) == ((), (), None)


def test_every_pair_of_parser_names_exists_in_vllm_and_dynamo() -> None:
    vllm, dynamo = upstream.parsers()
    for ours, theirs in _DYNAMO_NAMES.items():
        assert (ours in vllm.tools and theirs in dynamo.tools) or (
            ours in vllm.reasoning and theirs in dynamo.reasoning
        )


def test_a_parser_that_the_frontend_lacks_is_rejected_by_name() -> None:
    given, _ = sagemaker_options({"SM_VLLM_TOOL_CALL_PARSER": "xlam"})
    (problem,) = share_options(given, NAMES, *upstream.parsers()).problems
    assert problem.field == "SM_VLLM_TOOL_CALL_PARSER"
    assert "does not have. Also set --dyn-tool-call-parser to one of" in problem.message
    assert len(problem.message) <= 1024
    (warning,) = share_options(
        from_arguments(["--dyn-reasoning-parser", "basic"]), NAMES, *upstream.parsers()
    ).warnings
    assert "port 8080 does not parse reasoning" in warning


@pytest.mark.parametrize("name", sorted(NUMERIC_VARIABLES))
def test_the_parsers_of_dynamo_accept_the_bounds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = NUMERIC_VARIABLES[name]
    for text in (str(bounds.least), *([str(bounds.most)] if bounds.most is not None else [])):
        monkeypatch.setitem(os.environ, name, text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # from Dynamo, for deprecated variables
            list(actions())


async def test_shared_options_reach_the_registration_of_dynamo(toy_model: Path) -> None:
    argv = ["--model", str(toy_model), "--reasoning-parser", "qwen3"]
    argv += ["--tool-call-parser", "hermes", "--enable-auto-tool-choice", "--chat-template", "{{ messages }}"]
    shared = share_options(from_arguments(argv), NAMES, *upstream.parsers())
    parsed = await upstream.parse_arguments([*argv, *engine_arguments(shared)], None, shared.frontend)
    assert (parsed.dynamo.dyn_tool_call_parser, parsed.dynamo.dyn_reasoning_parser) == ("hermes", "qwen3")
    assert Path(parsed.dynamo.custom_jinja_template).read_text() == "{{ messages }}"
    http = make_arg_parser(FlexibleArgumentParser()).parse_args(parsed.frontend)
    assert (http.tool_call_parser, http.enable_auto_tool_choice) == ("hermes", True)
    assert http.chat_template == "{{ messages }}"


@pytest.mark.parametrize(("given", "served"), [(None, False), ("0", False), ("true", True)])
def test_routes_that_load_adapters_are_absent_unless_enabled(
    given: str | None, served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
    environ: dict[str, str] = {} if given is None else {name: given}
    clear_environment(environ, [], [])
    monkeypatch.setenv(name, environ[name])
    app = FastAPI()
    attach_router(app)
    paths = {route.path for route in app.routes if isinstance(route, APIRoute)}
    assert ({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"} <= paths) is served
    assert served or not paths


def test_dynamo_does_not_change_the_variable_of_runtime_loading() -> None:
    """Dynamo enables the routes only if the variable is unset."""
    assert 'if "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in os.environ' in inspect.getsource(
        dynamo.vllm.main.setup_vllm_engine
    )
