"""Pods that the real admission plugins refuse."""

import pytest


@pytest.fixture
def restricted(shared, api):
    """The shared namespace under Pod Security "restricted"; our own pods keep to it."""
    label = "pod-security.kubernetes.io/enforce"
    api.kubectl("label", "namespace", "shared", f"{label}=restricted", "--overwrite")
    yield
    api.kubectl("label", "namespace", "shared", f"{label}-")


def test_pod_security_that_refuses(restricted, space, until):
    loose = {
        "spec": {"containers": [{"name": "main", "securityContext": {"allowPrivilegeEscalation": True}}]}
    }
    endpoint = space().create(worker={"podTemplate": loose})
    found = endpoint.until("Available", "False", "PodCreationFailed")
    assert "pods cannot be created: pods " in found["message"]
    assert 'violates PodSecurity "restricted:latest": ' in found["message"]
    assert "allowPrivilegeEscalation" in found["message"]
    assert found["message"].endswith(
        "Mend worker.podTemplate, or have the namespace's Pod Security level lowered."
    )
    endpoint.until("Ready", "False", "PodCreationFailed")
    endpoint.patch(spec={"worker": {"podTemplate": None}})
    until(endpoint.pods, "its pod")
    endpoint.until("Available", "False", "Starting")


def test_a_rollout_for_which_the_quota_has_no_room(shared, space, api, until):
    """Surge 1 with a quota for what runs: nothing new can come, and what serves goes on."""
    rolling = {"maxUnavailable": 0, "maxSurge": 1}
    endpoint = space().create(strategy={"rollingUpdate": rolling}, frontend={"mode": "None"})
    (pod,) = until(endpoint.pods, "its pod")
    endpoint.work(pod)
    endpoint.until("Ready", "True")
    path = "/api/v1/namespaces/shared/resourcequotas"
    hard = {"spec": {"hard": {"pods": "0"}}}
    api.call("POST", path, {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "r"}, **hard})
    try:
        until(lambda: api.call("GET", f"{path}/r").get("status", {}).get("hard"), "the quota in force")
        endpoint.patch(spec={"worker": {"image": "registry.example/worker:next"}})
        stopped = endpoint.until("UpToDate", "False", "RolloutStopped")
        assert stopped["message"].startswith(
            "0 of 1 replicas run the current revision, 1 of an older one left; the rollout waits, 1 "
            "of 1 serve "
            "on: pods cannot be created: pods "
        )
        assert stopped["message"].endswith("Raise the ResourceQuota, or ask for less.")
        assert endpoint.condition("Available")["status"] == "True"
    finally:
        api.call("DELETE", f"{path}/r")
