"""Changes of an endpoint's objects by other clients, admission policies and autoscalers."""

import time

import pytest


def wait_without_writes(endpoint, api):
    """Wait for six seconds without a write of the operator: a status write may be delayed for five."""
    for _ in range(10):
        offset = api.audit_offset()
        time.sleep(6)
        if not [w for w in api.writes(offset, namespace=endpoint.namespace) if endpoint.name in w]:
            return
    raise AssertionError("the operator does not stop writing")


def writes_of_reconciles(endpoint, api, times=5):
    """Writes of the operator in several reconciles, each after a change of a label of the endpoint."""
    wait_without_writes(endpoint, api)
    offset = api.audit_offset()
    for number in range(times):
        endpoint.patch(metadata={"labels": {"reconcile": str(number)}})
        time.sleep(0.3)
    time.sleep(1.5)
    return [write for write in api.writes(offset, namespace=endpoint.namespace) if endpoint.name in write]


REJECTED = {
    "an argument of the podTemplate": {
        "worker": {"podTemplate": {"spec": {"containers": [{"name": "main", "args": ["x"]}]}}}
    },
    "a field that the API server does not know": {
        "worker": {"podTemplate": {"spec": {"containerz": [{"name": "x"}]}}}
    },
    "a reference that is missing": {
        "handlers": {"script": {"configMapKeyRef": {"name": "not-there", "key": "model.py"}}}
    },
}


@pytest.mark.parametrize("rejected", REJECTED)
def test_replicas_are_applied_while_the_spec_is_rejected(shared, make_endpoint, api, until, rejected):
    endpoint = make_endpoint().create(replicas=2)
    endpoint.start_all(2)
    endpoint.until("Ready", "True")
    before = endpoint.child("Deployment", "-workers")
    endpoint.patch(spec=REJECTED[rejected])
    endpoint.until("Stalled", "True")
    api.kubectl("scale", "-n", "shared", "vep", endpoint.name, "--replicas=3")
    until(lambda: len(endpoint.pods()) == 3, "three pods")
    after = endpoint.child("Deployment", "-workers")
    assert after["spec"] == {**before["spec"], "replicas": 3}
    assert endpoint.child("PodDisruptionBudget", "-workers")
    until(lambda: endpoint.get()["status"]["replicas"] == 3, "the scale subresource follows")
    api.kubectl("scale", "-n", "shared", "vep", endpoint.name, "--replicas=0")
    endpoint.until("Available", "True", "ScaledToZero")
    assert [pod for pod in endpoint.pods() if "deletionTimestamp" not in pod["metadata"]] == []
    assert endpoint.condition("Ready")["status"] == "False", "the spec is still rejected"
    until(lambda: endpoint.child("PodDisruptionBudget", "-workers") is None, "no budget without replicas")
    # After the correction the whole spec is applied, and no field of the rejected one remains.
    endpoint.patch(spec={"worker": None, "handlers": None, "replicas": 1})
    endpoint.until("Accepted", "True")
    until(lambda: len(endpoint.pods()) == 1, "one pod")
    template = endpoint.child("Deployment", "-workers")["spec"]["template"]
    assert template == before["spec"]["template"]
    assert endpoint.events("ChangeReverted") == []


def test_replicas_are_applied_despite_a_name_conflict(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create()
    endpoint.until("Accepted", "True")
    until(endpoint.pods, "its pod")
    endpoint.patch(spec={"paused": True})
    endpoint.until("UpToDate", "False", "Paused")
    api.delete("Service", "shared", f"{endpoint.name}-workers")
    spec = {"ports": [{"port": 1}], "selector": {"a": "b"}}
    api.create("Service", "shared", f"{endpoint.name}-workers", spec=spec)
    try:
        endpoint.patch(spec={"paused": False, "replicas": 2})
        conflict = endpoint.until("Accepted", "False", "NameTaken")
        assert "exists and does not belong to this endpoint" in conflict["message"]
        until(lambda: len(endpoint.pods()) == 2, "two pods")
    finally:
        api.delete("Service", "shared", f"{endpoint.name}-workers")


def test_quantities_are_compared_in_their_stored_form(shared, make_endpoint, api, until):
    amounts = {"cpu": "1.5m", "memory": "0.5", "ephemeral-storage": "1e3"}
    sidecar = {"name": "s", "image": "x", "resources": {"requests": {"cpu": 0.0015, "memory": "100000001n"}}}
    scratch = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1.0005"}}}
    endpoint = make_endpoint().create(
        worker={
            "resources": {"requests": amounts, "limits": {"memory": "16Ei"}},
            "sharedMemorySize": "1.5",
            "podTemplate": {
                "spec": {
                    "containers": [sidecar],
                    "volumes": [
                        {"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": scratch}}},
                        {"name": "e", "emptyDir": {"sizeLimit": "0.0000000001"}},
                    ],
                }
            },
        },
        frontend={"resources": {"limits": {"cpu": "0.0101"}}},
        cache={"volumeClaimTemplate": {"size": "1000000000.5"}},
    )
    endpoint.until("Accepted", "True")
    until(lambda: endpoint.child("Deployment", "-workers"), "its Deployment")
    assert writes_of_reconciles(endpoint, api) == []
    assert endpoint.events("AdmissionChangeAccepted") == []


@pytest.fixture
def mirror(api):
    """A policy that replaces images ``mirrored/...`` in Deployments, as for a registry mirror."""
    names = ("mutatingadmissionpolicies", "mutatingadmissionpolicybindings")
    at = "/spec/template/spec/containers/0/image"
    replacement = f"[JSONPatch{{op: 'replace', path: '{at}', value: 'mirror.example/worker:1'}}]"
    root = "/apis/admissionregistration.k8s.io/v1"
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": "mirror"},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": ["apps"],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["deployments"],
                    }
                ]
            },
            "matchConditions": [
                {
                    "name": "is-mirrored",
                    "expression": "object.spec.template.spec.containers[0].image.startsWith('mirrored/')",
                }
            ],
            "reinvocationPolicy": "Never",
            "failurePolicy": "Fail",
            "mutations": [
                {
                    "patchType": "JSONPatch",
                    "jsonPatch": {"expression": replacement},
                }
            ],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": "mirror"},
        "spec": {"policyName": "mirror"},
    }
    for name, body in zip(names, (policy, binding), strict=True):
        api.call("POST", f"{root}/{name}", body)
    time.sleep(3)  # the API server compiles it
    yield
    for name in names:
        api.call("DELETE", f"{root}/{name}/mirror")


def image(endpoint, part="-workers"):
    return endpoint.child("Deployment", part)["spec"]["template"]["spec"]["containers"][0]["image"]


def test_the_change_of_a_mutating_policy_is_accepted_with_an_event(
    operate, namespace, mirror, make_endpoint, api, until
):
    operator = operate(namespace).until_leading()
    endpoint = make_endpoint(namespace).create(
        worker={"image": "mirrored/worker:1"}, frontend={"image": "mirrored/worker:1"}
    )
    until(lambda: endpoint.child("Deployment", "-frontend"), "its last Deployment")
    assert image(endpoint) == image(endpoint, "-frontend") == "mirror.example/worker:1"
    until(lambda: len(endpoint.events("AdmissionChangeAccepted")) == 2, "an Event for each Deployment")
    assert writes_of_reconciles(endpoint, api) == []
    messages = {event["message"] for event in endpoint.events("AdmissionChangeAccepted")}
    assert any(
        text.startswith(
            "The API server stores another value for spec.template.spec.containers[main].image of the "
            f"Deployment {endpoint.name}-workers than the operator applied"
        )
        for text in messages
    )
    # The next operator accepts the change, too.
    assert operator.stop() == 0
    offset = api.audit_offset()
    operate(namespace).until_leading()
    until(lambda: api.requests(offset, namespace=namespace), "its first reconcile")
    time.sleep(3)
    assert [w for w in api.writes(offset, namespace=namespace) if endpoint.name in w] == []
    # Another value of the same field is reverted, with an Event.
    api.kubectl("set", "image", "-n", namespace, f"deployment/{endpoint.name}-workers", "main=other:1")
    assert image(endpoint) == "other:1", "the policy does not change other images"
    until(lambda: image(endpoint) == "mirror.example/worker:1", lambda: image(endpoint))
    (event,) = until(lambda: endpoint.events("ChangeReverted"), "an Event")
    assert event["message"].startswith(
        "Field manager kubectl-set changed spec.template.spec.containers[main]"
    )
    assert writes_of_reconciles(endpoint, api) == []


def test_a_change_by_another_client_is_reverted_with_one_event(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create()
    until(lambda: endpoint.child("Deployment", "-frontend"), "its Deployments")
    before = image(endpoint)
    for number in range(3):
        api.kubectl("set", "image", "-n", "shared", f"deployment/{endpoint.name}-workers", f"main=x:{number}")
        until(lambda: image(endpoint) == before, lambda: image(endpoint))
    (event,) = until(lambda: endpoint.events("ChangeReverted"), "an Event")
    assert event["type"] == "Warning"
    assert event["message"] == (
        "Field manager kubectl-set changed spec.template.spec.containers[main].image of the Deployment "
        f"{endpoint.name}-workers. The operator has restored what the VLLMEndpoint specifies. Set "
        "spec.worker.image of the VLLMEndpoint instead."
    )


def test_repeated_changes_by_an_autoscaler_are_reverted_with_one_event(shared, make_endpoint, api, until):
    """Writes to the scale subresource of the Deployment, as from a HorizontalPodAutoscaler."""
    endpoint = make_endpoint().create()
    until(lambda: endpoint.child("Deployment", "-workers"), "its Deployment")
    path = f"{api.path('Deployment', 'shared', f'{endpoint.name}-workers')}/scale"

    def replicas():
        return endpoint.child("Deployment", "-workers")["spec"]["replicas"]

    for _ in range(4):
        body = {"spec": {"replicas": 3}}
        api.call("PATCH", f"{path}?fieldManager=kube-controller-manager", body, as_="merge")
        until(lambda: replicas() == 1, replicas)
    (event,) = until(lambda: endpoint.events("ChangeReverted"), "an Event")
    assert event["message"] == (
        "Field manager kube-controller-manager changed spec.replicas of the Deployment "
        f"{endpoint.name}-workers. The operator has restored what the VLLMEndpoint specifies. Set "
        "spec.replicas of the VLLMEndpoint instead. An autoscaler must name the VLLMEndpoint in its "
        "scaleTargetRef."
    )


def test_a_removed_field_is_reverted_with_an_event_although_it_has_no_manager(
    shared, make_endpoint, api, until
):
    endpoint = make_endpoint().create()
    path = api.path("PodDisruptionBudget", "shared", f"{endpoint.name}-workers")
    endpoint.patch(spec={"replicas": 2})
    until(lambda: endpoint.child("PodDisruptionBudget", "-workers"), "its budget")
    removed = {"spec": {"unhealthyPodEvictionPolicy": None}}
    api.call("PATCH", f"{path}?fieldManager=another-client", removed, as_="merge")
    (event,) = until(lambda: endpoint.events("ChangeReverted"), "an Event")
    assert event["message"].startswith("Another client changed spec.unhealthyPodEvictionPolicy of the Pod")
