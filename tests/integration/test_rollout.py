"""Upgrades of the operator, and the annotation by which a user takes them up; rollouts, and drains.

The Deployments, their ReplicaSets and the budgets are run by the real controllers.
"""

import json
import subprocess
import time

import pytest

from tests.integration.api_server import BIN, ROOT

ROLLOUT = "serving.vllmendpoint.dev/rollout"


def images(endpoint):
    template = endpoint.child("Deployment", "-workers")["spec"]["template"]
    return template["spec"]["containers"][0]["image"]


def test_an_upgrade_changes_no_pod_until_it_is_asked_for(operate, make_endpoint, api, namespace, until):
    first = operate(namespace).leads()
    endpoint = make_endpoint(namespace).create()
    endpoint.start_all()
    endpoint.until("Ready", "True")
    before = endpoint.child("Deployment", "-workers")
    first.stop()
    operate(namespace, worker_image="registry.example/worker:2").leads()
    until(lambda: endpoint.get()["status"]["revision"]["upgradeAvailable"], "the upgrade is told")
    after = endpoint.child("Deployment", "-workers")
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert endpoint.get()["status"]["revision"]["image"] == "registry.example/worker:1"
    endpoint.patch(metadata={"annotations": {"serving.vllmendpoint.dev/rollout": "1"}})
    until(lambda: images(endpoint) == "registry.example/worker:2", lambda: images(endpoint))
    rolling = endpoint.until("UpToDate", "False", "RollingOut")
    assert rolling["message"]
    until(lambda: not endpoint.get()["status"]["revision"]["upgradeAvailable"], "nothing newer")
    assert len(api.all("ControllerRevision", namespace)) == 2


def test_a_rollout_asked_for_restarts_even_where_nothing_changed(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create()
    endpoint.start_all()
    endpoint.until("Ready", "True")
    old = endpoint.pods()[0]["metadata"]["uid"]
    revision = endpoint.get()["status"]["revision"]["name"]
    endpoint.patch(metadata={"annotations": {"serving.vllmendpoint.dev/rollout": "now"}})
    until(lambda: endpoint.get()["status"]["revision"]["name"] != revision, "a revision of its own")
    until(lambda: [p for p in endpoint.pods() if p["metadata"]["uid"] != old], "new pods")
    endpoint.until("Ready", "False")
    endpoint.start_all()
    endpoint.until("Ready", "True")


def documented(docs):
    """The command of the docs that requests a restart and waits for its end, for a name."""
    text = docs.split("## Upgrading and restarting", 1)[1]
    (command,) = [block for block in text.split("```")[1::2] if "restartedAt" in block]
    return command.strip()


def test_the_documented_restart_is_waited_for(shared, make_endpoint, api, until):
    """By the real kubectl, which is started before the operator has seen anything of the request."""
    endpoint = make_endpoint()
    old = serving(endpoint, until, 1)
    command = documented((ROOT / "docs/operations.md").read_text()).replace("NAME", endpoint.name)
    shared_flags = f"--kubeconfig={api.kubeconfig} --namespace=shared"
    command = command.replace("kubectl ", f"{BIN / 'kubectl'} {shared_flags} ")
    with subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, text=True) as kubectl:
        until(
            lambda: api.get("VLLMEndpoint", "shared", endpoint.name)["spec"].get("restartedAt"), "the patch"
        )
        played = set()

        def all_new():
            for pod in endpoint.pods():
                if pod["metadata"]["uid"] not in old | played and not pod["metadata"].get(
                    "deletionTimestamp"
                ):
                    time.sleep(1)  # for a wait that ends too soon
                    assert kubectl.poll() is None
                    played.add(pod["metadata"]["uid"])
                    endpoint.start_worker(pod)
            return len(played) == 1

        until(all_new, lambda: endpoint.get()["status"], seconds=40)
        assert kubectl.wait(20) == 0
        assert "condition met" in kubectl.stdout.read()
    assert not old & {pod["metadata"]["uid"] for pod in endpoint.pods()}
    assert endpoint.condition("Ready")["status"] == "True"


@pytest.mark.parametrize("removed", ["annotation", "field", "emptied annotation"])
def test_a_replace_without_the_request_restarts_nothing(shared, make_endpoint, api, until, removed):
    """The manifest is the one that the endpoint was created from."""
    endpoint = make_endpoint().create(frontend={"mode": "None"})
    manifest = {
        "apiVersion": "serving.vllmendpoint.dev/v1alpha1",
        "kind": "VLLMEndpoint",
        "metadata": {"name": endpoint.name, "namespace": "shared"},
        "spec": endpoint.get()["spec"],
    }
    if removed == "field":
        endpoint.patch(spec={"restartedAt": "2026-01-31T12:00:00Z"})
    else:
        endpoint.patch(metadata={"annotations": {ROLLOUT: "1"}})
    if removed == "emptied annotation":
        manifest["metadata"]["annotations"] = {ROLLOUT: ""}

    def annotations():
        deployment = endpoint.child("Deployment", "-workers")
        return deployment and deployment["spec"]["template"]["metadata"].get("annotations")

    until(annotations, "the restart")
    before = endpoint.child("Deployment", "-workers")
    endpoint.until("UpToDate", "False", "RollingOut")
    mark = api.audit_offset()
    api.kubectl("replace", "-f", "-", text=json.dumps(manifest))
    generation = endpoint.get()["metadata"]["generation"]
    until(lambda: endpoint.get()["status"]["observedGeneration"] == generation, "it is seen")
    endpoint.patch(spec={"replicas": 2})
    until(
        lambda: endpoint.child("Deployment", "-workers")["spec"]["replicas"] == 2, "a later change is applied"
    )
    after = endpoint.child("Deployment", "-workers")
    assert after["spec"]["template"] == before["spec"]["template"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"] + 1, "by the replicas"
    written = [what for what in api.writes(mark, namespace="shared") if f" {endpoint.name}" in what]
    assert not [what for what in written if "controllerrevisions" in what]


@pytest.mark.parametrize(
    "value", ["", "now", "2026-01-31", "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-01-31T12:00:00"]
)
def test_what_is_no_time_is_refused(shared, make_endpoint, api, value):
    with pytest.raises(LookupError, match=r"422: .*spec\.restartedAt.* must be of type date-time"):
        make_endpoint().create(restartedAt=value)


def test_a_time_in_a_manifest_needs_no_quotes(shared, make_endpoint, api):
    """YAML has a type for times."""
    endpoint = make_endpoint()
    text = f"""
apiVersion: serving.vllmendpoint.dev/v1alpha1
kind: VLLMEndpoint
metadata: {{name: {endpoint.name}, namespace: shared}}
spec:
  model: {{uri: "file:///m"}}
  restartedAt: 2026-01-31T12:00:00Z
"""
    api.kubectl("apply", "--server-side", "-f", "-", text=text)
    assert endpoint.get()["spec"]["restartedAt"] == "2026-01-31T12:00:00Z"


def serving(endpoint, until, replicas):
    """Workers alone: another image rolls the frontend too."""
    endpoint.create(replicas=replicas, frontend={"mode": "None"})
    pods = until(lambda: (found := endpoint.pods()) and len(found) == replicas and found, "the workers")
    for pod in pods:
        endpoint.start_worker(pod)
    endpoint.until("Ready", "True")
    return {pod["metadata"]["uid"] for pod in pods}


def test_a_revision_that_does_not_generate_stops_the_rollout_until_it_is_mended(
    shared, make_endpoint, api, until
):
    endpoint = make_endpoint()
    old = serving(endpoint, until, 3)

    def made_anew():
        return [pod for pod in endpoint.pods() if pod["metadata"]["uid"] not in old]

    endpoint.patch(spec={"worker": {"image": "registry.example/worker:broken"}})
    (bad,) = until(made_anew, "the first pod of the new revision")
    endpoint.start_worker(bad, ready=False).send_report("Failing", ready=False)
    stopped = endpoint.until("UpToDate", "False", "RolloutStopped")
    assert stopped["message"].startswith(
        "1 of 3 replicas runs the current revision, and 2 replicas of an older revision remain. The rollout "
        "is stopped, and 2 of 3 replicas continue to serve. "
        f"Pod {bad['metadata']['name']} is not ready: the health probe fails. Failing (set by the test)."
    )
    endpoint.until("Available", "True")
    endpoint.until("Ready", "False")
    time.sleep(2)  # for what a rollout that is not stopped would do next
    assert len(made_anew()) == 1
    assert len(old & {pod["metadata"]["uid"] for pod in endpoint.pods()}) == 2
    old.add(bad["metadata"]["uid"])

    endpoint.patch(spec={"worker": {"image": "registry.example/worker:mended"}})
    played = set()

    def all_new():
        for pod in made_anew():
            if pod["metadata"]["uid"] not in played and not pod["metadata"].get("deletionTimestamp"):
                played.add(pod["metadata"]["uid"])
                endpoint.start_worker(pod)
        return not old & {pod["metadata"]["uid"] for pod in endpoint.pods()} and len(played) == 3

    until(all_new, lambda: endpoint.get()["status"], seconds=30)
    endpoint.until("UpToDate", "True")
    endpoint.until("Ready", "True")


def replica_sets(api, endpoint):
    return [
        item
        for item in api.all("ReplicaSet", "shared")
        if item["metadata"]["ownerReferences"][0]["name"] == f"{endpoint.name}-workers"
    ]


def test_without_a_spare_gpu_the_old_goes_first(shared, make_endpoint, api, until):
    """Surge 0: never more pods than replicas, so a rollout needs no GPU that is not there."""
    endpoint = make_endpoint()
    old = serving(endpoint, until, 2)
    endpoint.patch(spec={"worker": {"image": "registry.example/worker:next"}})
    most = 0
    played = set()

    def rolled():
        nonlocal most
        # As its controller asks for them: of two ReplicaSets' pods one may be made before another is deleted.
        most = max(most, sum(item["spec"]["replicas"] for item in replica_sets(api, endpoint)))
        pods = [pod for pod in endpoint.pods() if not pod["metadata"].get("deletionTimestamp")]
        for pod in pods:
            if pod["metadata"]["uid"] not in old | played:
                played.add(pod["metadata"]["uid"])
                endpoint.start_worker(pod)
        return len(played) == 2 and len(pods) == 2

    until(rolled, "both replaced")
    endpoint.until("Ready", "True")
    assert most == 2


def test_observing_tells_and_gates_nothing(shared, make_endpoint, until):
    """In this mode the worker keeps itself ready; rollouts and routing go on over what its probe finds."""
    endpoint = make_endpoint().create(healthCheck={"mode": "Observe"}, frontend={"mode": "None"})
    (pod,) = until(endpoint.pods, "its pod")
    endpoint.start_worker(pod).send_report("Stalled")
    stalled = endpoint.until("Generating", "False", "EngineStalled")
    assert (
        f"the engine in pod {pod['metadata']['name']} is stalled. Stalled (set by the test). "
        "Because healthCheck.mode is Observe, the pod still receives traffic" in stalled["message"]
    )
    endpoint.until("Available", "True")
    endpoint.until("Ready", "False", "EngineStalled")
    endpoint.patch(spec={"worker": {"image": "registry.example/worker:next"}})
    old = pod["metadata"]["uid"]
    (new,) = until(lambda: [p for p in endpoint.pods() if p["metadata"]["uid"] != old], "the new pod")
    endpoint.start_worker(new).send_report("Stalled")
    endpoint.until("UpToDate", "True")

    def told():
        status = endpoint.get()["status"]
        worker = status["workers"][0]
        counts = (status["readyReplicas"], status["generatingReplicas"])
        who = worker["name"] == new["metadata"]["name"]
        return who and (*counts, worker["ready"], worker.get("verdict")) == (1, 0, True, "Stalled")

    until(told, "ready, and not generating")


def evict(api, pod):
    """True where it is granted; False where the budget refuses."""
    name = pod["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    try:
        api.call("POST", f"{api.path('Pod', 'shared', name)}/eviction", body)
    except LookupError as refused:
        if ": 429: " not in str(refused):
            raise
        return False
    return True


def test_a_drain_takes_one_replica_at_a_time_and_always_what_does_not_serve(
    shared, make_endpoint, api, until
):
    endpoint = make_endpoint().create(replicas=2)
    endpoint.start_all(2)
    endpoint.until("Ready", "True")

    def allowed():
        return ((endpoint.child("PodDisruptionBudget", "-workers") or {}).get("status") or {}).get(
            "disruptionsAllowed"
        )

    until(lambda: allowed() == 1, allowed)
    first, second = endpoint.pods()
    endpoint.set_pod_status(first, ready=False)
    until(lambda: allowed() == 0, allowed)
    assert not evict(api, second), "the last that serves stays"
    assert evict(api, first), "one that does not serve protects nobody"
    api.kubectl("scale", "-n", "shared", "vep", endpoint.name, "--replicas=1")
    until(lambda: endpoint.child("PodDisruptionBudget", "-workers") is None, "no budget for one")
