"""Where each field of the spec is rendered."""

import json

import pytest

from tests.nested import walk

MAIN = "spec.template.spec.containers.0"
CASES = [
    (
        {"model": {"uri": "hf://o/n"}},
        "workers",
        f"{MAIN}.args",
        ["--served-model-name", "smollm", "--model", "o/n"],
    ),
    ({"model": {"uri": "file:///m"}}, "workers", f"{MAIN}.args.3", "/m"),
    ({"model": {"uri": "pvc://c/p/q"}}, "workers", f"{MAIN}.args.3", "/var/lib/vllmendpoint/models/c/p/q"),
    (
        {"model": {"uri": "pvc://c/p/q"}},
        "workers",
        "spec.template.spec.volumes.[name=model].persistentVolumeClaim",
        {"claimName": "c", "readOnly": True},
    ),
    ({"model": {"uri": "hf://o/n", "name": "x"}}, "workers", f"{MAIN}.args.1", "x"),
    (
        {"model": {"uri": "hf://o/n", "type": "Chat"}},
        "workers",
        f"{MAIN}.env.[name=VLLMENDPOINT_MODEL_TYPE].value",
        "Chat",
    ),
    (
        {"model": {"uri": "hf://o/n", "tokenSecretRef": {"name": "hf", "key": "k"}}},
        "workers",
        f"{MAIN}.env.[name=HF_TOKEN]",
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "k"}}},
    ),
    (
        {"model": {"uri": "hf://o/n", "tokenSecretRef": {"name": "hf"}}},
        "workers",
        f"{MAIN}.env.[name=HF_TOKEN].valueFrom.secretKeyRef.key",
        "token",
    ),
    ({"engine": {"args": ["--seed", "1"]}}, "workers", f"{MAIN}.args.5", "1"),
    ({"replicas": 3}, "workers", "spec.replicas", 3),
    ({"worker": {"image": "x:2"}}, "workers", f"{MAIN}.image", "x:2"),
    ({"worker": {"image": "x:2"}}, "frontend", f"{MAIN}.image", "registry.example/frontend:1"),
    ({"frontend": {"image": "y:2"}}, "frontend", f"{MAIN}.image", "y:2"),
    ({"frontend": {"image": "y:2"}}, "workers", f"{MAIN}.image", "registry.example/worker:1"),
    ({}, "workers", f"{MAIN}.image", "registry.example/worker:1"),
    ({}, "frontend", f"{MAIN}.env.[name=NVIDIA_VISIBLE_DEVICES].value", "void"),
    (
        {"worker": {"resources": {"limits": {"nvidia.com/gpu": 1}}}},
        "workers",
        f"{MAIN}.resources",
        {"limits": {"nvidia.com/gpu": "1"}},
    ),
    ({"worker": {"env": [{"name": "A", "value": "b"}]}}, "workers", f"{MAIN}.env.[name=A].value", "b"),
    (
        {"worker": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}},
        "workers",
        f"{MAIN}.env.[name=A].valueFrom.secretKeyRef.key",
        "k",
    ),
    (
        {"worker": {"envFrom": [{"secretRef": {"name": "s"}}]}},
        "workers",
        f"{MAIN}.envFrom.0.secretRef.name",
        "s",
    ),
    (
        {"worker": {"imagePullSecrets": [{"name": "s"}]}},
        "workers",
        "spec.template.spec.imagePullSecrets",
        [{"name": "s"}],
    ),
    (
        {"worker": {"imagePullSecrets": [{"name": "s"}]}},
        "frontend",
        "spec.template.spec.imagePullSecrets",
        [{"name": "s"}],
    ),
    (
        {"worker": {"sharedMemorySize": "1Gi"}},
        "workers",
        "spec.template.spec.volumes.[name=shm].emptyDir.sizeLimit",
        "1Gi",
    ),
    ({"worker": {"startupTimeoutSeconds": 101}}, "workers", f"{MAIN}.startupProbe.failureThreshold", 21),
    (
        {"worker": {"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}}},
        "workers",
        "spec.template.spec.nodeSelector",
        {"a": "b"},
    ),
    (
        {"cache": {"persistentVolumeClaim": {"claimName": "c"}}},
        "workers",
        "spec.template.spec.volumes.[name=cache].persistentVolumeClaim.claimName",
        "c",
    ),
    (
        {"cache": {"emptyDir": {"sizeLimit": "9Gi"}}},
        "workers",
        "spec.template.spec.volumes.[name=cache].emptyDir.sizeLimit",
        "9Gi",
    ),
    (
        {"cache": {"volumeClaimTemplate": {"size": "9Gi"}}},
        "workers",
        "spec.template.spec.volumes.[name=cache].persistentVolumeClaim",
        {"claimName": "smollm-cache"},
    ),
    ({}, "workers", "spec.template.spec.volumes.[name=cache].emptyDir", {}),
    ({"frontend": {"replicas": 2}}, "frontend", "spec.replicas", 2),
    (
        {"frontend": {"resources": {"requests": {"cpu": 2}}}},
        "frontend",
        f"{MAIN}.resources",
        {"requests": {"cpu": "2"}},
    ),
    (
        {"frontend": {"podTemplate": {"spec": {"priorityClassName": "p"}}}},
        "frontend",
        "spec.template.spec.priorityClassName",
        "p",
    ),
    (
        {"strategy": {"rollingUpdate": {"maxUnavailable": "25%", "maxSurge": 2}}},
        "workers",
        "spec.strategy.rollingUpdate",
        {"maxUnavailable": "25%", "maxSurge": 2},
    ),
]


@pytest.mark.parametrize(("spec", "deployment", "path", "value"), CASES)
def test_every_field_is_rendered_in_its_place(make_endpoint, make_plan, child, spec, deployment, path, value):
    planned = make_plan(make_endpoint(**spec))
    assert walk(child(planned, "Deployment", f"smollm-{deployment}"), path) == value


@pytest.mark.parametrize(
    "argument", ["--model-impl", "--max-model-len", "x --model", "-O3", "--", "--config-format", "--no-x"]
)
def test_other_arguments_are_rendered_verbatim(make_endpoint, make_plan, child, argument):
    planned = make_plan(make_endpoint(engine={"args": [argument]}))
    assert walk(child(planned, "Deployment", "smollm-workers"), f"{MAIN}.args")[-1] == argument


def test_user_variables_replace_defaults(make_endpoint, make_plan, child):
    planned = make_plan(make_endpoint(worker={"env": [{"name": "HF_HOME", "value": "/mine"}]}))
    env = walk(child(planned, "Deployment", "smollm-workers"), f"{MAIN}.env")
    assert [item["value"] for item in env if item["name"] == "HF_HOME"] == ["/mine"]


def test_only_workers_get_the_token(make_endpoint, make_plan):
    planned = make_plan(make_endpoint(model={"uri": "hf://o/n", "tokenSecretRef": {"name": "the-secret"}}))
    naming = {(c["kind"], c["metadata"]["name"]) for c in planned.children if "the-secret" in json.dumps(c)}
    assert naming == {("ControllerRevision", planned.revision.name), ("Deployment", "smollm-workers")}
