"""Which specs the planner rejects: reserved arguments and variables, and missing references."""

import pytest

from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import PlanError
from vllmendpoint_operator.observe.snapshot import Observed


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model", "--model is set by the operator. Remove it: set spec.model.uri instead."),
        ("--model=x", "--model is set by the operator"),
        ("--served-model-name", "set spec.model.name instead"),
        ("--served_model_name=x", "--served-model-name is set by the operator"),
        ("--served-model", "--served-model"),
        ("--disaggregation_mode", "set spec.prefill instead"),
        ("--health-check-payload={}", "spec.healthCheck.payload"),
        ("--config=x.yaml", "spec.engine.config"),
        ("--nnodes", "multi-node workers are not supported yet"),
        ("--namespace", "assigns a Dynamo namespace"),
    ],
)
def test_arguments_that_the_operator_owns_are_rejected(make_endpoint, make_plan, argument, message):
    with pytest.raises(PlanError) as error:
        make_plan(make_endpoint(engine={"args": ["--seed", "1", argument]}))
    assert error.value.reason is Reason.INVALID_SPEC
    assert error.value.message.startswith("engine.args: ")
    assert message in error.value.message


@pytest.mark.parametrize("name", ["DYN_NAMESPACE", "POD_UID", "DYN_SYSTEM_PORT", "VLLMENDPOINT_ANYTHING"])
def test_variables_that_the_operator_owns_are_rejected(make_endpoint, make_plan, name):
    with pytest.raises(PlanError, match=f"worker.env: {name} is set by the operator\\. Remove it: "):
        make_plan(make_endpoint(worker={"env": [{"name": name, "value": "x"}]}))


def test_a_token_set_twice_is_rejected(make_endpoint, make_plan):
    model = {"uri": "hf://o/n", "tokenSecretRef": {"name": "hf"}}
    env = [{"name": "HF_TOKEN", "value": "x"}]
    with pytest.raises(
        PlanError, match=r"tokenSecretRef: HF_TOKEN is also set in worker\.env\. Remove one of them\."
    ):
        make_plan(make_endpoint(model=model, worker={"env": env}))


def test_a_variable_with_value_and_source_is_rejected(make_endpoint, make_plan):
    item = {"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    with pytest.raises(PlanError, match=r"A has both value and valueFrom\. Remove one"):
        make_plan(make_endpoint(worker={"env": [item]}))


@pytest.mark.parametrize(
    ("maps", "reason", "message"),
    [
        ({}, Reason.CONFIG_MAP_NOT_FOUND, "The ConfigMap 'c' does not exist in this namespace. Create it"),
        ({"c": {"a": "1", "b": "2"}}, Reason.CONFIG_MAP_KEY_NOT_FOUND, "no key 'k'. Its keys: a, b."),
        ({"c": {}}, Reason.CONFIG_MAP_KEY_NOT_FOUND, "Its keys: none."),
    ],
)
def test_missing_references_are_named(
    make_endpoint, make_plan, make_observed, config_maps, maps, reason, message
):
    endpoint = make_endpoint(engine={"config": {"configMapKeyRef": {"name": "c", "key": "k"}}})
    observed = make_observed(make_plan(make_endpoint()), config_maps=config_maps(**maps))
    with pytest.raises(PlanError) as error:
        make_plan(endpoint, observed)
    assert error.value.reason is reason
    assert message in error.value.message


@pytest.mark.parametrize(("data", "reason"), [(None, "ConfigMapNotFound"), ({}, "ConfigMapKeyNotFound")])
def test_a_missing_script_is_reported(make_endpoint, make_plan, config_maps, noon, data, reason):
    maps = {} if data is None else config_maps(scripts=data)
    one = make_endpoint(handlers={"script": {"configMapKeyRef": {"name": "scripts"}}})
    with pytest.raises(PlanError, match=r"handlers\.script\.configMapKeyRef") as caught:
        make_plan(one, Observed(now=noon, config_maps=maps))
    assert caught.value.reason == reason
