"""The operator neither reads nor copies secret values."""

import json

CANARY = "canary-5d7e"


def test_no_secret_is_read_or_copied(operate, make_endpoint, api, namespace, until):
    operator = operate(namespace, log_level="DEBUG").until_leading()
    secret = {"metadata": {"name": "hub"}, "stringData": {"key": f"{CANARY}-of-the-secret"}}
    api.call("POST", f"/api/v1/namespaces/{namespace}/secrets", secret)
    offset = api.audit_offset()
    endpoint = make_endpoint(namespace).create(
        model={"uri": "hf://o/n", "tokenSecretRef": {"name": "hub", "key": "key"}},
        worker={"env": [{"name": "TOKEN", "value": f"{CANARY}-of-the-variable"}]},
        engine={"config": {"inline": {"seed": 1}}},
    )
    (worker,) = endpoint.start_all()
    endpoint.until("Ready", "True")
    worker.send_report("Failing")
    endpoint.until("Generating", "False", "ProbeFailed")
    until(lambda: api.all("Event", namespace), "its Events")
    requested = {entry["objectRef"]["resource"] for entry in api.requests(offset, namespace=namespace)}
    assert "secrets" not in requested
    assert {"configmaps", "deployments", "events"} <= requested
    (pod,) = endpoint.pods()
    env = {item["name"]: item for item in pod["spec"]["containers"][0]["env"]}
    assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "key"}
    for kind in ("ConfigMap", "Event", "Service", "NetworkPolicy", "RoleBinding", "ServiceAccount", "Lease"):
        assert CANARY not in json.dumps(api.all(kind, namespace)), kind
    assert CANARY not in json.dumps(endpoint.get()["status"])
    assert CANARY not in operator.text()
