"""Errors of users: a condition reports them, no other object changes, and a correction is applied."""

import pytest


@pytest.fixture(scope="module")
def conflicting(make_endpoints):
    return make_endpoints("shared"), make_endpoints("shared")


def test_a_name_conflict_is_reported_and_changes_no_object(shared, conflicting, api, until):
    """With a Service and a ConfigMap of another owner, one of them with the operator's labels."""
    first, second = conflicting
    service = {"spec": {"ports": [{"port": 1}], "selector": {"a": "b"}}}
    api.create("Service", "shared", first.name, **service)
    labels = {
        "app.kubernetes.io/managed-by": "vllmendpoint-operator",
        "app.kubernetes.io/instance": second.name,
    }
    data = {"mine": "1"}
    api.create("ConfigMap", "shared", f"{second.name}-settings", metadata={"labels": labels}, data=data)
    another = (
        "exists and does not belong to this endpoint. Create the endpoint under another name, or delete "
        "the Service"
    )
    left = "remains from an earlier endpoint of this name that was deleted with --cascade=orphan"
    for endpoint, message in ((first, another), (second, left)):
        endpoint.create()
        assert message in endpoint.until("Accepted", "False", "NameTaken")["message"]
        endpoint.until("Ready", "False", "NameTaken")
        assert endpoint.condition("Stalled")["status"] == "True"
    assert first.child("Service")["spec"]["selector"] == {"a": "b"}
    assert second.child("ConfigMap", "-settings")["data"] == data
    assert first.child("Deployment", "-workers") is None
    api.delete("Service", "shared", first.name)
    api.delete("ConfigMap", "shared", f"{second.name}-settings")


def test_a_missing_config_map_is_reported_and_used_once_it_exists(shared, make_endpoint, api, until):
    reference = {"name": "engine-config", "key": "c.yaml"}
    endpoint = make_endpoint().create(engine={"config": {"configMapKeyRef": reference}})
    missing = endpoint.until("ResolvedRefs", "False", "ConfigMapNotFound")
    assert missing["message"].startswith(
        "engine.config.configMapKeyRef: The ConfigMap 'engine-config' does not exist in this namespace. "
        "Create it"
    )
    assert endpoint.condition("Stalled")["status"] == "True"
    assert len(endpoint.get()["status"]["conditions"]) == 10
    api.create("ConfigMap", "shared", "engine-config", data={"other": "x"})
    wrong = endpoint.until("ResolvedRefs", "False", "ConfigMapKeyNotFound")
    assert "has no key 'c.yaml'. Its keys: other." in wrong["message"]
    api.patch("ConfigMap", "shared", "engine-config", {"data": {"c.yaml": "seed: 1\n"}})
    endpoint.until("ResolvedRefs", "True")
    until(lambda: endpoint.child("Deployment", "-workers"), "its Deployment")

    def mounted():
        volumes = endpoint.child("Deployment", "-workers")["spec"]["template"]["spec"]["volumes"]
        return next(v["configMap"]["name"] for v in volumes if v["name"] == "engine-config")

    old = mounted()
    assert api.get("ConfigMap", "shared", old)["data"] == {"config.yaml": "seed: 1\n"}
    until(endpoint.pods, "pods")
    api.patch("ConfigMap", "shared", "engine-config", {"data": {"c.yaml": "seed: 2\n"}})
    until(lambda: mounted() != old, "a rollout with the changed content")
    until(
        lambda: api.get("ConfigMap", "shared", old) is None,
        "the previous content is pruned with its last pod",
    )


def test_a_missing_script_is_reported_and_its_changes_restart_no_worker(shared, make_endpoint, api, until):
    endpoint = make_endpoint()
    name = f"{endpoint.name}-handlers"
    endpoint.create(handlers={"script": {"configMapKeyRef": {"name": name, "key": "h.py"}}})
    missing = endpoint.until("ResolvedRefs", "False", "ConfigMapNotFound")
    assert (
        f"handlers.script.configMapKeyRef: The ConfigMap '{name}' does not exist in this"
        in missing["message"]
    )
    api.create("ConfigMap", "shared", name, data={"model.py": "a = 1\n"})
    wrong = endpoint.until("ResolvedRefs", "False", "ConfigMapKeyNotFound")
    assert "has no key 'h.py'. Its keys: model.py." in wrong["message"]
    api.patch("ConfigMap", "shared", name, {"data": {"h.py": "a = 2\n"}})
    endpoint.until("ResolvedRefs", "True")
    endpoint.start_all()
    endpoint.until("Ready", "True")
    before = endpoint.child("Deployment", "-workers")

    def script():
        return endpoint.child("ConfigMap", "-settings")["data"]["model.py"]

    assert script() == "a = 2\n"
    api.patch("ConfigMap", "shared", name, {"data": {"h.py": "a = 3\n"}})
    until(lambda: script() == "a = 3\n", script)
    endpoint.until("ConfigurationResolved", "Unknown", "Pending")
    assert endpoint.child("Deployment", "-workers")["spec"] == before["spec"], "no worker is restarted"
    # After its deletion a condition reports it, and the workers keep their script.
    api.delete("ConfigMap", "shared", name)
    endpoint.until("ResolvedRefs", "False", "ConfigMapNotFound")
    assert script() == "a = 3\n"
    assert endpoint.condition("Available")["status"] == "True"


def test_a_missing_claim_is_reported_until_it_exists(shared, make_endpoint, api):
    endpoint = make_endpoint().create(model={"uri": "pvc://weights/m"})
    missing = endpoint.until("ResolvedRefs", "False", "ClaimNotFound")
    assert (
        "The PersistentVolumeClaim 'weights' does not exist in the namespace shared. Create it"
        in missing["message"]
    )
    size = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    api.create("PersistentVolumeClaim", "shared", "weights", spec=size)
    endpoint.until("ResolvedRefs", "True")


def test_a_pod_template_that_the_api_server_rejects_changes_no_deployment(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create()
    endpoint.start_all()
    endpoint.until("Ready", "True")
    before = endpoint.child("Deployment", "-workers")
    invalid = {"spec": {"containers": [{"name": "main", "image": "x", "imagePullPolicy": "Sometimes"}]}}
    endpoint.patch(spec={"worker": {"podTemplate": invalid}})
    rejected = endpoint.until("Accepted", "False", "InvalidPodTemplate")
    assert "The API server rejected the Deployment" in rejected["message"]
    assert "imagePullPolicy" in rejected["message"]
    assert 'supported values: "Always"' in rejected["message"]
    after = endpoint.child("Deployment", "-workers")
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert endpoint.condition("Available")["status"] == "True", "running workers keep serving"
    endpoint.patch(spec={"worker": {"podTemplate": None}})
    endpoint.until("Ready", "True")
    assert endpoint.child("Deployment", "-workers")["spec"]["template"] == before["spec"]["template"]


def test_a_pod_template_that_the_operator_rejects_is_reported(shared, make_endpoint, until):
    invalid = {"spec": {"containers": [{"name": "main", "args": ["sleep"]}]}}
    endpoint = make_endpoint().create(worker={"podTemplate": invalid})
    rejected = endpoint.until("Accepted", "False", "InvalidPodTemplate")
    assert (
        rejected["message"]
        == "worker.podTemplate: The operator sets args of the container main. Use engine.args instead."
    )
    endpoint.patch(spec={"worker": {"podTemplate": {"spec": "text"}}})
    message = "worker.podTemplate: The field spec must be an object."
    until(lambda: endpoint.condition("Accepted")["message"] == message, endpoint.get)
    endpoint.patch(spec={"worker": {"podTemplate": None}})
    endpoint.until("Accepted", "True")


def test_a_variable_can_override_a_default_of_the_operator(shared, make_endpoint, until):
    endpoint = make_endpoint().create(worker={"env": [{"name": "HF_HOME", "value": "/mine"}]})
    endpoint.until("Accepted", "True")
    until(lambda: endpoint.child("Deployment", "-workers"), "its Deployment")


def test_a_warning_of_the_api_server_is_one_event(shared, make_endpoint, api, until):
    template = {"spec": {"terminationGracePeriodSeconds": -1}}
    endpoint, plain = make_endpoint().create(worker={"podTemplate": template}), make_endpoint().create()
    for one in (endpoint, plain):
        one.until("Accepted", "True")
        until(lambda one=one: one.child("Deployment", "-workers"), "its Deployment")

    def warnings():
        return [
            (event["involvedObject"]["name"], event["type"], event["message"])
            for event in api.all("Event", "shared")
            if event["reason"] == "APIServerWarning"
            and event["involvedObject"]["name"] in (endpoint.name, plain.name)
        ]

    (warning,) = until(warnings, "an Event")
    beginning = f"The API server returned a warning for the Deployment {endpoint.name}-workers: "
    text = "spec.template.spec.terminationGracePeriodSeconds: must be >= 0"
    assert warning[:2] == (endpoint.name, "Warning")
    assert warning[2].startswith(beginning + text)
    # Scaling and changes of other objects do not repeat the Event.
    endpoint.patch(spec={"replicas": 2, "healthCheck": {"level": "Standard"}})
    # An Event of a warning is written before the status.
    until(lambda: endpoint.get()["status"]["observedGeneration"] == 2, "the change is reconciled")
    assert len(warnings()) == 1


def test_a_binding_to_the_role_of_another_release_is_recreated(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create()
    endpoint.start_all()
    endpoint.until("Ready", "True")
    name = f"{endpoint.name}-workers"
    desired = endpoint.child("RoleBinding", "-workers")
    earlier = {**desired["roleRef"], "name": "view"}
    with pytest.raises(LookupError, match="cannot change roleRef"):
        api.patch("RoleBinding", "shared", name, {"roleRef": earlier})
    # A RoleBinding of an operator of an earlier release, whose role had another name.
    endpoint.patch(spec={"paused": True})
    endpoint.until("UpToDate", "False", "Paused")
    api.delete("RoleBinding", "shared", name)
    kept = ("labels", "annotations", "ownerReferences")
    metadata = {key: desired["metadata"][key] for key in kept}
    subjects = desired["subjects"]
    api.create("RoleBinding", "shared", name, metadata=metadata, roleRef=earlier, subjects=subjects)
    offset = api.audit_offset()
    endpoint.patch(spec={"paused": False})

    def is_recreated():
        found = endpoint.child("RoleBinding", "-workers")
        return found and found["roleRef"] == desired["roleRef"] and found["subjects"] == subjects

    until(is_recreated, lambda: endpoint.child("RoleBinding", "-workers"))
    endpoint.until("Ready", "True")
    written = [
        f"{entry['verb']} {entry['objectRef']['name']}"
        for entry in api.requests(offset, namespace="shared")
        if entry["objectRef"]["resource"] == "rolebindings"
        and entry["verb"] != "get"
        and entry["responseStatus"]["code"] < 400
    ]
    # The first is a dry run, which checks that the operator can bind the role.
    assert written == [f"patch {name}-next", f"delete {name}", f"patch {name}"]


def test_an_unschedulable_pod_is_reported(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create(worker={"resources": {"limits": {"nvidia.com/gpu": 8}}})
    (pod,) = until(endpoint.pods, "its pod")
    message = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu."
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    path = api.path("Pod", "shared", pod["metadata"]["name"])
    api.call("PATCH", f"{path}/status", {"status": {"conditions": [scheduled]}}, as_="merge")
    found = endpoint.until("Available", "False", "InsufficientGPU")
    assert (
        f"Pod {pod['metadata']['name']} is waiting for 8 nvidia.com/gpu: none of 4 nodes" in found["message"]
    )
    endpoint.until("Ready", "False", "InsufficientGPU")
    worker = endpoint.get()["status"]["workers"][0]
    assert (worker["ready"], worker["reason"]) == (False, "InsufficientGPU")


def test_an_exceeded_quota_is_reported(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create()
    endpoint.until("Accepted", "True")
    path = "/api/v1/namespaces/shared/resourcequotas"
    body = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "q"},
        "spec": {"hard": {"pods": "0"}},
    }
    api.call("POST", path, body)
    try:
        until(lambda: api.call("GET", f"{path}/q").get("status", {}).get("hard"), "the quota is active")
        api.kubectl("scale", "-n", "shared", "vep", endpoint.name, "--replicas=0")
        until(lambda: not endpoint.pods(), "no pods")
        api.kubectl("scale", "-n", "shared", "vep", endpoint.name, "--replicas=1")
        found = endpoint.until("Available", "False", "PodCreationFailed")
        assert "exceeded quota" in found["message"]
    finally:
        api.call("DELETE", f"{path}/q")


def test_an_endpoint_is_created_once_its_name_is_free(shared, conflicting, until):
    """The operator does not watch objects without its labels: it checks the name every 30 s, which pass
    during the other tests of this module."""
    for endpoint in reversed(conflicting):
        endpoint.until("Accepted", "True", seconds=40)
        until(lambda endpoint=endpoint: endpoint.child("Deployment", "-workers"), "its Deployment")
