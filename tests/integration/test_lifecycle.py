"""The lifecycle of an endpoint: its children and their owner references, and the writes of the operator."""

import json
import time

import pytest

from tests.integration.operator_effects import QuietPeriod
from vllmendpoint_operator.controller.publish.status_write_limiter import WRITE_INTERVAL_SECONDS


def test_an_endpoint_gets_all_children_and_becomes_ready(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create(replicas=1, healthCheck={"level": "Standard"})
    first = until(lambda: endpoint.get().get("status", {}).get("conditions"))
    assert len(first) == 10, "the first status write contains all conditions"
    assert all(entry["reason"] for entry in first)
    endpoint.start_all()
    ready = endpoint.until("Ready", "True")
    assert ready["reason"] == "Ready"
    found = endpoint.get()
    status = found["status"]
    assert status["observedGeneration"] == found["metadata"]["generation"] == 1
    assert (status["replicas"], status["readyReplicas"], status["generatingReplicas"]) == (1, 1, 1)
    assert status["routedReplicas"] == 1
    assert [entry["routedReplicas"] for entry in status["frontends"]] == [1]
    assert status["modelName"] == endpoint.name
    assert status["workers"][0]["verdict"] == "Generating"
    kinds = sorted(
        (obj["kind"], obj["metadata"]["name"].removeprefix(endpoint.name)) for obj in endpoint.owned()
    )
    assert [item for item in kinds if item[0] != "ControllerRevision"] == [
        ("ConfigMap", "-settings"),
        ("Deployment", "-frontend"),
        ("Deployment", "-workers"),
        ("NetworkPolicy", "-frontend"),
        ("NetworkPolicy", "-workers"),
        ("RoleBinding", "-frontend"),
        ("RoleBinding", "-workers"),
        ("Service", ""),
        ("Service", "-workers"),
        ("ServiceAccount", "-frontend"),
        ("ServiceAccount", "-workers"),
    ]
    for obj in endpoint.owned():
        (owner,) = obj["metadata"]["ownerReferences"]
        assert (owner["controller"], owner["blockOwnerDeletion"]) == (True, True)
        assert owner["uid"] == found["metadata"]["uid"]


def test_kubectl_waits_for_ready_and_shows_the_columns(shared, make_endpoint, api):
    endpoint = make_endpoint().create(model={"uri": "hf://o/n", "name": "the-model"})
    endpoint.start_all()
    resource = ("-n", "shared", "vep", endpoint.name)
    api.kubectl("wait", "--for=condition=Ready", "--timeout=20s", *resource)
    header, row = api.kubectl("get", *resource).splitlines()
    assert header.split() == ["NAME", "MODEL", "READY", "REPLICAS", "GENERATING", "ROUTED", "REASON", "AGE"]
    assert row.split()[:7] == [endpoint.name, "the-model", "True", "1", "1", "1", "Ready"]
    header, row = api.kubectl("get", *resource, "-o", "wide").splitlines()
    assert header.split()[8:] == ["URL", "PAYLOAD", "HANDLERS"]
    assert row.split()[8:] == [f"http://{endpoint.name}.shared.svc:8000/v1", "ModelDefault", "Default"]


def test_an_unchanged_endpoint_causes_no_requests(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create()
    endpoint.start_all()
    endpoint.until("Ready", "True")
    wait_until_settled(api, "shared", until)
    offset = api.audit_offset()
    endpoint.patch(metadata={"annotations": {"unrelated": "1"}})
    time.sleep(2)  # there is no event to wait for
    # All endpoints are listed periodically, in case the watch missed one.
    requests = [(e["verb"], e["objectRef"]["resource"]) for e in api.requests(offset, namespace="shared")]
    assert set(requests) <= {("list", "vllmendpoints")}


def wait_until_settled(api, namespace, until):
    """Wait until operators send no request for longer than a status write may be delayed."""
    until(QuietPeriod(api, namespace, WRITE_INTERVAL_SECONDS + 1), "the operator sends no more requests")


def test_a_restart_of_the_operator_writes_nothing(operate, make_endpoint, api, namespace, until):
    operator = operate(namespace).until_leading()
    endpoint = make_endpoint(namespace).create(engine={"config": {"inline": {"seed": 1}}}, replicas=2)
    endpoint.start_all(2)
    endpoint.until("Ready", "True")
    complete = {"readyReplicas": 2, "generatingReplicas": 2}  # one of two is enough for Ready
    until(lambda: complete.items() <= endpoint.get()["status"].items(), "both generate")
    wait_until_settled(api, namespace, until)
    before = endpoint.get()
    assert operator.stop() == 0
    offset = api.audit_offset()
    operate(namespace).until_leading()
    until(
        lambda: all(worker.connections == 2 for worker in endpoint.started),
        "both workers are connected again",
    )
    wait_until_settled(api, namespace, until)
    assert api.writes(offset, namespace=namespace) == []
    assert endpoint.get()["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


@pytest.mark.parametrize(
    ("kind", "suffix", "edit", "path"),
    [
        ("Service", "", {"spec": {"selector": {"app.kubernetes.io/component": "x"}}}, ("spec", "selector")),
        ("Service", "", {"spec": {"selector": {"one": "more"}}}, ("spec", "selector")),
        ("Deployment", "-workers", {"spec": {"replicas": 5}}, ("spec", "replicas")),
        ("Deployment", "-workers", {"spec": {"paused": True}}, ("spec", "paused")),
        ("Deployment", "-frontend", {"spec": {"paused": True}}, ("spec", "paused")),
        ("ConfigMap", "-settings", {"data": {"settings.json": "{}"}}, ("data",)),
        ("RoleBinding", "-workers", {"subjects": []}, ("subjects",)),
        ("NetworkPolicy", "-workers", {"spec": {"ingress": [{}]}}, ("spec", "ingress")),
        (
            "NetworkPolicy",
            "-workers",
            {"spec": {"podSelector": {"matchLabels": {"one": "more"}}}},
            ("spec", "podSelector"),
        ),
        (
            "Service",
            "-workers",
            {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}},
            ("metadata", "labels"),
        ),
        (
            "Service",
            "-workers",
            {"metadata": {"labels": {"app.kubernetes.io/instance": "x"}}},
            ("metadata", "labels"),
        ),
    ],
)
def test_drift_is_reverted(shared, settled_endpoint, api, until, kind, suffix, edit, path):
    endpoint = settled_endpoint

    def value():
        found = endpoint.child(kind, suffix)
        for step in path:
            found = found.get(step)
        return found

    before = value()
    api.patch(kind, "shared", endpoint.name + suffix, edit)
    until(lambda: value() == before, value)


@pytest.mark.parametrize(
    ("kind", "suffix"), [("Service", ""), ("Deployment", "-frontend"), ("ServiceAccount", "-workers")]
)
def test_a_deleted_child_is_recreated(shared, settled_endpoint, api, until, kind, suffix):
    endpoint = settled_endpoint
    old = endpoint.child(kind, suffix)["metadata"]["uid"]
    api.delete(kind, "shared", endpoint.name + suffix)
    until(lambda: (new := endpoint.child(kind, suffix)) and new["metadata"]["uid"] != old, f"another {kind}")
    assert endpoint.condition("Accepted")["status"] == "True"


def test_additions_of_other_clients_are_no_drift(shared, settled_endpoint, api, until):
    endpoint = settled_endpoint
    deployment = endpoint.child("Deployment", "-frontend")
    containers = deployment["spec"]["template"]["spec"]["containers"]
    containers[0]["env"].append({"name": "ADDED", "value": "manually"})
    body = {
        "metadata": {"annotations": {"a": "b"}},
        "spec": {"template": {"spec": {"containers": containers}}},
    }
    ports = endpoint.child("Service")["spec"]["ports"]
    ports.append({"name": "more", "port": 9000, "protocol": "TCP"})
    offset = api.audit_offset()
    api.patch("Deployment", "shared", f"{endpoint.name}-frontend", body)
    api.patch("Service", "shared", endpoint.name, {"spec": {"ports": ports}})
    until(lambda: len(endpoint.pods("frontend")) >= 1)
    wait_until_settled(api, "shared", until)
    written = [write for write in api.writes(offset, namespace="shared") if endpoint.name in write]
    assert not [write for write in written if "deployments" in write or "services" in write]
    assert len(endpoint.child("Service")["spec"]["ports"]) == 2


@pytest.fixture(scope="module")
def settled_endpoint(shared, make_endpoints):
    endpoint = make_endpoints().create()
    endpoint.until("Available", "False", "Starting")
    return endpoint


def test_changing_the_health_check_does_not_restart_workers(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create()
    (worker,) = endpoint.start_all()
    endpoint.until("Ready", "True")
    deployment = endpoint.child("Deployment", "-workers")
    offset = api.audit_offset()
    endpoint.patch(spec={"healthCheck": {"periodSeconds": 7, "payload": {"prompt": "x", "max_tokens": 2}}})

    def settings():
        return json.loads(endpoint.child("ConfigMap", "-settings")["data"]["settings.json"])

    until(lambda: settings()["healthCheck"].get("periodSeconds") == 7, settings)
    pending = endpoint.until("ConfigurationResolved", "Unknown", "Pending")
    assert "1 of 1 worker has not applied the current settings yet" in pending["message"]
    (pod,) = endpoint.pods()
    annotations = until(lambda: endpoint.pods()[0]["metadata"].get("annotations"))
    assert annotations["serving.vllmendpoint.dev/settings-hash"] == settings()["hash"]
    worker.send_report(configuration__settingsHash=settings()["hash"])
    endpoint.until("Ready", "True")
    after = endpoint.child("Deployment", "-workers")
    assert after["metadata"]["generation"] == deployment["metadata"]["generation"]
    assert endpoint.pods()[0]["metadata"]["uid"] == pod["metadata"]["uid"]
    assert not [write for write in api.writes(offset, namespace="shared") if "deployments" in write]


def test_scaling_changes_only_the_replicas(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create()
    endpoint.start_all()
    endpoint.until("Ready", "True")
    endpoint.until_event("Ready")
    before = endpoint.child("Deployment", "-workers")
    offset = api.audit_offset()
    api.kubectl("scale", "-n", "shared", "vep", endpoint.name, "--replicas=3")
    until(lambda: len(endpoint.pods()) == 3, "three pods")
    after = endpoint.child("Deployment", "-workers")
    assert after["spec"] == {**before["spec"], "replicas": 3}
    written = {write for write in api.writes(offset, namespace="shared") if endpoint.name in write}
    assert written <= {
        f"patch deployments {endpoint.name}-workers",
        f"patch poddisruptionbudgets {endpoint.name}-workers",
        f"patch vllmendpoints {endpoint.name}",
    }
    api.kubectl("scale", "-n", "shared", "vep", endpoint.name, "--replicas=0")
    endpoint.until("Ready", "True", "ScaledToZero")
