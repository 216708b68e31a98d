"""Fields whose effects depend on the API server: validation, missing references, deletion of children."""

import pytest

from tests.rejected_specs import MODEL

TOKEN = {**MODEL, "tokenSecretRef": {"name": "hf", "key": "token"}}


def test_a_missing_token_secret_is_reported_by_the_pod_status(shared, make_endpoint, api, until):
    """The operator reads no Secret. The kubelet reports it, here simulated with the kubelet's message."""
    endpoint = make_endpoint().create(model=TOKEN)
    (pod,) = until(endpoint.pods, "its pod")
    env = next(c["env"] for c in pod["spec"]["containers"] if c["name"] == "main")
    assert {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}} in env
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}
    endpoint.set_pod_status(pod, ready=False, started=False, state={"waiting": waiting})
    found = endpoint.until("ResolvedRefs", "False", "SecretNotFound")
    assert (
        f'Pod {pod["metadata"]["name"]} cannot start its container: secret "hf" not found' in found["message"]
    )
    endpoint.until("Ready", "False", "SecretNotFound")
    endpoint.start_all()
    endpoint.until("Ready", "True")


def test_a_named_service_account_replaces_the_created_one(shared, make_endpoint, api, until):
    """While it is missing, a condition reports it. The created account is deleted with its last pod."""
    endpoint = make_endpoint().create()
    endpoint.start_all()
    endpoint.until("Ready", "True")
    assert endpoint.child("ServiceAccount", "-workers")
    account = f"{endpoint.name}-mine"
    endpoint.patch(spec={"worker": {"serviceAccountName": account}})
    missing = endpoint.until("ResolvedRefs", "False", "ServiceAccountNotFound")
    assert (
        f"The ServiceAccount {account!r} does not exist in the namespace shared, so Kubernetes cannot create "
        "worker pods." in missing["message"]
    )
    api.create("ServiceAccount", "shared", account)
    pod = until(
        lambda: next((p for p in endpoint.pods() if p["spec"]["serviceAccountName"] == account), None),
        "a pod with that account",
        60,
    )
    endpoint.until("ResolvedRefs", "True")
    assert "deletionTimestamp" not in pod["metadata"]

    def subjects():
        return [subject["name"] for subject in endpoint.child("RoleBinding", "-workers")["subjects"]]

    until(lambda: subjects() == [account], subjects)
    until(lambda: endpoint.child("ServiceAccount", "-workers") is None, "the created account is deleted")
    assert endpoint.child("ServiceAccount", "-frontend")
    assert api.get("ServiceAccount", "shared", account)["metadata"].get("ownerReferences") is None


def claim_of(endpoint):
    return endpoint.child("PersistentVolumeClaim", "-cache")


def patch_claim_template(endpoint, **template):
    """The API server's message if it rejects the change of the claim template; else the empty string."""
    try:
        endpoint.patch(spec={"cache": {"volumeClaimTemplate": template}})
    except LookupError as error:
        return str(error)
    return ""


def test_the_claim_of_an_endpoint_is_created_validated_and_pruned(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create(
        cache={
            "volumeClaimTemplate": {
                "size": "1Gi",
                "storageClassName": "none",
                "accessModes": ["ReadWriteOnce"],
            }
        }
    )
    claim = until(lambda: claim_of(endpoint), "the claim")
    (owner,) = claim["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("VLLMEndpoint", endpoint.name, True)
    (pod,) = until(endpoint.pods, "its pod")
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": f"{endpoint.name}-cache"}} in pod["spec"][
        "volumes"
    ]
    endpoint.start_all()
    endpoint.until("Ready", "True")
    # Rejected by admission.
    assert (
        "storageClassName: the field is immutable; create another PersistentVolumeClaim"
        in patch_claim_template(endpoint, storageClassName="b")
    )
    assert (
        "accessModes: the field is immutable; create another PersistentVolumeClaim"
        in patch_claim_template(endpoint, accessModes=["ReadWriteMany"])
    )
    assert "only one pod at a time can use a ReadWriteOnce volume" in api.kubectl(
        "scale", "-n", "shared", "vep", endpoint.name, "--replicas=2", check=False
    )
    # Rejected by the API server later: this claim is not bound, and its class does not allow expansion.
    assert not patch_claim_template(endpoint, size="2Gi")
    rejected = endpoint.until("Accepted", "False", "InvalidSpec")
    beginning = "cache.volumeClaimTemplate: The API server rejected the PersistentVolumeClaim"
    assert rejected["message"].startswith(f"{beginning} {endpoint.name}-cache: ")
    assert "\n" not in rejected["message"]
    assert "The existing claim has 1Gi. Set size to 1Gi" in rejected["message"]
    assert endpoint.condition("Stalled")["status"] == "True"
    assert endpoint.condition("Available")["status"] == "True", "running workers keep serving"
    assert not patch_claim_template(endpoint, size="1Gi"), "a rejected size can be reset"
    endpoint.until("Ready", "True")
    assert not patch_claim_template(endpoint, size="500Mi")
    assert "The existing claim has 1Gi." in endpoint.until("Accepted", "False", "InvalidSpec")["message"]
    # After its removal from the spec, the claim is deleted with the last pod that can mount it.
    endpoint.patch(spec={"cache": None})
    endpoint.until("Accepted", "True")
    until(
        lambda: all(p["metadata"]["uid"] != pod["metadata"]["uid"] for p in endpoint.pods()), "new pods", 60
    )
    until(lambda: claim_of(endpoint) is None, "the claim is pruned")


def test_the_claim_is_deleted_with_its_endpoint(shared, make_endpoint, api, until):
    # Without pods, because the API server keeps a claim while a pod mounts it, and polls slowly.
    endpoint = make_endpoint().create(cache={"volumeClaimTemplate": {"size": "1Gi"}}, replicas=0)
    until(lambda: claim_of(endpoint), "the claim")
    api.delete("VLLMEndpoint", "shared", endpoint.name)
    until(lambda: claim_of(endpoint) is None, "the claim is collected", 60)


def test_a_paused_endpoint_changes_no_object_until_it_is_resumed(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create()
    endpoint.start_all()
    endpoint.until("Ready", "True")
    endpoint.patch(spec={"paused": True})
    endpoint.until("UpToDate", "False", "Paused")
    endpoint.until("Ready", "False", "Paused")
    assert endpoint.condition("Reconciling")["status"] == "False"
    assert endpoint.condition("Generating")["status"] == "True"
    offset = api.audit_offset()
    before = endpoint.child("Deployment", "-workers")
    endpoint.patch(spec={"replicas": 2, "engine": {"args": ["--seed", "1"]}, "frontend": {"mode": "None"}})
    api.delete("Service", "shared", f"{endpoint.name}-workers")
    until(lambda: endpoint.get()["status"]["observedGeneration"] == 3, "the status follows")
    # The status of existing pods is still observed.
    endpoint.set_pod_status(endpoint.pods()[0], ready=False)
    endpoint.until("Available", "False")
    written = {w for w in api.writes(offset, namespace="shared") if endpoint.name in w}
    assert written <= {f"patch vllmendpoints {endpoint.name}"}
    after = endpoint.child("Deployment", "-workers")
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    endpoint.patch(spec={"paused": False})
    until(lambda: endpoint.child("Service", "-workers"), "the deleted Service is recreated")
    until(lambda: endpoint.child("Deployment", "-frontend") is None, "the frontend is deleted")
    until(lambda: len(endpoint.pods()) == 2, "the endpoint is scaled")
    endpoint.until("UpToDate", "False", "RollingOut")


def test_an_endpoint_created_paused_has_no_children_and_can_be_deleted_paused(
    shared, make_endpoint, api, until
):
    endpoint = make_endpoint().create(paused=True)
    paused = endpoint.until("Available", "False", "Paused")
    assert (
        f"The operator does not create the Deployment {endpoint.name}-workers because spec.paused is true. "
        "Set it to false" in paused["message"]
    )
    assert endpoint.owned() == []
    endpoint.patch(spec={"paused": False})
    until(endpoint.pods, "pods")
    endpoint.patch(spec={"paused": True})
    endpoint.until("UpToDate", "False", "Paused")
    api.delete("VLLMEndpoint", "shared", endpoint.name)
    until(lambda: not endpoint.pods() and endpoint.child("Service") is None, "all children are deleted", 60)


def revisions_of(endpoint):
    return sorted(obj["metadata"]["name"] for obj in endpoint.owned() if obj["kind"] == "ControllerRevision")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"spec": {"restartPolicy": "Never"}}, "spec.template.spec.restartPolicy"),
        (
            {"spec": {"noSuchField": {"a": 1}}},
            ".spec.template.spec.noSuchField: field not declared in schema",
        ),
        ({"spec": {"nodeSelector": "zone"}}, ".spec.template.spec.nodeSelector"),
        ({"spec": {"tolerations": "all"}}, ".spec.template.spec.tolerations"),
        ({"spec": {"containers": [{"name": "main", "ports": [{"containerPort": 99999}]}]}}, "65535"),
    ],
    ids=["a value", "a field", "a map", "a list", "a port"],
)
def test_an_invalid_pod_template_is_rejected_before_any_write(
    shared, make_endpoint, api, until, template, message
):
    endpoint = make_endpoint().create(worker={"podTemplate": {"spec": {"nodeSelector": {"zone": "a"}}}})
    until(lambda: endpoint.child("Deployment", "-workers"), "its Deployment")
    endpoint.until("Available", "False", "Starting")
    before = revisions_of(endpoint)
    offset = api.audit_offset()
    settings = {"level": "Standard"}
    endpoint.patch(spec={"worker": {"podTemplate": template}, "healthCheck": settings})
    assert message in endpoint.until("Accepted", "False", "InvalidPodTemplate")["message"]
    endpoint.until("Ready", "False", "InvalidPodTemplate")
    assert endpoint.condition("Stalled")["status"] == "True"
    assert revisions_of(endpoint) == before
    writes = [w for w in api.writes(offset, namespace="shared") if endpoint.name in w]
    attempts = {w for w in writes if not w.startswith("create events")}
    assert attempts <= {
        f"patch vllmendpoints {endpoint.name}",
        f"patch deployments {endpoint.name}-workers",  # the dry run
    }
    endpoint.patch(spec={"worker": {"podTemplate": None}})
    endpoint.until("Accepted", "True")


def test_the_scale_subresource_has_the_values_that_an_autoscaler_reads(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create(replicas=2)
    until(lambda: len(endpoint.pods()) == 2 and endpoint.pods("frontend"), "all its pods")
    until(lambda: endpoint.get()["status"].get("replicas") == 2, "the status follows")
    path = f"{api.path('VLLMEndpoint', 'shared', endpoint.name)}/scale"
    scale = api.call("GET", path)
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2)
    listed = api.call("GET", f"/api/v1/namespaces/shared/pods?labelSelector={scale['status']['selector']}")
    named = {pod["metadata"]["name"] for pod in listed["items"]}
    assert named == {pod["metadata"]["name"] for pod in endpoint.pods()}, "only the workers"
    api.call("PATCH", path, {"spec": {"replicas": 1}}, as_="merge")
    until(lambda: len(endpoint.pods()) == 1, "one pod")


def test_without_a_frontend_the_urls_are_those_of_the_workers(shared, make_endpoint, until):
    endpoint = make_endpoint().create(frontend={"mode": "None"})
    until(endpoint.pods, "its pod")
    workers = f"http://{endpoint.name}-workers.shared.svc:8080"
    status = until(lambda: endpoint.get()["status"].get("url") and endpoint.get()["status"])
    assert (status["url"], status["invocationsUrl"]) == (f"{workers}/v1", f"{workers}/invocations")
    assert endpoint.child("Deployment", "-frontend") is None
    assert endpoint.child("Service") is None
    endpoint.patch(spec={"frontend": {"mode": "Managed"}})
    until(lambda: endpoint.get()["status"]["url"] == f"http://{endpoint.name}.shared.svc:8000/v1", status)
    assert endpoint.get()["status"]["invocationsUrl"] == f"{workers}/invocations"
    until(lambda: endpoint.child("Deployment", "-frontend"), "the frontend")
    endpoint.patch(spec={"frontend": {"mode": "None"}})
    until(lambda: endpoint.child("Deployment", "-frontend") is None, "the frontend is pruned")
