"""``Ready``, ``Reconciling`` and ``Stalled``: the summary of the other conditions."""

from dataclasses import replace

import pytest

from tests.unit.operator.status.cluster_states import crashed, replica_failure
from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import PlanError


@pytest.fixture
def after_rollout(make_endpoint, make_status):
    """The status of an endpoint whose rollout was complete with the pods ``before``."""

    def make(*pods, endpoint, before, **more):
        previous = make_status(endpoint, *before)
        return make_status(replace(endpoint, status=previous), *pods, **more)

    return make


@pytest.mark.parametrize(("count", "verb"), [(1, "replica is"), (2, "replicas are"), (5, "replicas are")])
def test_the_message_counts_the_generating_replicas(
    make_endpoint, make_status, make_worker, finding, count, verb
):
    endpoint = make_endpoint(replicas=count)
    found = make_status(endpoint, *[make_worker(f"w-{n}", settings=endpoint) for n in range(count)])
    assert finding(found) == ("True", "Ready", f"{count} of {count} {verb} generating.")


MISSING = {
    "crashed": (
        {"ready": False, "container": crashed(code=139, restarts=1)},
        "Pod w-2 terminated with exit code 139 (1 restart). See `kubectl logs w-2 --previous`.",
    ),
    "starting": (
        {"ready": False, "container": {"started": False}},
        "Pod w-2 is starting (phase Running).",
    ),
    "without an image": (
        {
            "ready": False,
            "container": {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "404"}}},
        },
        "Pod w-2 cannot pull the image registry.example/worker:1: 404.",
    ),
    "evicted and not replaced yet": (
        {"ready": False, "phase": "Failed", "reason": "Evicted"},
        "Pod w-2 failed on node node-1 (Evicted).",
    ),
}


@pytest.mark.parametrize("missing", MISSING)
def test_a_missing_replica_of_two_is_explained_in_the_message(
    make_endpoint, after_rollout, make_pod, make_worker, finding, missing
):
    endpoint = make_endpoint(replicas=2)
    good, other = (make_worker(name, settings=endpoint) for name in ("w-1", "w-2"))
    pod, cause = MISSING[missing]
    found = after_rollout(good, make_pod("w-2", **pod), endpoint=endpoint, before=[good, other])
    status, reason, message = finding(found)
    assert (status, reason) == ("True", "Ready")
    assert message.startswith(f"1 of 2 replicas is generating. 1 replica is not ready. {cause}")


def test_the_message_has_the_stage_of_a_restarting_replica(make_endpoint, make_status, make_worker, finding):
    endpoint = make_endpoint(replicas=2)
    stage = {"stage__name": "LoadingWeights"}
    loading = make_worker("w-2", "Starting", settings=endpoint, report=stage, container={"started": False})
    found = make_status(endpoint, make_worker("w-1", settings=endpoint), loading)
    assert finding(found)[2] == (
        "1 of 2 replicas is generating. 1 replica is not ready. Pod w-2 is starting: stage LoadingWeights "
        "since 11:50:00 UTC. It must start within 7200 s (worker.startupTimeoutSeconds)."
    )


def test_the_message_has_the_rejection_of_a_replacement_pod(
    make_endpoint, children_with, after_rollout, make_worker, finding
):
    endpoint = make_endpoint(replicas=3, strategy={"rollingUpdate": {"maxUnavailable": 2}})
    pods = [make_worker(f"w-{n}", settings=endpoint) for n in range(3)]
    children = children_with(
        endpoint,
        replicas=3,
        updatedReplicas=3,
        availableReplicas=1,
        conditions=[replica_failure('pods "x" is forbidden: exceeded quota: q')],
    )
    found = after_rollout(pods[0], endpoint=endpoint, before=pods, children=children)
    assert finding(found)[2] == (
        "1 of 3 replicas is generating. 2 replicas are not ready. Kubernetes cannot create pods of the "
        'Deployment smollm-workers: pods "x" is forbidden: exceeded quota: q. Raise the ResourceQuota, or '
        "request less."
    )


def test_a_missing_frontend_pod_is_explained_in_the_message(
    make_endpoint, make_status, make_pod, make_worker, finding
):
    endpoint = make_endpoint(frontend={"replicas": 2})
    worker = make_worker(settings=endpoint)
    both = (make_pod("f-1"), make_pod("f-2"))
    complete = make_status(endpoint, worker, frontends=both)
    assert finding(complete)[2] == "1 of 1 replica is generating."
    one = (both[0], make_pod("f-2", ready=False, container=crashed()))
    found = make_status(replace(endpoint, status=complete), worker, frontends=one)
    assert finding(found)[2].startswith(
        "1 of 1 replica is generating. 1 of 2 frontend pods is ready. 1 frontend pod is not ready. "
        "Pod f-2 terminated with"
    )


def test_without_probing_the_message_counts_ready_replicas(
    make_endpoint, make_status, make_worker, make_pod, finding
):
    endpoint = make_endpoint(replicas=2, healthCheck={"mode": "Disabled"})
    pods = [make_worker(name, "Disabled", settings=endpoint) for name in ("w-1", "w-2")]
    found = make_status(endpoint, *pods)
    assert finding(found) == ("True", "Ready", "2 of 2 replicas are ready.")
    broken = make_pod("w-2", ready=False, container=crashed())
    after = make_status(replace(endpoint, status=found), pods[0], broken)
    assert finding(after)[2].startswith(
        "1 of 2 replicas is ready. 1 replica is not ready. Pod w-2 terminated"
    )


def test_a_new_leader_keeps_the_message_until_the_first_reports(
    make_endpoint, make_status, make_worker, make_pod, finding
):
    endpoint = make_endpoint(replicas=2)
    good = make_worker("w-1", settings=endpoint)
    stage = {"stage__name": "LoadingWeights"}
    loading = make_worker("w-2", "Starting", settings=endpoint, report=stage, container={"started": False})
    before = make_status(endpoint, good, loading)
    without_reports = [make_pod("w-1"), make_pod("w-2", ready=False, container={"started": False})]
    after = make_status(replace(endpoint, status=before), *without_reports)
    assert finding(after) == finding(before)


@pytest.mark.parametrize(
    ("reason", "where"),
    [
        (Reason.INVALID_SPEC, "Accepted"),
        (Reason.INVALID_POD_TEMPLATE, "Accepted"),
        (Reason.NAME_TAKEN, "Accepted"),
        (Reason.CONFIG_MAP_NOT_FOUND, "ResolvedRefs"),
        (Reason.CONFIG_MAP_KEY_NOT_FOUND, "ResolvedRefs"),
    ],
)
def test_a_terminal_error_is_stalled_and_what_runs_stays_available(
    make_endpoint, make_status, make_worker, states, message_of, reason, where
):
    endpoint = make_endpoint()
    worker = make_worker(settings=endpoint)
    found = make_status(endpoint, worker, problem=PlanError(reason, "What to do."), children={})
    assert states(found)[where] == states(found)["Ready"] == ("False", reason.value)
    assert states(found)["Stalled"] == ("True", reason.value)
    assert message_of(found, "Stalled") == "What to do."
    assert message_of(found, "Reconciling") == "Reconciliation is blocked until the error is fixed."
    assert states(found)["Available"][0] == "True"
    if where == "ResolvedRefs":
        assert "The API server validates the pods once every referenced object exists." in message_of(
            found, "Accepted"
        )
