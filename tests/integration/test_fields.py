"""Fields whose meaning the API server has a say in: what it refuses, what it takes, what becomes of it."""

import pytest

from tests.rejected_specs import MODEL

TOKEN = {**MODEL, "tokenSecretRef": {"name": "hf", "key": "token"}}


def test_a_token_whose_secret_is_not_there(shared, make_endpoint, api, until):
    """The operator reads no Secret: the kubelet tells, here played with its own words."""
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


def test_a_named_service_account(shared, make_endpoint, api, until):
    """Missing, it is told; then used and bound, and the one that was made goes with its last pod."""
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

    def bound():
        return [subject["name"] for subject in endpoint.child("RoleBinding", "-workers")["subjects"]]

    until(lambda: bound() == [account], bound)
    until(lambda: endpoint.child("ServiceAccount", "-workers") is None, "the account that was made is gone")
    assert endpoint.child("ServiceAccount", "-frontend")
    assert api.get("ServiceAccount", "shared", account)["metadata"].get("ownerReferences") is None


def claim_of(endpoint):
    return endpoint.child("PersistentVolumeClaim", "-cache")


def edited(endpoint, **template):
    """What kubectl says to a change of the claim's template."""
    try:
        endpoint.patch(spec={"cache": {"volumeClaimTemplate": template}})
    except LookupError as refused:
        return str(refused)
    return ""


def test_a_claim_of_the_endpoints_own(shared, make_endpoint, api, until):
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
    # What admission sees.
    assert "storageClassName: the field is immutable; create another PersistentVolumeClaim" in edited(
        endpoint, storageClassName="b"
    )
    assert "accessModes: the field is immutable; create another PersistentVolumeClaim" in edited(
        endpoint, accessModes=["ReadWriteMany"]
    )
    assert "only one pod at a time can use a ReadWriteOnce volume" in api.kubectl(
        "scale", "-n", "shared", "vep", endpoint.name, "--replicas=2", check=False
    )
    # What only the API server knows: this claim is not bound, and its class does not let it grow.
    assert not edited(endpoint, size="2Gi")
    refused = endpoint.until("Accepted", "False", "InvalidSpec")
    said = "cache.volumeClaimTemplate: the API server refuses the PersistentVolumeClaim"
    assert refused["message"].startswith(f"{said} {endpoint.name}-cache: ")
    assert "\n" not in refused["message"]
    assert "it has 1Gi: set size to that again" in refused["message"]
    assert endpoint.condition("Stalled")["status"] == "True"
    assert endpoint.condition("Available")["status"] == "True", "what runs goes on"
    assert not edited(endpoint, size="1Gi"), "what is refused can be taken back"
    endpoint.until("Ready", "True")
    assert not edited(endpoint, size="500Mi")
    assert "it has 1Gi" in endpoint.until("Accepted", "False", "InvalidSpec")["message"]
    # Taken out, it goes with the last pod that may mount it.
    endpoint.patch(spec={"cache": None})
    endpoint.until("Accepted", "True")
    until(
        lambda: all(p["metadata"]["uid"] != pod["metadata"]["uid"] for p in endpoint.pods()), "new pods", 60
    )
    until(lambda: claim_of(endpoint) is None, "the claim is pruned")


def test_a_claim_goes_with_its_endpoint(shared, make_endpoint, api, until):
    # Without pods: while one mounts it, the API server keeps a claim, and looks again every now and then.
    endpoint = make_endpoint().create(cache={"volumeClaimTemplate": {"size": "1Gi"}}, replicas=0)
    until(lambda: claim_of(endpoint), "the claim")
    api.delete("VLLMEndpoint", "shared", endpoint.name)
    until(lambda: claim_of(endpoint) is None, "the claim is collected", 60)


def test_paused_changes_nothing_until_it_is_not(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create()
    endpoint.start_all()
    endpoint.until("Ready", "True")
    endpoint.patch(spec={"paused": True})
    endpoint.until("UpToDate", "False", "Paused")
    endpoint.until("Ready", "False", "Paused")
    assert endpoint.condition("Reconciling")["status"] == "False"
    assert endpoint.condition("Generating")["status"] == "True"
    mark = api.audit_offset()
    before = endpoint.child("Deployment", "-workers")
    endpoint.patch(spec={"replicas": 2, "engine": {"args": ["--seed", "1"]}, "frontend": {"mode": "None"}})
    api.delete("Service", "shared", f"{endpoint.name}-workers")
    until(lambda: endpoint.get()["status"]["observedGeneration"] == 3, "the status follows")
    # What stands is still looked at.
    endpoint.set_pod_status(endpoint.pods()[0], ready=False)
    endpoint.until("Available", "False")
    written = {w for w in api.writes(mark, namespace="shared") if endpoint.name in w}
    assert written <= {f"patch vllmendpoints {endpoint.name}"}
    after = endpoint.child("Deployment", "-workers")
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    endpoint.patch(spec={"paused": False})
    until(lambda: endpoint.child("Service", "-workers"), "what was deleted comes back")
    until(lambda: endpoint.child("Deployment", "-frontend") is None, "what is over goes")
    until(lambda: len(endpoint.pods()) == 2, "both changes are taken up")
    endpoint.until("UpToDate", "False", "RollingOut")


def test_paused_from_the_start_and_deleted(shared, make_endpoint, api, until):
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
    until(lambda: not endpoint.pods() and endpoint.child("Service") is None, "all is collected", 60)


def revisions_of(endpoint):
    return sorted(obj["metadata"]["name"] for obj in endpoint.owned() if obj["kind"] == "ControllerRevision")


@pytest.mark.parametrize(
    ("template", "told"),
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
def test_a_pod_template_is_refused_before_anything_is_written(
    shared, make_endpoint, api, until, template, told
):
    endpoint = make_endpoint().create(worker={"podTemplate": {"spec": {"nodeSelector": {"zone": "a"}}}})
    until(lambda: endpoint.child("Deployment", "-workers"), "its Deployment")
    endpoint.until("Available", "False", "Starting")
    before = revisions_of(endpoint)
    mark = api.audit_offset()
    settings = {"level": "Standard"}
    endpoint.patch(spec={"worker": {"podTemplate": template}, "healthCheck": settings})
    refused = endpoint.until("Accepted", "False", "InvalidPodTemplate")
    assert told in refused["message"]
    endpoint.until("Ready", "False", "InvalidPodTemplate")
    assert endpoint.condition("Stalled")["status"] == "True"
    assert revisions_of(endpoint) == before
    writes = [w for w in api.writes(mark, namespace="shared") if endpoint.name in w]
    tried = {w for w in writes if not w.startswith("create events")}
    assert tried <= {
        f"patch vllmendpoints {endpoint.name}",
        f"patch deployments {endpoint.name}-workers",  # the dry run
    }
    endpoint.patch(spec={"worker": {"podTemplate": None}})
    endpoint.until("Accepted", "True")


def test_the_scale_subresource_tells_what_an_autoscaler_asks(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create(replicas=2)
    until(lambda: len(endpoint.pods()) == 2 and endpoint.pods("frontend"), "all its pods")
    until(lambda: endpoint.get()["status"].get("replicas") == 2, "the status follows")
    path = f"{api.path('VLLMEndpoint', 'shared', endpoint.name)}/scale"
    scale = api.call("GET", path)
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2)
    listed = api.call("GET", f"/api/v1/namespaces/shared/pods?labelSelector={scale['status']['selector']}")
    named = {pod["metadata"]["name"] for pod in listed["items"]}
    assert named == {pod["metadata"]["name"] for pod in endpoint.pods()}, "the workers alone"
    api.call("PATCH", path, {"spec": {"replicas": 1}}, as_="merge")
    until(lambda: len(endpoint.pods()) == 1, "one pod")


def test_without_a_frontend_clients_ask_the_workers(shared, make_endpoint, until):
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
