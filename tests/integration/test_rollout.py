"""Upgrades of the operator, requested rollouts, restarts, and drains.

The real controllers reconcile Deployments, ReplicaSets and disruption budgets.
"""

import json
import subprocess
import time

import pytest

from tests.integration.api_server import ROOT
from tests.project_cache import BIN
from tests.user_docs import commands

ROLLOUT = "serving.vllmendpoint.dev/rollout"


def test_an_upgrade_changes_no_pod_until_a_rollout_is_requested(
    operate, make_endpoint, api, namespace, until
):
    first = operate(namespace).until_leading()
    endpoint = make_endpoint(namespace).create()
    endpoint.start_all()
    endpoint.until("Ready", "True")
    before = endpoint.child("Deployment", "-workers")
    first.stop()
    operate(namespace, worker_image="registry.example/worker:2").until_leading()
    until(lambda: endpoint.get()["status"]["revision"]["upgradeAvailable"], "the upgrade is reported")
    after = endpoint.child("Deployment", "-workers")
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert endpoint.get()["status"]["revision"]["image"] == "registry.example/worker:1"
    endpoint.patch(metadata={"annotations": {ROLLOUT: "1"}})
    until(lambda: endpoint.worker_image() == "registry.example/worker:2", endpoint.worker_image)
    rolling = endpoint.until("UpToDate", "False", "RollingOut")
    assert rolling["message"]
    until(lambda: not endpoint.get()["status"]["revision"]["upgradeAvailable"], "the newest revision")
    assert len(api.all("ControllerRevision", namespace)) == 2


def test_a_requested_rollout_restarts_an_unchanged_endpoint(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create()
    endpoint.start_all()
    endpoint.until("Ready", "True")
    old = endpoint.pods()[0]["metadata"]["uid"]
    revision = endpoint.get()["status"]["revision"]["name"]
    endpoint.patch(metadata={"annotations": {ROLLOUT: "now"}})
    until(lambda: endpoint.get()["status"]["revision"]["name"] != revision, "another revision")
    until(lambda: [p for p in endpoint.pods() if p["metadata"]["uid"] != old], "new pods")
    endpoint.until("Ready", "False")
    endpoint.start_all()
    endpoint.until("Ready", "True")


def test_the_documented_command_waits_for_the_end_of_the_restart(shared, make_endpoint, api, until):
    """kubectl starts to wait before the operator has received the request."""
    endpoint = make_endpoint()
    old = create_ready(endpoint, until, 1)
    page = (ROOT / "docs/tasks/upgrade.md").read_text()
    (command,) = [
        block.strip().replace("NAME", endpoint.name) for block in commands(page) if "restartedAt" in block
    ]
    shared_flags = f"--kubeconfig={api.kubeconfig} --namespace=shared"
    command = command.replace("kubectl ", f"{BIN / 'kubectl'} {shared_flags} ")
    with subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, text=True) as kubectl:
        until(
            lambda: api.get("VLLMEndpoint", "shared", endpoint.name)["spec"].get("restartedAt"), "the patch"
        )
        started = set()

        def start_new():
            for pod in endpoint.pods():
                if pod["metadata"]["uid"] not in old | started and not pod["metadata"].get(
                    "deletionTimestamp"
                ):
                    time.sleep(1)  # to detect a wait that ends too early
                    assert kubectl.poll() is None
                    started.add(pod["metadata"]["uid"])
                    endpoint.start_worker(pod)
            return len(started) == 1

        until(start_new, lambda: endpoint.get()["status"], seconds=40)
        assert kubectl.wait(20) == 0
        assert "condition met" in kubectl.stdout.read()
    assert not old & {pod["metadata"]["uid"] for pod in endpoint.pods()}
    assert endpoint.condition("Ready")["status"] == "True"


@pytest.mark.parametrize("removed", ["annotation", "field", "emptied annotation"])
def test_removing_a_restart_request_restarts_nothing(shared, make_endpoint, api, until, removed):
    """With kubectl replace and the manifest from which the endpoint was created."""
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
    offset = api.audit_offset()
    api.kubectl("replace", "-f", "-", text=json.dumps(manifest))
    generation = endpoint.get()["metadata"]["generation"]
    until(lambda: endpoint.get()["status"]["observedGeneration"] == generation, "the change is reconciled")
    endpoint.patch(spec={"replicas": 2})
    until(
        lambda: endpoint.child("Deployment", "-workers")["spec"]["replicas"] == 2, "a later change is applied"
    )
    after = endpoint.child("Deployment", "-workers")
    assert after["spec"]["template"] == before["spec"]["template"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"] + 1, "of the replicas"
    written = [what for what in api.writes(offset, namespace="shared") if f" {endpoint.name}" in what]
    assert not [what for what in written if "controllerrevisions" in what]


@pytest.mark.parametrize(
    "value", ["", "now", "2026-01-31", "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-01-31T12:00:00"]
)
def test_an_invalid_restart_time_is_rejected(shared, make_endpoint, api, value):
    with pytest.raises(LookupError, match=r"422: .*spec\.restartedAt.* must be of type date-time"):
        make_endpoint().create(restartedAt=value)


def test_a_restart_time_needs_no_quotes_in_yaml(shared, make_endpoint, api):
    """YAML has a data type for times."""
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


def create_ready(endpoint, until, replicas):
    """Create it without a frontend. Returns the UIDs of the pods."""
    endpoint.create(replicas=replicas, frontend={"mode": "None"})
    pods = until(lambda: (found := endpoint.pods()) and len(found) == replicas and found, "the workers")
    for pod in pods:
        endpoint.start_worker(pod)
    endpoint.until("Ready", "True")
    return {pod["metadata"]["uid"] for pod in pods}


def test_a_failing_revision_stops_the_rollout_until_it_is_corrected(shared, make_endpoint, api, until):
    endpoint = make_endpoint()
    old = create_ready(endpoint, until, 3)

    def new_pods():
        return [pod for pod in endpoint.pods() if pod["metadata"]["uid"] not in old]

    endpoint.patch(spec={"worker": {"image": "registry.example/worker:broken"}})
    (failing,) = until(new_pods, "the first pod of the new revision")
    endpoint.start_worker(failing, ready=False).send_report("Failing", ready=False)
    stopped = endpoint.until("UpToDate", "False", "RolloutStopped")
    assert stopped["message"].startswith(
        "1 of 3 replicas runs the current revision, and 2 replicas of an older revision remain. The rollout "
        "is stopped, and 2 of 3 replicas continue to serve. "
        f"Pod {failing['metadata']['name']} is not ready: the health probe fails. Failing (set by the test)."
    )
    endpoint.until("Available", "True")
    endpoint.until("Ready", "False")
    time.sleep(2)  # for the next step of a rollout that is not stopped
    assert len(new_pods()) == 1
    assert len(old & {pod["metadata"]["uid"] for pod in endpoint.pods()}) == 2
    old.add(failing["metadata"]["uid"])

    endpoint.patch(spec={"worker": {"image": "registry.example/worker:corrected"}})
    started = set()

    def start_new():
        for pod in new_pods():
            if pod["metadata"]["uid"] not in started and not pod["metadata"].get("deletionTimestamp"):
                started.add(pod["metadata"]["uid"])
                endpoint.start_worker(pod)
        return not old & {pod["metadata"]["uid"] for pod in endpoint.pods()} and len(started) == 3

    until(start_new, lambda: endpoint.get()["status"], seconds=30)
    endpoint.until("UpToDate", "True")
    endpoint.until("Ready", "True")


def replica_sets(api, endpoint):
    return [
        item
        for item in api.all("ReplicaSet", "shared")
        if item["metadata"]["ownerReferences"][0]["name"] == f"{endpoint.name}-workers"
    ]


def test_a_rollout_without_surge_deletes_an_old_pod_first(shared, make_endpoint, api, until):
    """With a surge of 0 there are never more pods than replicas, so a rollout requires no spare GPU."""
    endpoint = make_endpoint()
    old = create_ready(endpoint, until, 2)
    endpoint.patch(spec={"worker": {"image": "registry.example/worker:next"}})
    max_replicas = 0
    started = set()

    def is_rolled_out():
        nonlocal max_replicas
        # Desired replicas: a pod of one ReplicaSet may be created before a pod of the other is deleted.
        max_replicas = max(
            max_replicas, sum(item["spec"]["replicas"] for item in replica_sets(api, endpoint))
        )
        pods = [pod for pod in endpoint.pods() if not pod["metadata"].get("deletionTimestamp")]
        for pod in pods:
            if pod["metadata"]["uid"] not in old | started:
                started.add(pod["metadata"]["uid"])
                endpoint.start_worker(pod)
        return len(started) == 2 and len(pods) == 2

    until(is_rolled_out, "both pods are replaced")
    endpoint.until("Ready", "True")
    assert max_replicas == 2


def test_mode_observe_reports_a_stall_and_stops_no_rollout(shared, make_endpoint, until):
    """In this mode the worker stays ready: verdicts affect neither rollouts nor routing."""
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

    def is_ready_and_stalled():
        status = endpoint.get()["status"]
        worker = status["workers"][0]
        counts = (status["readyReplicas"], status["generatingReplicas"])
        is_new = worker["name"] == new["metadata"]["name"]
        return is_new and (*counts, worker["ready"], worker.get("verdict")) == (1, 0, True, "Stalled")

    until(is_ready_and_stalled, "ready, and not generating")


def evict(api, pod):
    """True if the eviction is granted; False if the disruption budget rejects it."""
    name = pod["metadata"]["name"]
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    try:
        api.call("POST", f"{api.path('Pod', 'shared', name)}/eviction", body)
    except LookupError as error:
        if ": 429: " not in str(error):
            raise
        return False
    return True


def test_a_drain_evicts_one_ready_replica_at_a_time_and_always_an_unready_one(
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
    assert not evict(api, second), "the last ready replica is protected"
    assert evict(api, first), "an unready replica is not protected"
    api.kubectl("scale", "-n", "shared", "vep", endpoint.name, "--replicas=1")
    until(lambda: endpoint.child("PodDisruptionBudget", "-workers") is None, "no budget for one")
