"""``UpToDate``: counts of a rollout, and what stops it."""

import pytest

from tests.unit.operator.status.cluster_states import NO_GPU, TERMINATING, crashed, of_template
from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import PlanError


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"observedGeneration": 0, "replicas": 2, "updatedReplicas": 2}, "2 of 2 replicas run the current"),
        (
            {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 1},
            "1 of 2 replicas runs the current revision, and 1",
        ),
        (
            {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 2},
            "revision, and 1 replica of an older revision remains.",
        ),
        (
            {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1},
            "2 of 2 replicas run the current revision, and 1 of them is available.",
        ),
        ({}, "0 of 2 replicas run the current revision."),
    ],
)
def test_an_incomplete_rollout_is_reported_with_its_counts(
    make_endpoint, children_with, make_status, make_worker, states, message_of, status, expected
):
    endpoint = make_endpoint(replicas=2)
    pods = [make_worker(f"w-{number}", settings=endpoint) for number in range(2)]
    children = children_with(endpoint)
    children["Deployment", "smollm-workers"]["status"] = status
    found = make_status(endpoint, *pods, children=children)
    assert states(found)["UpToDate"] == states(found)["Ready"] == ("False", "RollingOut")
    assert states(found)["Reconciling"] == ("True", "RollingOut")
    assert expected in message_of(found, "UpToDate")


@pytest.mark.parametrize(
    ("revision", "expected"),
    [("the same", "UpToDate"), ("another", "RollingOut"), ("none before", "RollingOut")],
)
def test_a_replica_that_becomes_unavailable_later_does_not_undo_a_rollout(
    make_endpoint, children_with, make_status, make_worker, states, revision, expected
):
    first = make_endpoint(replicas=2)
    pods = [make_worker(f"w-{number}", settings=first) for number in range(2)]
    before = None if revision == "none before" else make_status(first, *pods)
    change = {"engine": {"args": ["--seed", "1"]}} if revision == "another" else {}
    endpoint = make_endpoint(replicas=2, before=before, **change)
    children = children_with(endpoint, replicas=2, updatedReplicas=2, availableReplicas=1)
    assert states(make_status(endpoint, *pods, children=children))["UpToDate"][1] == expected


@pytest.mark.parametrize("created", ["11:30", "11:00"], ids=["later", "in the same second"])
def test_a_new_replica_that_crashes_stops_the_rollout(
    make_endpoint, children_with, make_status, make_pod, make_worker, finding, created
):
    endpoint = make_endpoint(replicas=3)
    children = children_with(endpoint, replicas=3, updatedReplicas=1)
    old = [make_worker(f"w-{i}", settings=endpoint, metadata=of_template("old", "11:00")) for i in (1, 2)]
    new = make_pod(
        "w-3", ready=False, container=crashed("ValueError: no"), metadata=of_template("new", created)
    )
    found = make_status(endpoint, *old, new, children=children)
    status, reason, message = finding(found, "UpToDate")
    assert (status, reason) == ("False", "RolloutStopped")
    assert message.startswith(
        "1 of 3 replicas runs the current revision, and 2 replicas of an older revision remain. "
        "The rollout is stopped, and 2 of 3 replicas continue to serve. "
        "Pod w-3 terminated with exit code 1 (3 restarts). Its last message was: ValueError: no. "
        "See `kubectl logs w-3"
    )
    assert finding(found, "Available")[0] == "True"
    assert finding(found, "Ready")[:2] == ("False", "RolloutStopped")
    assert finding(found, "Reconciling")[0] == "False"


def test_an_old_replica_that_crashes_does_not_stop_the_rollout(
    make_endpoint, children_with, make_status, make_pod, make_worker, finding
):
    """The Deployment controller replaces the unready pods of the old revision first."""
    endpoint = make_endpoint(replicas=3)
    children = children_with(endpoint, replicas=3, updatedReplicas=1)
    old = make_pod("w-1", ready=False, container=crashed("x"), metadata=of_template("old", "11:00"))
    good = make_worker("w-2", settings=endpoint, metadata=of_template("old", "11:00"))
    new = make_worker("w-3", "Starting", settings=endpoint, metadata=of_template("new", "11:30"))
    found = make_status(endpoint, old, good, new, children=children)
    assert finding(found, "UpToDate")[1] == "RollingOut"
    assert finding(found, "Reconciling")[0] == "True"


@pytest.mark.parametrize(
    ("verdict", "problem"),
    [
        ("Stalled", "the engine is stalled"),
        ("Failing", "the health probe fails"),
        ("Dead", "the engine is dead"),
    ],
)
def test_a_new_replica_that_does_not_generate_stops_the_rollout(
    make_endpoint, children_with, make_status, make_worker, finding, verdict, problem
):
    endpoint = make_endpoint(replicas=2)
    children = children_with(endpoint, replicas=2, updatedReplicas=1)
    old = make_worker("w-1", settings=endpoint, metadata=of_template("old", "11:00"))
    new = make_worker(
        "w-2",
        verdict,
        settings=endpoint,
        metadata=of_template("new", "11:30"),
        report={"verdict__message": "The cause."},
    )
    found = make_status(endpoint, old, new, children=children)
    _, reason, message = finding(found, "UpToDate")
    assert reason == "RolloutStopped"
    assert f"1 of 2 replicas continues to serve. Pod w-2 is not ready: {problem}. The cause." in message
    assert finding(found, "Available")[0] == "True"


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_rollout_without_a_spare_gpu_waits_for_the_old_pod_to_terminate(
    make_endpoint, children_with, make_status, make_pod, make_worker, finding, replicas
):
    """With ``maxSurge: 0`` the new pod is created while the old one terminates and still has its GPU."""
    endpoint = make_endpoint(replicas=replicas)
    children = children_with(endpoint, replicas=replicas, updatedReplicas=1)
    others = [make_worker("w-2", settings=endpoint, metadata=of_template("old", "11:00"))][: replicas - 1]
    old = make_worker("w-1", settings=endpoint, metadata=of_template("old", "11:00") | TERMINATING)
    pending = make_pod(
        "w-3",
        ready=False,
        metadata=of_template("new", "12:00"),
        phase="Pending",
        conditions=[NO_GPU],
        containerStatuses=[],
    )
    found = make_status(endpoint, old, *others, pending, children=children)
    assert finding(found, "UpToDate")[1] == "RollingOut"
    assert next(worker.reason for worker in found.workers if worker.name == "w-3") == "Starting"
    if replicas == 1:
        assert finding(found, "Available") == (
            "False",
            "Starting",
            (
                "0 of 1 replica is ready (minimum: 1). "
                "Pod w-3 is waiting for pod w-1 to terminate and release its resources."
            ),
        )
    terminated = make_status(endpoint, *others, pending, children=children)
    kind = "Available" if replicas == 1 else "UpToDate"
    expected = "InsufficientGPU" if replicas == 1 else "RolloutStopped"
    assert finding(terminated, kind)[1] == expected


def test_a_resource_that_is_being_deleted_delays_the_rollout_without_an_error(
    make_endpoint, make_status, states, message_of
):
    found = make_status(make_endpoint(), problem=PlanError(Reason.PENDING, "x is being deleted"))
    assert message_of(found, "UpToDate") == (
        "The operator could not apply the current revision: x is being deleted."
    )
    assert states(found)["Accepted"][0] == "True"
    assert states(found)["Stalled"][0] == "False"
    assert states(found)["Reconciling"][0] == "True"
    assert states(found)["Ready"][0] == "False"
