"""Pods that the real admission plugins reject."""

import pytest

FRONTEND_DOWN = "0 of 1 frontend pod is ready, so the endpoint accepts no requests. "


@pytest.fixture
def restricted(shared, api):
    """The shared namespace under Pod Security "restricted", which the operator's pods satisfy."""
    label = "pod-security.kubernetes.io/enforce"
    api.kubectl("label", "namespace", "shared", f"{label}=restricted", "--overwrite")
    yield
    api.kubectl("label", "namespace", "shared", f"{label}-")


def test_a_rejection_by_pod_security_is_reported(restricted, make_endpoint, until):
    privileged = {
        "spec": {"containers": [{"name": "main", "securityContext": {"allowPrivilegeEscalation": True}}]}
    }
    endpoint = make_endpoint().create(worker={"podTemplate": privileged})
    found = endpoint.until("Available", "False", "PodCreationFailed")
    assert (
        f"Kubernetes cannot create pods of the Deployment {endpoint.name}-workers: pods " in found["message"]
    )
    assert 'violates PodSecurity "restricted:latest": ' in found["message"]
    assert "allowPrivilegeEscalation" in found["message"]
    assert found["message"].endswith(
        "Change worker.podTemplate, or lower the Pod Security level of the namespace."
    )
    endpoint.until("Ready", "False", "PodCreationFailed")
    endpoint.patch(spec={"worker": {"podTemplate": None}})
    until(endpoint.pods, "its pod")
    endpoint.until("Available", "False", "Starting")


def test_a_rollout_that_exceeds_a_quota_is_stopped(shared, make_endpoint, api, until):
    """With a surge of 1 and a quota for the running pods, no pod can be created, and the old ones serve."""
    rolling = {"maxUnavailable": 0, "maxSurge": 1}
    endpoint = make_endpoint().create(strategy={"rollingUpdate": rolling}, frontend={"mode": "None"})
    (pod,) = until(endpoint.pods, "its pod")
    endpoint.start_worker(pod)
    endpoint.until("Ready", "True")
    path = "/api/v1/namespaces/shared/resourcequotas"
    hard = {"spec": {"hard": {"pods": "0"}}}
    api.call("POST", path, {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "r"}, **hard})
    try:
        until(lambda: api.call("GET", f"{path}/r").get("status", {}).get("hard"), "the quota is active")
        endpoint.patch(spec={"worker": {"image": "registry.example/worker:next"}})
        stopped = endpoint.until("UpToDate", "False", "RolloutStopped")
        assert stopped["message"].startswith(
            "0 of 1 replica runs the current revision, and 1 replica of an older revision remains. "
            "The rollout is stopped, and 1 of 1 replica continues to serve. "
            f"Kubernetes cannot create pods of the Deployment {endpoint.name}-workers: pods "
        )
        assert stopped["message"].endswith(
            ". Raise the ResourceQuota, or lower replicas or strategy.rollingUpdate.maxSurge."
        )
        assert endpoint.condition("Available")["status"] == "True"
    finally:
        api.call("DELETE", f"{path}/r")


@pytest.fixture
def limit(operate, namespace, api, until):
    """``limit(kind, spec)`` creates a ResourceQuota or a LimitRange in a namespace without pods."""
    operate(namespace).until_leading()

    def make(kind, spec):
        path = f"/api/v1/namespaces/{namespace}/{kind.lower()}s"
        api.call(
            "POST", path, {"apiVersion": "v1", "kind": kind, "metadata": {"name": "bounds"}, "spec": spec}
        )
        if kind == "ResourceQuota":
            until(
                lambda: api.call("GET", f"{path}/bounds").get("status", {}).get("hard"), "the quota is active"
            )

    return make


def test_a_frontend_that_exceeds_a_quota_is_reported_while_the_workers_start(
    limit, namespace, make_endpoint, until
):
    limit("ResourceQuota", {"hard": {"requests.cpu": "1"}})
    endpoint = make_endpoint(namespace).create(worker={"resources": {"requests": {"cpu": "100m"}}})
    (pod,) = until(endpoint.pods, "its worker")
    endpoint.set_pod_status(pod, ready=False, started=False)
    found = endpoint.until("Available", "False", "FrontendUnavailable")
    assert found["message"].startswith(
        f"0 of 1 replica is ready (minimum: 1). Pod {pod['metadata']['name']} is starting"
    )
    assert (
        f" {FRONTEND_DOWN}Kubernetes cannot create pods of the Deployment {endpoint.name}-frontend: pods "
        in found["message"]
    )
    assert found["message"].endswith(
        "failed quota: bounds: must specify requests.cpu for: main. The ResourceQuota bounds requires these "
        "fields: set frontend.resources.requests.cpu."
    )
    endpoint.until("Ready", "False", "FrontendUnavailable")
    endpoint.patch(spec={"frontend": {"resources": {"requests": {"cpu": "2"}}}})

    def is_reported():
        return endpoint.condition("Available")["message"].endswith(
            ". Raise the ResourceQuota, or lower frontend.resources.requests.cpu."
        )

    until(is_reported, lambda: endpoint.condition("Available"))
    endpoint.patch(spec={"frontend": {"resources": {"requests": {"cpu": "100m"}}}})
    until(lambda: endpoint.pods("frontend"), "its frontend")
    endpoint.until("Available", "False", "Starting")


def test_a_quota_of_one_pod_names_the_component_without_pods(limit, namespace, make_endpoint, until):
    limit("ResourceQuota", {"hard": {"pods": "1"}})
    endpoint = make_endpoint(namespace).create()
    until(lambda: endpoint.pods() or endpoint.pods("frontend"), "its only pod")
    if endpoint.pods():
        found = endpoint.until("Available", "False", "FrontendUnavailable")
        assert found["message"].endswith(" or lower frontend.replicas.")
    else:
        found = endpoint.until("Available", "False", "PodCreationFailed")
        assert " or lower replicas or strategy.rollingUpdate.maxSurge." in found["message"]
    assert "exceeded quota: bounds, requested: pods=1" in found["message"]


def test_a_rejection_by_a_limit_range_names_the_field(limit, namespace, make_endpoint, until):
    limit(
        "LimitRange",
        {"limits": [{"type": "Container", "min": {"cpu": "100m"}, "max": {"memory": "1Gi"}}]},
    )
    endpoint = make_endpoint(namespace).create(
        worker={"resources": {"requests": {"cpu": "50m"}, "limits": {"memory": "2Gi"}}},
        frontend={"resources": {"requests": {"cpu": "50m"}, "limits": {"memory": "64Mi"}}},
    )
    # The Deployment controller creates the pods of workers and frontend one after the other.
    until(lambda: FRONTEND_DOWN in endpoint.condition("Available").get("message", ""), endpoint.get)
    found = endpoint.until("Available", "False", "PodCreationFailed")
    worker, _, frontend = found["message"].partition(f" {FRONTEND_DOWN}")
    assert "worker.resources.requests.cpu to at least 100m" in worker
    assert "worker.resources.limits.memory to at most 1Gi" in worker
    assert frontend.endswith(
        "The namespace has a LimitRange: set frontend.resources.requests.cpu to at least 100m."
    )
