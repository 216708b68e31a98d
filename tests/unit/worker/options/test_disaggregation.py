"""The role of a worker for one phase, and the connector that it adds unless one is set."""

import json

import pytest

from vllmendpoint_api import FrontendMode, ModelType
from vllmendpoint_worker.options.disaggregation import (
    Role,
    connector_arguments,
    pooled_problem,
    role,
    transport_environment,
)
from vllmendpoint_worker.options.option_setting import OptionSetting, from_arguments, from_config
from vllmendpoint_worker.options.rules import rejected_options, rejected_variables
from vllmendpoint_worker.options.sagemaker import options as sagemaker_options

NAMES = {
    "--disaggregation-mode": "disaggregation_mode",
    "--kv-transfer-config": "kv_transfer_config",
    "--max-model-len": "max_model_len",
}
CONNECTOR = '{"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both"}'


@pytest.mark.parametrize(
    ("settings", "environ", "expected"),
    [
        ([], {}, None),
        (from_arguments(["--disaggregation-mode", "prefill"]), {}, Role.PREFILL),
        (from_arguments(["--disaggregation_mode=decode"]), {}, Role.DECODE),
        (from_arguments(["--disaggregation-mode", "prefill", "--disaggregation-mode", "agg"]), {}, None),
        (from_arguments(["--disaggregation-mode", "encode"]), {}, None),
        (from_config({"disaggregation_mode": "decode"}), {}, Role.DECODE),
        ([], {"DYN_VLLM_DISAGGREGATION_MODE": "prefill"}, Role.PREFILL),
        (
            from_arguments(["--disaggregation-mode", "decode"]),
            {"DYN_VLLM_DISAGGREGATION_MODE": "prefill"},
            Role.DECODE,
        ),
    ],
)
def test_the_role_comes_from_every_place_of_the_option(
    settings: list[OptionSetting], environ: dict[str, str], expected: Role | None
) -> None:
    assert role(settings, NAMES, environ) is expected


@pytest.mark.parametrize(
    ("worker_role", "kv_role"), [(Role.PREFILL, "kv_producer"), (Role.DECODE, "kv_consumer")]
)
def test_a_worker_for_one_phase_uses_nixl_in_its_role(worker_role: Role, kv_role: str) -> None:
    option, value = connector_arguments(worker_role, from_arguments(["--max-model-len", "8"]), NAMES)
    assert option == "--kv-transfer-config"
    assert json.loads(value) == {"kv_connector": "NixlConnector", "kv_role": kv_role}


@pytest.mark.parametrize("names", [{}, NAMES], ids=["before the imports", "after"])
@pytest.mark.parametrize(
    "settings",
    [
        from_arguments(["--kv-transfer-config", CONNECTOR]),
        from_arguments([f"--kv-transfer-config={CONNECTOR}"]),
        from_arguments([f"--kv_transfer_config={CONNECTOR}"]),
        from_arguments(["--kv-transfer-config.kv_connector", "LMCacheMPConnector"]),
        from_arguments(["--kv-transfer-config.kv_connector=LMCacheMPConnector"]),
        from_config({"kv-transfer-config": json.loads(CONNECTOR)}),
        from_config({"kv_transfer_config": json.loads(CONNECTOR)}),
        sagemaker_options({"SM_VLLM_KV_TRANSFER_CONFIG": CONNECTOR})[0],
    ],
)
def test_a_connector_of_the_user_is_kept(settings: list[OptionSetting], names: dict[str, str]) -> None:
    assert connector_arguments(Role.PREFILL, settings, names) == []


@pytest.mark.parametrize(
    ("environ", "expected"),
    [({}, {"UCX_TLS": "tcp,self"}), ({"UCX_TLS": " "}, {"UCX_TLS": "tcp,self"}), ({"UCX_TLS": "rc"}, {})],
)
def test_the_transports_of_the_user_are_kept(environ: dict[str, str], expected: dict[str, str]) -> None:
    assert transport_environment(environ) == expected


@pytest.mark.parametrize(
    ("worker_role", "model_type", "pools", "rejected"),
    [
        (Role.PREFILL, None, True, True),
        (Role.DECODE, ModelType.EMBEDDING, False, True),
        (Role.DECODE, ModelType.SCORE, False, True),
        (Role.PREFILL, ModelType.CHAT, False, False),
        (Role.PREFILL, None, False, False),
        (None, ModelType.EMBEDDING, True, False),
    ],
)
def test_a_model_that_does_not_generate_has_no_phases(
    worker_role: Role | None, model_type: ModelType | None, pools: bool, rejected: bool
) -> None:
    problem = pooled_problem(worker_role, model_type, pools=pools)
    assert (problem is not None) is rejected
    if problem is not None:
        assert (problem.field, problem.reason) == ("prefill", "InvalidSettings")
        assert f"(--disaggregation-mode {worker_role})" in problem.message
        assert problem.message.endswith("Remove spec.prefill.")


def test_only_the_operator_sets_the_role_of_its_workers() -> None:
    rendered = from_arguments(["--disaggregation-mode", "prefill"])

    assert rejected_options(rendered, NAMES, FrontendMode.MANAGED) == []
    for setting in (
        from_config({"disaggregation-mode": "prefill"}),
        sagemaker_options({"SM_VLLM_DISAGGREGATION_MODE": "prefill"})[0],
    ):
        (problem,) = rejected_options(setting, NAMES, FrontendMode.MANAGED)
        assert "is set by the operator" in problem.message
        assert rejected_options(setting, NAMES, None) == []
    variable = {"DYN_VLLM_DISAGGREGATION_MODE": "prefill"}
    assert len(rejected_variables(variable, FrontendMode.MANAGED)) == 1
    assert rejected_variables(variable, None) == []
