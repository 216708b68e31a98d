"""What the API server refuses by itself, and the sentence that kubectl shows."""

import pytest
import yaml

OK = {"model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"}}
CASES = [
    (
        {"healthCheck": {"level": "Minimal", "payload": {"prompt": "1"}}},
        "level and payload are both set; remove one",
    ),
    ({"healthCheck": {"level": "Tiny"}}, "supported values"),
    ({"healthCheck": {"payload": {}}}, "payload"),
    (
        {"engine": {"args": ["--seed", "1", "--model"]}},
        "engine.args: --model is set by the operator; remove it",
    ),
    (
        {"engine": {"args": ["--served_model_name=x"]}},
        "engine.args: --served_model_name is set by the operator",
    ),
    (
        {"engine": {"args": ["--served-model-name"]}},
        "engine.args: --served-model-name is set by the operator",
    ),
    (
        {"worker": {"env": [{"name": "DYN_NAMESPACE", "value": "x"}]}},
        "worker.env: DYN_NAMESPACE is set by the operator",
    ),
    ({"worker": {"env": [{"name": "VLLMENDPOINT_X", "value": "x"}]}}, "worker.env: VLLMENDPOINT_X is set by"),
    ({"worker": {"env": [{"name": "A"}, {"name": "A"}]}}, "Duplicate value"),
    ({"worker": {"startupTimeoutSeconds": 1}}, "greater than or equal to 10"),
    ({"worker": {"sharedMemorySize": "lots"}}, "sharedMemorySize"),
    ({"model": {"uri": "HuggingFaceTB/SmolLM2"}}, "model.uri: the scheme must be hf://, pvc:// or file://"),
    ({"model": {"uri": "s3://bucket/key"}}, "the scheme must be hf://, pvc:// or file://"),
    ({"model": {"uri": "hf://smollm"}}, "model.uri: hf:// takes an organisation and a name"),
    ({"model": {"uri": "pvc:///path"}}, "model.uri: pvc:// takes a claim and a path"),
    ({"model": {"uri": "file://opt/model"}}, "model.uri: file:// takes an absolute path"),
    ({"model": {"uri": "file:///opt/../etc"}}, "'..' is not allowed in the path"),
    ({"model": {}}, "model.uri: Required value"),
    (
        {"cache": {"persistentVolumeClaim": {"claimName": "c"}, "emptyDir": {}}},
        "cache: set one of persistentVolumeClaim and emptyDir, not both",
    ),
    (
        {"engine": {"config": {"inline": {}, "configMapKeyRef": {"name": "c"}}}},
        "engine.config: set exactly one of inline and configMapKeyRef",
    ),
    ({"engine": {"config": {}}}, "engine.config: set exactly one of inline and configMapKeyRef"),
    (
        {"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 0}}},
        "maxUnavailable and maxSurge cannot both be 0: no worker could ever be replaced",
    ),
    (
        {"strategy": {"rollingUpdate": {"maxUnavailable": "0%"}}},
        "maxUnavailable and maxSurge cannot both be 0",
    ),
    ({"replicas": -1}, "greater than or equal to 0"),
    ({"replica": 1}, 'unknown field "spec.replica"'),
]


def refusal(api, name="e", **spec):
    kind = {"apiVersion": "serving.vllmendpoint.dev/v1alpha1", "kind": "VLLMEndpoint"}
    body = {**kind, "metadata": {"name": name}, "spec": {**OK, **spec}}
    return api.kubectl("create", "--dry-run=server", "-f", "-", text=yaml.safe_dump(body), check=False)


@pytest.mark.parametrize(("spec", "told"), CASES, ids=[told[:40] for _, told in CASES])
def test_refused_with_a_sentence(api, spec, told):
    assert told in refusal(api, **spec)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("e" * 41, "metadata.name: at most 40 characters"),
        ("1st", "beginning with a letter"),
        ("a.b", "lower-case letters, digits and '-'"),
        ("Upper", "RFC 1123"),
    ],
)
def test_names(api, name, told):
    assert told in refusal(api, name=name)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"model": {"uri": "pvc://claim"}, "replicas": 0},
        {"healthCheck": {"payload": {"messages": [{"role": "user", "content": "Hi"}], "stop": None}}},
        {"engine": {"args": ["--max-model-len", "4096", "-O3", "--model-impl=auto"]}},
        {"worker": {"resources": {"limits": {"nvidia.com/gpu": 1, "memory": "1.5Gi", "cpu": "500m"}}}},
        {"worker": {"podTemplate": {"spec": {"anything": ["goes"]}}}},
        {"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}}},
    ],
)
def test_accepted(api, spec):
    assert "created (server dry run)" in refusal(api, name="e" * 40, **spec)


def test_defaults_and_the_unvisited_status(api, space):
    found = space("default").create().get()
    assert found["spec"].get("healthCheck") is None
    assert found["spec"].get("replicas", 1) == 1
    assert found["status"] == {"observedGeneration": -1}
    assert "conditions" in api.kubectl("explain", "vep.status")
