"""Rejected options: owned by the operator, not supported by the worker, or without effect at status.url."""

import pytest

from vllmendpoint_api import FRONTEND_ENV, FRONTEND_OPTIONS, UNSUPPORTED_ENGINE_ARGS, UNSUPPORTED_ENV, Reason
from vllmendpoint_operator.errors import PlanError

NOT_AT_URL = "is read by the server on port 8080, not at status.url. Remove it: "
UNSUPPORTED = "is not supported by the worker. Remove it: "
OWNED = "is set by the operator. Remove it: "


def main_env(*names):
    env = [{"name": name, "value": "x"} for name in names]
    return {"podTemplate": {"spec": {"containers": [{"name": "main", "env": env}]}}}


@pytest.fixture
def refusal(make_endpoint, make_plan):
    def reject(**spec):
        with pytest.raises(PlanError) as error:
            make_plan(make_endpoint(**spec))
        return error.value.reason, error.value.message

    return reject


@pytest.mark.parametrize(
    ("args", "starts"),
    [
        (["-n", "2"], f"engine.args: -n {OWNED}it is the short form of --nnodes: "),
        (["-n2"], f"engine.args: -n2 {OWNED}it is the short form of --nnodes: "),
        (["-n=2"], f"engine.args: -n {OWNED}it is the short form of --nnodes: "),
        (["-r", "1"], f"engine.args: -r {OWNED}it is the short form of --node-rank: "),
        (["-dpn", "0"], f"engine.args: -dpn {OWNED}it is the short form of --data-parallel-rank: "),
        (["-dpa=10.0.0.1"], f"engine.args: -dpa {OWNED}it is the short form of --data-parallel-address: "),
        (["--data_parallel_rpc_port", "1"], f"engine.args: --data-parallel-rpc-port {OWNED}"),
        (["--endpoint=dyn://a.b.c"], f"engine.args: --endpoint {OWNED}"),
        (["--route-to-encoder"], f"engine.args: --route-to-encoder {UNSUPPORTED}"),
        (["--enable-rl"], f"engine.args: --enable-rl {UNSUPPORTED}"),
        (["--gms-shadow-mode"], f"engine.args: --gms-shadow-mode {UNSUPPORTED}"),
        (
            ["--enable-sleep"],
            f"engine.args: --enable-sleep {UNSUPPORTED}it is an abbreviation of --enable-sleep-mode",
        ),
        (["--load-format", "gms"], f"engine.args: --load-format gms {UNSUPPORTED}"),
        (["--load_format=gms"], f"engine.args: --load-format gms {UNSUPPORTED}"),
        (["-dpb", "ray"], f"engine.args: --data-parallel-backend ray {UNSUPPORTED}"),
        (["--api-key", "k"], f"engine.args: --api-key {NOT_AT_URL}status.url would remain open; "),
        (["--lora-modules=a=b"], f"engine.args: --lora-modules {NOT_AT_URL}"),
        (["--default-chat-template-kwargs.a", "1"], "engine.args: --default-chat-template-kwargs"),
    ],
)
def test_a_rejected_argument(refusal, args, starts):
    reason, message = refusal(engine={"args": ["--seed", "1", *args]})
    assert reason is Reason.INVALID_SPEC
    assert message.startswith(starts)


@pytest.mark.parametrize(
    ("config", "starts"),
    [
        ({"nnodes": 2}, f"engine.config.inline: nnodes {OWNED}"),
        ({"data_parallel_rank": 0}, f"engine.config.inline: data_parallel_rank {OWNED}"),
        ({"enable-rl": True}, f"engine.config.inline: enable-rl {UNSUPPORTED}"),
        ({"load_format": "gms"}, f"engine.config.inline: load_format: gms {UNSUPPORTED}"),
        ({"api-key": ["k"]}, f"engine.config.inline: api-key {NOT_AT_URL}"),
    ],
)
def test_a_rejected_key_of_the_config_file(refusal, config, starts):
    reason, message = refusal(engine={"config": {"inline": config}})
    assert reason is Reason.INVALID_SPEC
    assert message.startswith(starts)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("DYN_ENDPOINT", OWNED),
        ("DYN_NAMESPACE_WORKER_SUFFIX", OWNED),
        ("DYN_NAMESPACE_PREFIX", OWNED),
        ("VLLM_DP_RANK", OWNED),
        ("VLLM_DP_MASTER_IP", OWNED),
        ("SM_VLLM_NNODES", OWNED),
        ("SM_VLLM_Data_Parallel_Rank", OWNED),
        ("SM_VLLM_ENABLE_SLEEP_MODE", UNSUPPORTED),
        ("SM_VLLM_API_KEY", NOT_AT_URL),
        ("SM_VLLM_LORA_MODULES", NOT_AT_URL),
        *((name, UNSUPPORTED) for name in UNSUPPORTED_ENV),
        *((name, NOT_AT_URL) for name in FRONTEND_ENV),
    ],
)
def test_a_rejected_variable(refusal, make_endpoint, make_plan, name, problem):
    reason, message = refusal(worker={"env": [{"name": name, "value": "x"}]})
    assert reason is Reason.INVALID_SPEC
    assert message.startswith(f"worker.env: {name} {problem}")
    reason, message = refusal(worker=main_env("A", name))
    assert reason is Reason.INVALID_POD_TEMPLATE
    assert message.startswith("worker.podTemplate: In env of the container main, ")
    assert name in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SM_VLLM_LOAD_FORMAT", "gms"),
        ("SM_VLLM_Data_Parallel_Backend", "ray"),
        ("SM_VLLM_DISTRIBUTED_EXECUTOR_BACKEND", "external_launcher"),
        ("DYN_ENDPOINT_TYPES", "none"),
    ],
)
def test_a_rejected_value_of_a_variable(refusal, make_endpoint, make_plan, name, value):
    variable = {"name": name, "value": value}
    reason, message = refusal(worker={"env": [variable]})
    assert reason is Reason.INVALID_SPEC
    assert message.startswith(f"worker.env: {name}={value} {UNSUPPORTED}")
    template = {"spec": {"containers": [{"name": "main", "env": [variable]}]}}
    reason, message = refusal(worker={"podTemplate": template})
    assert reason is Reason.INVALID_POD_TEMPLATE
    assert message.startswith(
        f"worker.podTemplate: In env of the container main, {name}={value} {UNSUPPORTED}"
    )
    make_plan(make_endpoint(worker={"env": [{"name": name, "value": "other"}]}))
    secret = {"name": name, "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    make_plan(make_endpoint(worker={"env": [secret]}))


@pytest.mark.parametrize("option", FRONTEND_OPTIONS)
def test_without_a_frontend_options_of_the_server_on_8080_are_accepted(make_endpoint, make_plan, option):
    variable = "SM_VLLM_" + option[2:].replace("-", "_").upper()
    for spec in ({"engine": {"args": [option]}}, {"worker": {"env": [{"name": variable, "value": "x"}]}}):
        make_plan(make_endpoint(frontend={"mode": "None"}, **spec))
        with pytest.raises(PlanError, match=f"({option}|{variable}) {NOT_AT_URL}"):
            make_plan(make_endpoint(**spec))


@pytest.mark.parametrize("option", UNSUPPORTED_ENGINE_ARGS)
def test_unsupported_options_are_rejected_without_a_frontend_too(make_endpoint, make_plan, option):
    with pytest.raises(PlanError, match=option):
        make_plan(make_endpoint(frontend={"mode": "None"}, engine={"args": [option]}))


def test_disabled_and_other_options_are_accepted(make_endpoint, make_plan):
    args = ["--no-enable-sleep-mode", "--data-parallel-size", "2", "-dp", "2", "--load-format", "auto"]
    args += ["--tool-call-parser", "hermes", "--reasoning-parser=qwen3", "--chat-template", "t", "--seed=-1"]
    config = {
        "enable-rl": False,
        "model": "m",
        "headless": None,
        "load_format": "dummy",
        "embedding-worker": 1,
    }
    env = [{"name": "SM_VLLM_MODEL", "value": "m"}, {"name": "SM_VLLM_PORT", "value": "8080"}]
    env += [{"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "true"}]
    make_plan(make_endpoint(engine={"args": args, "config": {"inline": config}}, worker={"env": env}))


@pytest.mark.parametrize("mode", ["Managed", "None"])
def test_the_worker_gets_the_frontend_mode(make_endpoint, make_plan, child, mode):
    planned = make_plan(make_endpoint(frontend={"mode": mode}))
    (main,) = child(planned, "Deployment", "smollm-workers")["spec"]["template"]["spec"]["containers"]
    assert {"name": "VLLMENDPOINT_FRONTEND_MODE", "value": mode} in main["env"]
