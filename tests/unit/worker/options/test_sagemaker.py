"""SM_VLLM_* variables follow the rules of AWS, and one option in two sources must have one value."""

import json
from pathlib import Path

import pytest

from vllmendpoint_worker.options import sagemaker
from vllmendpoint_worker.options.command_line import CommandLine
from vllmendpoint_worker.options.conflicts import find_conflicts, parser_rejection
from vllmendpoint_worker.options.option_setting import from_arguments, from_config
from vllmendpoint_worker.options.sagemaker import container_environment, options, strip_serve_command


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


LORA = [{"name": "a", "path": "/loras/a"}, {"name": "b", "path": "/loras/b"}]
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
NAMES = {
    "--tensor-parallel-size": "tensor_parallel_size",
    "-tp": "tensor_parallel_size",
    "--max-model-len": "max_model_len",
    "--max-num-seqs": "max_num_seqs",
    "--enable-prefix-caching": "enable_prefix_caching",
    "--no-enable-prefix-caching": "enable_prefix_caching",
    "--no-such-thing": "no_such_thing",
}


def arguments(environ: dict[str, str], argv: list[str] | None = None) -> list[str]:
    return list(CommandLine(environ, argv or []).invocation({"model": "m"}).arguments)


# The names and cases are those of aws/deep-learning-containers, test/vllm/test_sagemaker_args.py.
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LORA_MODULES", json.dumps(LORA), ["--lora-modules", *(compact(a) for a in LORA)]),
        ("LORA_MODULES", '{"a": 1} {"b": 2}', ["--lora-modules", '{"a":1}', '{"b":2}']),
        ("LORA_MODULES", '{"name": "a",  "path": "/x"}', ["--lora-modules", '{"name": "a",  "path": "/x"}']),
        ("LORA_MODULES", "a=/loras/a", ["--lora-modules", "a=/loras/a"]),
        ("LORA_MODULES", '[{"name":"a","path":}]', ["--lora-modules", '[{"name":"a","path":}]']),
        ("SERVED_MODEL_NAME", '["primary","alias"]', ["--served-model-name", "primary", "alias"]),
        ("CUDAGRAPH_CAPTURE_SIZES", "[1, 2, 4]", ["--cudagraph-capture-sizes", "1", "2", "4"]),
        ("X", '[true, null, 1.5, [1]]', ["--x", "true", "", "1.5", "[1]"]),
        ("CUSTOM_OPS", "[]", []),
        ("ALLOWED_ORIGINS", '["https://a","https://b"]', ["--allowed-origins", '["https://a","https://b"]']),
        ("ALLOWED_METHODS", '["GET"]', ["--allowed-methods", '["GET"]']),
        ("ALLOWED_HEADERS", '["X"]', ["--allowed-headers", '["X"]']),
        ("MIDDLEWARE", "my_module.MyMiddleware", ["--middleware", "my_module.MyMiddleware"]),
        ("LIMIT_MM_PER_PROMPT", '{"image": {"n": 2}}', ["--limit-mm-per-prompt", '{"image": {"n": 2}}']),
        ("CHAT_TEMPLATE", TEMPLATE, ["--chat-template", TEMPLATE]),
        ("MODEL", "/opt/ml/model/my model dir", ["--model", "/opt/ml/model/my model dir"]),
        ("SPECULATIVE_CONFIG", '{"m": "x",\n "n": 1}', ["--speculative-config", '{"m": "x",\n "n": 1}']),
        ("TENSOR_PARALLEL_SIZE", "8", ["--tensor-parallel-size", "8"]),
        ("ENABLE_LORA", "true", ["--enable-lora"]),
        ("ENABLE_LORA", " TRUE ", ["--enable-lora"]),
        ("ENABLE_LORA", "False", []),
        ("ENABLE_LORA", "", ["--enable-lora"]),
        ("MODEL", "", []),  # --model without a value has no effect
        ("", "x", []),
    ],
)  # fmt: skip
def test_a_variable_becomes_arguments(name: str, value: str, expected: list[str]) -> None:
    assert arguments({f"SM_VLLM_{name}": value}) == expected


def test_only_variables_with_the_prefix_count_in_the_order_of_their_names() -> None:
    environ = {
        "SM_VLLM_SEED": "1",
        "PATH": "/usr/bin",
        "HF_TOKEN": "secret",
        "SM_VLLM_DTYPE": "auto",
        "SM_": "x",
    }
    assert arguments(environ, ["--max-num-seqs", "4"]) == [
        *("--dtype", "auto", "--seed", "1", "--max-num-seqs", "4"),
    ]


def test_an_empty_list_is_a_warning() -> None:
    assert options({"SM_VLLM_CUSTOM_OPS": "[]"})[1] == [
        "SM_VLLM_CUSTOM_OPS is an empty list, which has no effect."
    ]


@pytest.mark.parametrize(
    ("environ", "files", "expected"),
    [
        ({"SM_VLLM_MODEL": "m", "HF_MODEL_ID": "hub"}, ["config.json"], ["--model", "m"]),
        ({"HF_MODEL_ID": "hub"}, ["config.json"], ["--model", "FOLDER"]),
        ({"HF_MODEL_ID": "hub"}, ["weights.gguf"], ["--model", "FOLDER"]),
        ({"HF_MODEL_ID": "hub"}, ["model.py"], ["--model", "hub"]),  # AWS would load the script as a model
        ({"HF_MODEL_ID": "hub"}, [".vllmendpoint"], ["--model", "hub"]),
        ({"HF_MODEL_ID": "hub"}, [], ["--model", "hub"]),
        ({"HF_MODEL_ID": " "}, ["something"], ["--model", "FOLDER"]),
        ({"HF_MODEL_ID": "hub", "VLLMENDPOINT_ARTIFACTS_URI": "s3://b/p/"}, [], ["--model", "FOLDER"]),
        ({"HF_MODEL_ID": "hub", "VLLMENDPOINT_ARTIFACTS_URI": "s3://b/p/"}, ["model.py"], ["--model", "hub"]),
    ],
)
def test_the_model_is_found_by_the_rules_of_sagemaker(
    tmp_path: Path, environ: dict[str, str], files: list[str], expected: list[str]
) -> None:
    for name in files:
        (tmp_path / name).touch()
    engine = CommandLine({"SAGEMAKER_MODEL_PATH": str(tmp_path), **environ}, []).invocation({})
    assert engine.problems == ()
    assert list(engine.arguments) == [str(tmp_path) if word == "FOLDER" else word for word in expected]


@pytest.mark.parametrize(
    "environ", [{}, {"SM_VLLM_MODEL": "", "HF_MODEL_ID": "", "VLLMENDPOINT_ARTIFACTS_URI": ""}]
)
def test_a_missing_model_is_rejected(tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / ".hidden").touch()
    assert CommandLine({"SAGEMAKER_MODEL_PATH": str(tmp_path), **environ}, []).invocation({}).problems
    command_line = CommandLine({"SAGEMAKER_MODEL_PATH": str(tmp_path / "nowhere"), **environ}, [])
    (problem,) = command_line.invocation({}).problems
    assert "SM_VLLM_MODEL" in problem.message
    assert command_line.invocation({"model": "m"}).problems == ()
    assert CommandLine(environ, ["--model=m"]).invocation({}).problems == ()


@pytest.mark.parametrize(
    ("argv", "environ", "config", "fields"),
    [
        # argument against SM_VLLM_*
        (["--model", "a"], {"SM_VLLM_MODEL": "b"}, {}, [("SM_VLLM_MODEL", "model.uri (--model)")]),
        (["--model=a"], {"SM_VLLM_MODEL": "a"}, {}, []),
        (["--served_model_name", "a"], {"SM_VLLM_SERVED_MODEL_NAME": '["a", "b"]'}, {},
         [("SM_VLLM_SERVED_MODEL_NAME", "model.name (--served-model-name)")]),
        (["--max_model_len=64"], {"SM_VLLM_MAX_MODEL_LEN": "65"}, {},
         [("SM_VLLM_MAX_MODEL_LEN", "engine.args (--max-model-len)")]),
        (["--max_model_len=64"], {"SM_VLLM_MAX_MODEL_LEN": " 64"}, {}, []),
        (["--gpu-memory-utilization", "0.9"], {"SM_VLLM_GPU_MEMORY_UTILIZATION": "0.90"}, {}, []),
        (["--hf-overrides", '{"a":1}'], {"SM_VLLM_HF_OVERRIDES": '{ "a": 1 }'}, {}, []),
        (["--hf-overrides.a", "1"], {"SM_VLLM_HF_OVERRIDES": '{"b": 1}'}, {},
         [("SM_VLLM_HF_OVERRIDES", "engine.args (--hf-overrides)")]),
        (["--no-use-x"], {"SM_VLLM_USE_X": "true"}, {}, [("SM_VLLM_USE_X", "engine.args (--no-use-x)")]),
        (["--no-use-x"], {"SM_VLLM_USE_X": "false"}, {}, []),
        (["--use-x"], {"SM_VLLM_USE_X": "false"}, {}, [("SM_VLLM_USE_X", "engine.args (--use-x)")]),
        (["--seed", "-1"], {"SM_VLLM_SEED": "-1"}, {}, []),
        (["--seed", "1", "--seed", "2"], {"SM_VLLM_SEED": "2"}, {}, []),
        # short forms and prefixes, which the names of the parsers resolve
        (["-tp", "2"], {"SM_VLLM_TENSOR_PARALLEL_SIZE": "4"}, {},
         [("SM_VLLM_TENSOR_PARALLEL_SIZE", "engine.args (-tp)")]),
        (["--max-model", "8"], {"SM_VLLM_MAX_MODEL_LEN": "9"}, {},
         [("SM_VLLM_MAX_MODEL_LEN", "engine.args (--max-model)")]),
        (["--max-", "8"], {"SM_VLLM_MAX_MODEL_LEN": "9"}, {}, []),  # ambiguous, so the parser rejects it
        (["--no-enable-prefix-caching"], {}, {"enable-prefix-caching": True},
         [("enable-prefix-caching of the config file", "engine.args (--no-enable-prefix-caching)")]),
        (["--no-such-thing"], {}, {"such_thing": True}, []),  # another option
        (["-tp", "1", "--tensor-parallel-size", "2"], {"SM_VLLM_TENSOR_PARALLEL_SIZE": "2"}, {}, []),
        (["-tp=1"], {"SM_VLLM_TENSOR_PARALLEL_SIZE": "2"}, {},
         [("SM_VLLM_TENSOR_PARALLEL_SIZE", "engine.args (-tp)")]),
        (["-O3"], {"SM_VLLM_OPTIMIZATION_LEVEL": "2"}, {},
         [("SM_VLLM_OPTIMIZATION_LEVEL", "engine.args (--optimization-level)")]),
        (["-O", "3"], {"SM_VLLM_OPTIMIZATION_LEVEL": "3"}, {}, []),
        (["-O=3"], {}, {"optimization_level": 3}, []),
        # against the config file
        (["--model", "a"], {}, {"model": "b"}, [("model of the config file", "model.uri (--model)")]),
        ([], {"SM_VLLM_MODEL": "a"}, {"model": "b"}, [("model of the config file", "SM_VLLM_MODEL")]),
        ([], {"SM_VLLM_MAX_MODEL_LEN": "8"}, {"max_model_len": 8}, []),
        ([], {"SM_VLLM_X": "[1, 2]"}, {"x": [1, 2]}, []),
        ([], {"SM_VLLM_X": "[1, 2]"}, {"x": [2, 1]}, [("x of the config file", "SM_VLLM_X")]),
        ([], {"SM_VLLM_X": '{"a": 1}'}, {"x": {"a": 1}}, []),
        ([], {"SM_VLLM_X": "true"}, {"x": None, "y": []}, []),
        (["--model", "a"], {"SM_VLLM_MODEL": "b"}, {"model": "c"},
         [("SM_VLLM_MODEL", "model.uri (--model)"), ("model of the config file", "model.uri (--model)")]),
        # variables that the operator sets and SM_VLLM_* must not change
        ([], {"SM_VLLM_NAMESPACE": "b", "DYN_NAMESPACE": "a"}, {}, [("SM_VLLM_NAMESPACE", "DYN_NAMESPACE")]),
        ([], {"SM_VLLM_PORT": "1", "VLLMENDPOINT_SAGEMAKER_PORT": "8080"}, {},
         [("SM_VLLM_PORT", "VLLMENDPOINT_SAGEMAKER_PORT")]),
        ([], {"SM_VLLM_PORT": "8080", "VLLMENDPOINT_SAGEMAKER_PORT": "8080"}, {}, []),
        # the environment against itself
        ([], {"SM_VLLM_SEED": "1", "SM_VLLM_seed": "2"}, {}, [("SM_VLLM_seed", "SM_VLLM_SEED")]),
    ],
)  # fmt: skip
def test_different_values_of_one_option_are_a_conflict(
    argv: list[str], environ: dict[str, str], config: dict[str, object], fields: list[tuple[str, str]]
) -> None:
    problems = find_conflicts(CommandLine(environ, argv).invocation(config).options, NAMES)
    assert [problem.message for problem in problems] == [
        f"{later} differs from {earlier}. Remove one of them, or make them equal."
        for later, earlier in fields
    ]


def test_a_conflict_has_source_and_reason_but_no_value() -> None:
    command_line = CommandLine({"SM_VLLM_API_KEY": "hunter2"}, ["--api-key", "hunter3"])
    (problem,) = find_conflicts(command_line.invocation({"model": "m"}).options, {})
    assert (problem.source, problem.reason, problem.field) == (
        "Environment", "InvalidEnvironment", "SM_VLLM_API_KEY",
    )  # fmt: skip
    assert "hunter" not in problem.message
    (problem,) = find_conflicts(CommandLine({}, ["--seed", "1"]).invocation({"seed": 2}).options, {})
    assert (problem.source, problem.reason) == ("ConfigFile", "InvalidConfigFile")


@pytest.mark.parametrize(
    ("sentence", "field"),
    [
        ("argument -mml/--max-model-len: invalid int value: 'hunter2'", "SM_VLLM_MAX_MODEL_LEN"),
        ("unrecognized arguments: --no-such hunter3", "SM_VLLM_NO_SUCH"),
        ("hunter3 is no such thing", "SM_VLLM_NO_SUCH"),
        ("argument --seed: invalid int value: 'hunter4'", "seed of the config file"),
        ("unrecognized arguments: --mine 1", "engine.args"),
        ("argument --max-model-length: expected one argument", "engine.args"),
    ],
)
def test_values_in_errors_of_the_parser_are_not_repeated(sentence: str, field: str) -> None:
    environ = {"SM_VLLM_MAX_MODEL_LEN": "hunter2", "SM_VLLM_NO_SUCH": "hunter3", "SM_VLLM_TP": "1"}
    problem = parser_rejection(
        sentence, CommandLine(environ, ["--mine", "1"]).invocation({"seed": "hunter4"}).options
    )
    assert problem.field == field
    assert "hunter" not in problem.message
    assert ("1)" in problem.message or "argument)" in problem.message) == (field == "engine.args")


def test_an_option_that_is_set_twice_equally_is_passed_once() -> None:
    assert arguments({"SM_VLLM_MIDDLEWARE": "a.B"}, ["--middleware", "a.B"]) == ["--middleware", "a.B"]


def test_options_of_arguments_and_config_file_have_one_spelling() -> None:
    given = from_arguments(["stray", "--json-arg.a", "1", "--json-arg.b", "2", "-O3", "--x_y", "-", "a"])
    assert [(each.option, each.value) for each in given] == [
        ("--json-arg", (".a", "1", ".b", "2")),
        ("--optimization-level", ("3",)),
        ("--x-y", ()),
        ("-", ("a",)),
    ]
    assert [each.option for each in from_config({"x_y": 1})] == ["--x-y"]


@pytest.mark.parametrize("value", ["http", "70000", "-1", "[1,2]", ""])
def test_an_invalid_port_is_rejected_and_not_used(value: str) -> None:
    environ = {"SM_VLLM_PORT": value}
    (problem,) = CommandLine(environ, []).invocation({"model": "m"}).problems
    assert problem.field == "SM_VLLM_PORT"
    assert "VLLMENDPOINT_SAGEMAKER_PORT" not in container_environment(environ)


ALONE = {"DYN_SYSTEM_PORT": "8082", "DYN_DISCOVERY_BACKEND": "mem", "DYN_EVENT_PLANE": "zmq"}


@pytest.mark.parametrize(
    ("environ", "added"),
    [
        ({}, ALONE),
        (dict.fromkeys(ALONE, ""), ALONE),
        ({"DYN_SYSTEM_PORT": "9090", "DYN_DISCOVERY_BACKEND": "file", "DYN_EVENT_PLANE": "nats"}, {}),
        ({"ETCD_ENDPOINTS": "http://e", "NATS_SERVER": "nats://n"}, {"DYN_SYSTEM_PORT": "8082"}),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, {}),
        ({"HUGGING_FACE_HUB_TOKEN": "t", "KUBERNETES_SERVICE_HOST": "h"}, {"HF_TOKEN": "t"}),
        ({"HUGGING_FACE_HUB_TOKEN": "t", "HF_TOKEN": "u", "KUBERNETES_SERVICE_HOST": "h"}, {}),
        ({"HUGGING_FACE_HUB_TOKEN": "", "KUBERNETES_SERVICE_HOST": "h"}, {}),
        ({"SM_VLLM_PORT": "8081", "SM_VLLM_HOST": "::", "KUBERNETES_SERVICE_HOST": "h"},
         {"VLLMENDPOINT_SAGEMAKER_PORT": "8081", "VLLMENDPOINT_SAGEMAKER_HOST": "::"}),
        ({"SM_VLLM_PORT": "8081", "VLLMENDPOINT_SAGEMAKER_PORT": "8080", "KUBERNETES_SERVICE_HOST": "h"}, {}),
    ],
)  # fmt: skip
def test_a_container_without_a_cluster_gets_the_missing_variables(
    environ: dict[str, str], added: dict[str, str]
) -> None:
    assert container_environment(environ) == added


def test_serve_is_removed_only_as_the_first_argument() -> None:
    assert strip_serve_command(["serve"]) == []
    assert strip_serve_command(["serve", "--model", "serve"]) == ["--model", "serve"]
    assert strip_serve_command(["--model", "serve"]) == ["--model", "serve"]


def test_the_default_folder_of_the_model_is_that_of_the_guide() -> None:
    assert sagemaker.model_path({}) == sagemaker.model_path({"SAGEMAKER_MODEL_PATH": ""}) == "/opt/ml/model"
    assert sagemaker.model_path({"SAGEMAKER_MODEL_PATH": "/m"}) == "/m"
