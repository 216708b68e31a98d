"""Every field of the spec is applied to the children of an endpoint; every field of the status is written."""

import json

import pytest
import yaml

from tests.nested import walk
from vllmendpoint_api import custom_resource_definition

SOURCES = {
    "configMapKeyRef": {"name": "c", "key": "k", "optional": True},
    "secretKeyRef": {"name": "s", "key": "k", "optional": False},
    "fieldRef": {"fieldPath": "spec.nodeName", "apiVersion": "v1"},
    "resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"},
}
ENV = [{"name": "A", "value": "a"}]
ENV += [{"name": f"FROM_{kind}", "valueFrom": {kind: source}} for kind, source in SOURCES.items()]
ENV_FROM = [
    {"prefix": "P_", "configMapRef": {"name": "c", "optional": True}},
    {"secretRef": {"name": "s", "optional": False}},
]
TAINT = {"key": "gpu", "operator": "Exists"}
SCRIPT = "\ufeffa = '\U0001f642 \x7f \x85 \u2028'\n"
"""Contains characters that YAML, the format of an apply, does not allow unescaped."""
FIRST = {
    "model": {
        "uri": "hf://o/n",
        "revision": "v1",
        "name": "served",
        "type": "Chat",
        "tokenSecretRef": {"name": "hub", "key": "k"},
        "artifactsUri": "s3://bucket/data/",
    },
    "engine": {"args": ["--seed", "7"], "config": {"inline": {"max-num-seqs": 3}}},
    "replicas": 2,
    "prefill": {
        "replicas": 3,
        "resources": {"limits": {"memory": "5Gi"}, "requests": {"cpu": "375m"}},
        "engine": {"args": ["--max-num-seqs", "9"]},
        "podTemplate": {"metadata": {"annotations": {"note": "p"}}},
    },
    "restartedAt": "2026-01-31T13:00:00+01:00",
    "worker": {
        "image": "registry.example/w:9",
        "resources": {"limits": {"nvidia.com/gpu": 1}, "requests": {"cpu": "250m"}},
        "env": ENV,
        "envFrom": ENV_FROM,
        "imagePullSecrets": [{"name": "pull"}],
        "serviceAccountName": "mine",
        "sharedMemorySize": "3Gi",
        "startupTimeoutSeconds": 500,
        "podTemplate": {"spec": {"tolerations": [TAINT]}},
    },
    "cache": {"persistentVolumeClaim": {"claimName": "models"}},
    "healthCheck": {
        "mode": "Observe",
        "payload": {"prompt": "x", "n": None},
        "expect": {"regex": "y"},
        "periodSeconds": 11,
        "timeoutSeconds": 12,
        "failureThreshold": 13,
        "successThreshold": 14,
        "restartAfterSeconds": 15,
    },
    "handlers": {"script": {"inline": SCRIPT}, "ping": "model:p", "invocations": "model:i"},
    "frontend": {
        "image": "registry.example/f:9",
        "replicas": 3,
        "migrationLimit": 7,
        "routing": {"mode": "LeastLoaded", "sessionAffinitySeconds": 77},
        "resources": {"limits": {"memory": "2Gi"}, "requests": {"cpu": "125m"}},
        "podTemplate": {"metadata": {"annotations": {"note": "n"}}},
    },
    "strategy": {"rollingUpdate": {"maxUnavailable": "50%", "maxSurge": 1}},
}
SECOND = {
    "engine": {"config": {"configMapKeyRef": {"name": "given", "key": "c"}}},
    "cache": {
        "volumeClaimTemplate": {"size": "5Gi", "storageClassName": "slow", "accessModes": ["ReadWriteMany"]}
    },
    "healthCheck": {"level": "Standard"},
    "handlers": {"script": {"configMapKeyRef": {"name": "given", "key": "s"}}},
}
THIRD = {"cache": {"emptyDir": {"sizeLimit": "4Gi"}}}

MAIN = "spec.containers.[name=main]"
EXPECTED = {
    "first": [
        ("model.uri", "worker", f"{MAIN}.args.3", "o/n"),
        ("model.revision", "worker", f"{MAIN}.args.5", "v1"),
        ("model.name", "worker", f"{MAIN}.args.1", "served"),
        ("model.type", "worker", f"{MAIN}.env.[name=VLLMENDPOINT_MODEL_TYPE].value", "Chat"),
        (
            "model.tokenSecretRef.name",
            "worker",
            f"{MAIN}.env.[name=HF_TOKEN].valueFrom.secretKeyRef.name",
            "hub",
        ),
        ("model.tokenSecretRef.key", "worker", f"{MAIN}.env.[name=HF_TOKEN].valueFrom.secretKeyRef.key", "k"),
        (
            "model.artifactsUri",
            "worker",
            f"{MAIN}.env.[name=VLLMENDPOINT_ARTIFACTS_URI].value",
            "s3://bucket/data/",
        ),
        ("engine.args", "worker", f"{MAIN}.args.9", "7"),
        ("engine.config.inline", "config", "max-num-seqs", 3),
        ("replicas", "deployment", "spec.replicas", 2),
        ("prefill.replicas", "prefills", "spec.replicas", 3),
        ("prefill.resources.limits", "prefill", f"{MAIN}.resources.limits", {"memory": "5Gi"}),
        ("prefill.resources.requests", "prefill", f"{MAIN}.resources.requests.cpu", "375m"),
        ("prefill.engine.args", "prefill", f"{MAIN}.args.11", "9"),
        ("prefill.podTemplate", "prefill", "metadata.annotations.note", "p"),
        (
            "restartedAt",
            "deployment",
            "spec.template.metadata.annotations",
            {"serving.vllmendpoint.dev/restarted-at": "2026-01-31T12:00:00+00:00"},
        ),
        ("worker.image", "worker", f"{MAIN}.image", "registry.example/w:9"),
        ("worker.resources.limits", "worker", f"{MAIN}.resources.limits", {"nvidia.com/gpu": "1"}),
        ("worker.resources.requests", "worker", f"{MAIN}.resources.requests.cpu", "250m"),
        ("worker.env.name", "worker", f"{MAIN}.env.[name=A].name", "A"),
        ("worker.env.value", "worker", f"{MAIN}.env.[name=A].value", "a"),
        *(
            (
                f"worker.env.valueFrom.{kind}.{field}",
                "worker",
                f"{MAIN}.env.[name=FROM_{kind}].valueFrom.{kind}.{field}",
                value,
            )
            for kind, source in SOURCES.items()
            for field, value in source.items()
        ),
        *(
            (f"worker.envFrom.{field}", "worker", f"{MAIN}.envFrom", ENV_FROM)
            for field in (
                "prefix",
                "configMapRef.name",
                "configMapRef.optional",
                "secretRef.name",
                "secretRef.optional",
            )
        ),
        ("frontend.image", "frontend", f"{MAIN}.image", "registry.example/f:9"),
        ("worker.imagePullSecrets.name", "frontend", "spec.imagePullSecrets", [{"name": "pull"}]),
        ("worker.serviceAccountName", "worker", "spec.serviceAccountName", "mine"),
        ("worker.sharedMemorySize", "worker", "spec.volumes.[name=shm].emptyDir.sizeLimit", "3Gi"),
        ("worker.startupTimeoutSeconds", "worker", f"{MAIN}.startupProbe.failureThreshold", 100),
        ("worker.podTemplate", "worker", "spec.tolerations.[key=gpu]", TAINT),
        (
            "cache.persistentVolumeClaim.claimName",
            "worker",
            "spec.volumes.[name=cache].persistentVolumeClaim.claimName",
            "models",
        ),
        ("healthCheck.mode", "settings", "healthCheck.mode", "Observe"),
        ("healthCheck.payload", "settings", "healthCheck.payload", {"prompt": "x", "n": None}),
        ("healthCheck.expect.regex", "settings", "healthCheck.expect.regex", "y"),
        ("healthCheck.periodSeconds", "settings", "healthCheck.periodSeconds", 11),
        ("healthCheck.timeoutSeconds", "settings", "healthCheck.timeoutSeconds", 12),
        ("healthCheck.failureThreshold", "settings", "healthCheck.failureThreshold", 13),
        ("healthCheck.successThreshold", "settings", "healthCheck.successThreshold", 14),
        ("healthCheck.restartAfterSeconds", "settings", "healthCheck.restartAfterSeconds", 15),
        ("handlers.script.inline", "script", "", SCRIPT),
        ("handlers.ping", "settings", "handlers.ping", "model:p"),
        ("handlers.invocations", "settings", "handlers.invocations", "model:i"),
        ("frontend.replicas", "frontends", "spec.replicas", 3),
        ("frontend.resources.limits", "frontend", f"{MAIN}.resources.limits.memory", "2Gi"),
        ("frontend.resources.requests", "frontend", f"{MAIN}.resources.requests.cpu", "125m"),
        ("frontend.podTemplate", "frontend", "metadata.annotations.note", "n"),
        ("frontend.routing.mode", "frontend", f"{MAIN}.env.[name=DYN_ROUTER_MODE].value", "least-loaded"),
        (
            "frontend.routing.sessionAffinitySeconds",
            "frontend",
            f"{MAIN}.env.[name=DYN_ROUTER_SESSION_AFFINITY_TTL_SECS].value",
            "77",
        ),
        ("frontend.migrationLimit", "frontend", f"{MAIN}.env.[name=DYN_MIGRATION_LIMIT].value", "7"),
        (
            "strategy.rollingUpdate.maxUnavailable",
            "deployment",
            "spec.strategy.rollingUpdate.maxUnavailable",
            "50%",
        ),
        ("strategy.rollingUpdate.maxSurge", "deployment", "spec.strategy.rollingUpdate.maxSurge", 1),
    ],
    "second": [
        ("engine.config.configMapKeyRef.name", "config", "seed", 5),
        ("engine.config.configMapKeyRef.key", "config", "seed", 5),
        ("cache.volumeClaimTemplate.size", "claim", "spec.resources.requests.storage", "5Gi"),
        ("cache.volumeClaimTemplate.storageClassName", "claim", "spec.storageClassName", "slow"),
        ("cache.volumeClaimTemplate.accessModes", "claim", "spec.accessModes", ["ReadWriteMany"]),
        ("healthCheck.level", "settings", "healthCheck.level", "Standard"),
        ("handlers.script.configMapKeyRef.name", "script", "", "b = 2\n"),
        ("handlers.script.configMapKeyRef.key", "script", "", "b = 2\n"),
    ],
    "third": [("cache.emptyDir.sizeLimit", "worker", "spec.volumes.[name=cache].emptyDir.sizeLimit", "4Gi")],
}
TESTED_ELSEWHERE = {"frontend.mode", "paused"}
"""Both remove objects: test_fields tests them."""


@pytest.fixture(scope="module")
def objects(shared, make_endpoints, api, until):
    """``objects["first"]["worker"]`` is a worker pod of the endpoint with the spec FIRST, and so on."""
    api.create("ConfigMap", "shared", "given", data={"c": "seed: 5\n", "s": "b = 2\n"})
    api.create("ServiceAccount", "shared", "mine")
    found = {}
    for name, spec in (("first", FIRST), ("second", SECOND), ("third", THIRD)):
        endpoint = make_endpoints().create(**spec)
        (worker, *_) = until(endpoint.pods, "its workers")
        (frontend, *_) = until(lambda: endpoint.pods("frontend"), "its frontend")  # noqa: B023
        prefill = until(lambda: endpoint.pods("prefill"), "prefill workers")[0] if name == "first" else None  # noqa: B023
        settings = endpoint.child("ConfigMap", "-settings")["data"]
        mounted = [v for v in worker["spec"]["volumes"] if v["name"] == "engine-config"]
        config = api.get("ConfigMap", "shared", mounted[0]["configMap"]["name"]) if mounted else None
        found[name] = {
            "endpoint": endpoint,
            "worker": worker,
            "frontend": frontend,
            "prefill": prefill,
            "prefills": endpoint.child("Deployment", "-prefill"),
            "deployment": endpoint.child("Deployment", "-workers"),
            "frontends": endpoint.child("Deployment", "-frontend"),
            "settings": json.loads(settings["settings.json"]),
            "script": settings.get("model.py"),
            "config": yaml.safe_load(config["data"]["config.yaml"]) if config else None,
            "claim": endpoint.child("PersistentVolumeClaim", "-cache"),
        }
    return found


CASES = [(spec, *case) for spec, cases in EXPECTED.items() for case in cases]


@pytest.mark.parametrize(("spec", "field", "kind", "path", "value"), CASES, ids=[case[1] for case in CASES])
def test_a_field_of_the_spec_is_in_the_child_objects(objects, spec, field, kind, path, value):
    found = objects[spec][kind]
    assert (walk(found, path) if path else found) == value


def leaves(node, path=()):
    properties = node.get("properties") or node.get("items", {}).get("properties")
    if not properties:
        return {".".join(path)}
    return {leaf for name, value in properties.items() for leaf in leaves(value, (*path, name))}


(VERSION,) = custom_resource_definition()["spec"]["versions"]
PROPERTIES = VERSION["schema"]["openAPIV3Schema"]["properties"]


def test_every_field_of_the_spec_has_a_case():
    assert {case[1] for case in CASES} | TESTED_ELSEWHERE == leaves(PROPERTIES["spec"])


def paths_with_values(value, path=()):
    """Paths of ``value`` that have a value; the items of a list have the path of the list."""
    if isinstance(value, dict) and value and path != ("healthCheck", "payload"):
        return {leaf for name, inner in value.items() for leaf in paths_with_values(inner, (*path, name))}
    if isinstance(value, list):
        return {leaf for item in value for leaf in paths_with_values(item, path)}
    return set() if value in ("", None) else {".".join(path)}


def test_every_field_of_the_status_is_written(objects, until):
    endpoint = objects["first"]["endpoint"]
    workers = endpoint.start_all(2)
    for pod in endpoint.pods("prefill"):
        endpoint.start_worker(pod)
    ignored = [{"source": "Environment", "reason": "outranked"}]
    handler = {"source": "Environment", "handler": "model:f"}
    for worker in workers:
        worker.send_report(
            healthCheck__ignored=ignored,
            healthCheck__payloadDigest="d",
            healthCheck__level="Minimal",
            handlers={"ping": handler, "invocations": handler, "scriptDigest": "d"},
        )
    workers[0].send_report("Stalled", verdict__reason="EngineStalled")
    endpoint.frontends[0].send_report(answering=False, ready=False)
    for pod in [*endpoint.pods(), *endpoint.pods("prefill"), *endpoint.pods("frontend")]:
        target = {"metadata": {"name": pod["metadata"]["name"]}, "target": {"kind": "Node", "name": "n"}}
        path = endpoint.api.path("Pod", endpoint.namespace, pod["metadata"]["name"])
        endpoint.api.call("POST", f"{path}/binding", target)
    endpoint.until("Generating", "False")
    expected = leaves(PROPERTIES["status"])
    until(
        lambda: expected == paths_with_values(endpoint.get()["status"]) & expected,
        lambda: f"missing: {expected - paths_with_values(endpoint.get()['status'])}",
    )
