"""Specifications that the API server rejects, with the message in kubectl, and those that it accepts."""

import json

import pytest

from tests.rejected_specs import MODEL, REJECTED, REJECTED_CHANGES, REJECTED_NAMES
from vllmendpoint_api import (
    FRONTEND_ENV,
    FRONTEND_OPTIONS,
    OWNED_ENGINE_ARGS,
    OWNED_ENV,
    UNSUPPORTED_ENGINE_ARGS,
    UNSUPPORTED_ENV,
    custom_resource_definition,
)


def rejection(api, spec, name="e"):
    """The API server's message if it rejects the specification; else the empty string."""
    kind = {"apiVersion": "serving.vllmendpoint.dev/v1alpha1", "kind": "VLLMEndpoint"}
    body = {**kind, "metadata": {"name": name}, "spec": {"model": MODEL, **spec}}
    try:
        # kubectl sends the same parameters.
        path = api.path("VLLMEndpoint", "default")
        api.call("POST", f"{path}?dryRun=All&fieldValidation=Strict", body)
    except LookupError as error:
        return str(error)
    return ""


def ids(cases):
    return [f"{number}: {message[:40]}" for number, (*_, message) in enumerate(cases)]


@pytest.mark.parametrize(("spec", "message"), REJECTED, ids=ids(REJECTED))
def test_a_specification_is_rejected_with_the_message(api, spec, message):
    assert message in rejection(api, spec)


@pytest.mark.parametrize(("before", "after", "message"), REJECTED_CHANGES, ids=ids(REJECTED_CHANGES))
def test_a_change_is_rejected_with_the_message(api, make_endpoint, before, after, message):
    endpoint = make_endpoint("default").create(**before)
    with pytest.raises(LookupError) as error:
        endpoint.patch(spec=after)
    assert message in str(error.value)


@pytest.mark.parametrize(("name", "message"), REJECTED_NAMES, ids=ids(REJECTED_NAMES))
def test_a_name_is_rejected_with_the_message(api, name, message):
    assert message in rejection(api, {}, name)


@pytest.mark.parametrize("argument", OWNED_ENGINE_ARGS)
def test_every_argument_that_the_operator_sets_is_rejected(api, argument):
    spelled = argument.replace("-", "_").replace("__", "--", 1) + "=x"
    error = rejection(api, {"engine": {"args": [spelled]}})
    assert f"engine.args: {spelled[:-2]} is set by the operator; remove it" in error


@pytest.mark.parametrize("argument", UNSUPPORTED_ENGINE_ARGS)
def test_every_argument_that_the_worker_does_not_support_is_rejected(api, argument):
    error = rejection(api, {"engine": {"args": ["--seed", "1", argument]}})
    assert f"engine.args: {argument} is not supported by the worker; remove it" in error


@pytest.mark.parametrize("argument", FRONTEND_OPTIONS)
def test_an_option_of_port_8080_is_rejected_with_a_managed_frontend(api, argument):
    variable = "SM_VLLM_" + argument[2:].upper().replace("-", "_")
    for spec in ({"engine": {"args": [f"{argument}=x"]}}, {"worker": {"env": [{"name": variable}]}}):
        assert f"engine: {argument} (in engine.args or worker.env) is read by the server" in rejection(
            api, spec
        )
        assert rejection(api, {**spec, "frontend": {"mode": "None"}}) == ""


@pytest.mark.parametrize("name", FRONTEND_ENV)
def test_a_variable_of_port_8080_is_rejected_with_a_managed_frontend(api, name):
    spec = {"worker": {"env": [{"name": name, "value": "x"}]}}
    assert "is read by the server on port 8080, not at status.url" in rejection(api, spec)
    assert rejection(api, {**spec, "frontend": {"mode": "None"}}) == ""


@pytest.mark.parametrize("name", UNSUPPORTED_ENV)
def test_every_variable_that_the_worker_does_not_support_is_rejected(api, name):
    error = rejection(api, {"worker": {"env": [{"name": name, "value": "x"}]}})
    assert f"worker.env: {name} is not supported by the worker; remove it" in error


@pytest.mark.parametrize("name", OWNED_ENV)
def test_every_variable_that_the_operator_sets_is_rejected(api, name):
    error = rejection(api, {"worker": {"env": [{"name": name, "value": "x"}]}})
    assert f"worker.env: {name} is set by the operator; remove it" in error


ACCEPTED = [
    {},
    {"model": {"uri": "pvc://claim"}, "replicas": 0},
    {"model": {**MODEL, "tokenSecretRef": {"name": "hf", "key": ".token"}}},
    {"model": {**MODEL, "tokenSecretRef": {"name": "hf"}}, "worker": {"env": [{"name": "A", "value": "x"}]}},
    {
        "model": {**MODEL, "artifactsUri": "s3://bucket"},
        "worker": {"env": [{"name": "SAGEMAKER_MODEL_PATH", "value": "/here"}]},
    },
    {"model": {**MODEL, "type": "Embedding"}, "healthCheck": {"level": "Standard"}},
    {"healthCheck": {"payload": {"messages": [{"role": "user", "content": "Hi"}], "stop": None}}},
    {"healthCheck": {"expect": {"regex": "(?i)paris"}}},
    {"engine": {"args": ["--max-model-len", "4096", "-O3", "--model-impl=auto", "--", "--=", "-m", ""]}},
    {"engine": {"args": ["--data-parallel-size", "2", "-dp", "2", "--data_parallel_size=2", "-tp=2", "-1"]}},
    {"engine": {"args": ["--load-format", "safetensors", "--note", "gms", "--reasoning-parser", "qwen3"]}},
    {
        "engine": {
            "args": ["--tool-call-parser=hermes", "--enable-auto-tool-choice", "--chat-template", "{{ x }}"]
            + ["--exclude-tools-when-tool-choice-none", "--disable-fastapi-docs", "--max-log-len", "9"]
        },
        "worker": {"env": [{"name": "SM_VLLM_TOOL_CALL_PARSER"}, {"name": "SM_VLLM_"}, {"name": "SM_VLLM"}]},
    },
    # The maximum number and length of items.
    {
        "engine": {"args": ["--" + "x" * 62, "{" + "y" * 4095] * 64},
        "worker": {"env": [{"name": f"SM_VLLM_{'A' * 240}{n}", "value": "x"} for n in range(128)]},
    },
    {"worker": {"resources": {"limits": {"nvidia.com/gpu": 1, "memory": "1.5Gi", "cpu": "500m"}}}},
    {
        "worker": {
            "resources": {
                "limits": {"nvidia.com/gpu": 1, "hugepages-2Mi": "4Mi", "cpu": 1},
                "requests": {"nvidia.com/gpu": "1", "memory": "1Gi", "cpu": "1000m"},
            }
        }
    },
    {"worker": {"podTemplate": {"spec": {"anything": ["goes"]}}}},
    {"cache": {"volumeClaimTemplate": {"size": "9Gi"}}},
    {"cache": {"volumeClaimTemplate": {"size": "1.5Gi", "storageClassName": ""}}, "replicas": 0},
    {"cache": {"volumeClaimTemplate": {"size": "1e9", "accessModes": ["ReadWriteMany"]}}, "replicas": 9},
    {"cache": {"volumeClaimTemplate": {"size": 1, "accessModes": ["ReadWriteOncePod"]}}},
    {
        "cache": {"volumeClaimTemplate": {"size": 1}},
        "strategy": {"rollingUpdate": {"maxUnavailable": "50%", "maxSurge": "0%"}},
    },
    {"handlers": {"ping": "/opt/ml/model/handlers.py:f", "invocations": "package.module:f"}},
    {"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}}},
]


def test_kubectl_shows_the_message(api):
    spec, message = next(case for case in REJECTED if "level and payload" in case[1])
    kind = {"apiVersion": "serving.vllmendpoint.dev/v1alpha1", "kind": "VLLMEndpoint"}
    body = json.dumps({**kind, "metadata": {"name": "e"}, "spec": {"model": MODEL, **spec}})
    error = api.kubectl("create", "--dry-run=server", "-f", "-", text=body, check=False)
    assert f"spec.healthCheck: Invalid value: {message}" in error


@pytest.mark.parametrize("spec", ACCEPTED, ids=range(len(ACCEPTED)))
def test_a_specification_is_accepted(api, spec):
    assert rejection(api, spec, "e" * 40) == ""


def test_defaults_and_the_status_before_the_first_reconciliation(api, make_endpoint):
    found = make_endpoint("default").create().get()
    assert found["spec"].get("healthCheck") is None
    assert found["spec"].get("replicas", 1) == 1
    assert found["status"] == {"observedGeneration": -1}
    assert "conditions" in api.kubectl("explain", "vep.status")


@pytest.fixture
def earlier_release(api, until):
    """The same schema under another group, first without the rules that do not apply to existing
    endpoints, as in an earlier release. Yields functions that create an endpoint and that add those rules.
    """
    crd = custom_resource_definition()
    spec = crd["spec"] | {"group": "earlier.example"}
    crd |= {"metadata": {"name": "vllmendpoints.earlier.example"}, "spec": spec}
    schema = spec["versions"][0]["schema"]["openAPIV3Schema"]
    complete = json.loads(json.dumps(schema))
    for node in (schema, schema["properties"]["spec"]):
        rules = node["x-kubernetes-validations"]
        node["x-kubernetes-validations"] = [rule for rule in rules if not rule.get("optionalOldSelf")]
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

    def create(name, **fields):
        kind = {"apiVersion": "earlier.example/v1alpha1", "kind": "VLLMEndpoint"}
        body = kind | {"metadata": {"name": name}, "spec": {"model": MODEL, **fields}}
        try:
            return api.call("POST", "/apis/earlier.example/v1alpha1/namespaces/default/vllmendpoints", body)
        except (LookupError, ValueError) as error:  # the response is no JSON before the CRD is served
            return str(error)

    def upgrade():
        spec["versions"][0]["schema"]["openAPIV3Schema"] = complete
        api.call("PATCH", f"{crds}/vllmendpoints.earlier.example", crd, as_="merge")
        until(lambda: "must not end with -workers" in create("other-workers"), "the rule is active")

    api.call("POST", crds, crd)
    try:
        until(lambda: isinstance(create("first"), dict), "the CRD is served")
        yield create, upgrade
    finally:
        api.call("DELETE", f"{crds}/vllmendpoints.earlier.example")


def test_newer_rules_do_not_apply_to_existing_endpoints(api, earlier_release):
    create, upgrade = earlier_release
    args = ["--api-key", "x"]
    for name in ("pair-workers", "keyed"):
        assert isinstance(create(name, engine={"args": args}), dict)
    upgrade()
    assert "--api-key" in create("another", engine={"args": args})
    assert isinstance(create("pair"), dict)

    path = "/apis/earlier.example/v1alpha1/namespaces/default/vllmendpoints"
    for name in ("pair-workers", "keyed"):
        scaled = {"spec": {"replicas": 3}}
        api.call("PATCH", f"{path}/{name}/scale", scaled, as_="merge")
        # The API server sets frontend.mode to its default together with frontend.
        changed = {"spec": {"healthCheck": {"periodSeconds": 7}, "frontend": {"replicas": 2}}}
        found = api.call("PATCH", f"{path}/{name}", changed, as_="merge")
        assert found["spec"]["replicas"] == 3
        assert found["spec"]["frontend"]["replicas"] == 2
        assert found["spec"]["healthCheck"]["periodSeconds"] == 7

    for change in (
        {"engine": {"args": ["--api-key", "y"]}},
        {"worker": {"env": [{"name": "A", "value": "1"}]}},
    ):
        with pytest.raises(LookupError, match="--api-key"):
            api.call("PATCH", f"{path}/keyed", {"spec": change}, as_="merge")
    corrected = {"spec": {"frontend": {"mode": "None"}}}
    assert api.call("PATCH", f"{path}/keyed", corrected, as_="merge")["spec"]["frontend"]["mode"] == "None"
