"""What others, admission policies and autoscalers do to an endpoint's objects, on a real API server."""

import time

import pytest


def settle(endpoint, api):
    """Wait until nothing is written any more: a step of a status waits for up to five seconds."""
    for _ in range(10):
        mark = api.audit_offset()
        time.sleep(6)
        if not [w for w in api.writes(mark, namespace=endpoint.namespace) if endpoint.name in w]:
            return
    raise AssertionError("the operator writes without end")


def looked_at(endpoint, api, times=5):
    """Writes of the operator while a label of the endpoint changes that often: a look each time."""
    settle(endpoint, api)
    mark = api.audit_offset()
    for number in range(times):
        endpoint.patch(metadata={"labels": {"look": str(number)}})
        time.sleep(0.3)
    time.sleep(1.5)
    return [write for write in api.writes(mark, namespace=endpoint.namespace) if endpoint.name in write]


REFUSED = {
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


@pytest.mark.parametrize("refused", REFUSED)
def test_replicas_apply_while_the_spec_is_refused(shared, make_endpoint, api, until, refused):
    endpoint = make_endpoint().create(replicas=2)
    endpoint.start_all(2)
    endpoint.until("Ready", "True")
    before = endpoint.child("Deployment", "-workers")
    endpoint.patch(spec=REFUSED[refused])
    endpoint.until("Stalled", "True")
    api.kubectl("scale", "-n", "shared", "vep", endpoint.name, "--replicas=3")
    until(lambda: len(endpoint.pods()) == 3, "three pods")
    after = endpoint.child("Deployment", "-workers")
    assert after["spec"] == {**before["spec"], "replicas": 3}
    assert endpoint.child("PodDisruptionBudget", "-workers")
    until(lambda: endpoint.get()["status"]["replicas"] == 3, "what the autoscaler reads")
    api.kubectl("scale", "-n", "shared", "vep", endpoint.name, "--replicas=0")
    endpoint.until("Available", "True", "ScaledToZero")
    assert [pod for pod in endpoint.pods() if "deletionTimestamp" not in pod["metadata"]] == []
    assert endpoint.condition("Ready")["status"] == "False", "the spec is still refused"
    until(lambda: endpoint.child("PodDisruptionBudget", "-workers") is None, "no budget for none")
    # Mended, all of it is applied, and nothing is left of the field manager's part.
    endpoint.patch(spec={"worker": None, "handlers": None, "replicas": 1})
    endpoint.until("Accepted", "True")
    until(lambda: len(endpoint.pods()) == 1, "one pod")
    template = endpoint.child("Deployment", "-workers")["spec"]["template"]
    assert template == before["spec"]["template"]
    assert endpoint.events("ChangeReverted") == []


def test_replicas_apply_while_another_object_is_refused(shared, make_endpoint, api, until):
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
        said = endpoint.until("Accepted", "False", "NameTaken")
        assert "exists and is not this endpoint's" in said["message"]
        until(lambda: len(endpoint.pods()) == 2, "two pods")
    finally:
        api.delete("Service", "shared", f"{endpoint.name}-workers")


def test_quantities_are_compared_as_they_are_stored(shared, make_endpoint, api, until):
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
    assert looked_at(endpoint, api) == []
    assert endpoint.events("AdmissionChangeAccepted") == []


@pytest.fixture
def mirror(api):
    """A policy that rewrites the image of what carries the label ``mirror``, as a registry mirror's does."""
    names = ("mutatingadmissionpolicies", "mutatingadmissionpolicybindings")
    at = "/spec/template/spec/containers/0/image"
    replaced = f"[JSONPatch{{op: 'replace', path: '{at}', value: 'mirror.example/worker:1'}}]"
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
                    "jsonPatch": {"expression": replaced},
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


def test_what_a_mutating_policy_rewrites_is_accepted(operate, namespace, mirror, make_endpoint, api, until):
    operator = operate(namespace).leads()
    endpoint = make_endpoint(namespace).create(worker={"image": "mirrored/worker:1"})
    until(lambda: endpoint.child("Deployment", "-frontend"), "its Deployments, of which this one is the last")
    assert image(endpoint) == image(endpoint, "-frontend") == "mirror.example/worker:1"
    until(lambda: len(endpoint.events("AdmissionChangeAccepted")) == 2, "an Event for each Deployment")
    assert looked_at(endpoint, api) == []
    said = {event["message"] for event in endpoint.events("AdmissionChangeAccepted")}
    assert any(
        text.startswith(
            "The API server stores another value for spec.template.spec.containers[main].image of the "
            f"Deployment {endpoint.name}-workers than the operator applied"
        )
        for text in said
    )
    # The next operator knows it too.
    assert operator.stop() == 0
    mark = api.audit_offset()
    operate(namespace).leads()
    until(lambda: api.requests(mark, namespace=namespace), "its first look")
    time.sleep(3)
    assert [w for w in api.writes(mark, namespace=namespace) if endpoint.name in w] == []
    # An edit of that very field to another value is put back by the apply, and told.
    api.kubectl("set", "image", "-n", namespace, f"deployment/{endpoint.name}-workers", "main=other:1")
    assert image(endpoint) == "other:1", "the policy leaves others' images alone"
    until(lambda: image(endpoint) == "mirror.example/worker:1", lambda: image(endpoint))
    (event,) = until(lambda: endpoint.events("ChangeReverted"), "an Event")
    assert event["message"].startswith(
        "Field manager kubectl-set changed spec.template.spec.containers[main]"
    )
    assert looked_at(endpoint, api) == []


def test_a_change_by_others_is_restored_and_told_once(shared, make_endpoint, api, until):
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


def test_an_autoscaler_of_the_deployment_is_named_once(shared, make_endpoint, api, until):
    """The scale subresource of the Deployment, as a HorizontalPodAutoscaler writes it, again and again."""
    endpoint = make_endpoint().create()
    until(lambda: endpoint.child("Deployment", "-workers"), "its Deployment")
    path = f"{api.path('Deployment', 'shared', f'{endpoint.name}-workers')}/scale"

    def replicas():
        return endpoint.child("Deployment", "-workers")["spec"]["replicas"]

    for _ in range(4):
        asked = {"spec": {"replicas": 3}}
        api.call("PATCH", f"{path}?fieldManager=kube-controller-manager", asked, as_="merge")
        until(lambda: replicas() == 1, replicas)
    (event,) = until(lambda: endpoint.events("ChangeReverted"), "an Event")
    assert event["message"] == (
        "Field manager kube-controller-manager changed spec.replicas of the Deployment "
        f"{endpoint.name}-workers. The operator has restored what the VLLMEndpoint specifies. Set "
        "spec.replicas of the VLLMEndpoint instead. An autoscaler must name the VLLMEndpoint in its "
        "scaleTargetRef."
    )


def test_a_field_that_was_removed_is_told_although_nobody_owns_it(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create()
    path = api.path("PodDisruptionBudget", "shared", f"{endpoint.name}-workers")
    endpoint.patch(spec={"replicas": 2})
    until(lambda: endpoint.child("PodDisruptionBudget", "-workers"), "its budget")
    removed = {"spec": {"unhealthyPodEvictionPolicy": None}}
    api.call("PATCH", f"{path}?fieldManager=somebody", removed, as_="merge")
    (event,) = until(lambda: endpoint.events("ChangeReverted"), "an Event")
    assert event["message"].startswith("Another client changed spec.unhealthyPodEvictionPolicy of the Pod")
