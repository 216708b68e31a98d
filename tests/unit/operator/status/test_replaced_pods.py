"""Finished pods explain why their replacements are not ready yet."""

import pytest

from tests.unit.operator.status.cluster_states import NO_GPU, TERMINATING


def ready_changed(time):
    """The Ready condition of a pod that ended at ``time``."""
    return {"type": "Ready", "status": "False", "lastTransitionTime": f"{time}Z"}


def test_an_evicted_pod_and_its_replacement_are_both_reported(
    make_endpoint, make_status, make_pod, make_worker, finding
):
    endpoint = make_endpoint()
    evicted = make_pod(
        "w-1", ready=False, phase="Failed", reason="Evicted", message="low on resource: memory."
    )
    new = make_worker("w-2", "Starting", settings=endpoint, report={"stage__name": "LoadingWeights"})
    found = make_status(endpoint, evicted, new)
    status, reason, message = finding(found, "Available")
    assert (status, reason) == ("False", "PodFailed")
    assert (
        "Pod w-1 failed on node node-1 (Evicted): low on resource: memory. Set worker.resources.requests"
        in message
    )
    assert "Its replacement is not ready yet. Pod w-2 is starting: stage LoadingWeights since" in message
    assert (found.replicas, [worker.name for worker in found.workers]) == (1, ["w-2"])
    ready = make_status(endpoint, evicted, make_worker("w-2", settings=endpoint))
    assert finding(ready, "Ready")[0] == "True", "the replacement is ready"


def test_a_succeeded_pod_does_not_count_as_a_replica(make_endpoint, make_status, make_pod, make_worker):
    endpoint = make_endpoint()
    succeeded = make_pod("w-1", ready=False, phase="Succeeded")
    found = make_status(endpoint, succeeded, make_worker("w-2", settings=endpoint))
    assert (found.replicas, [worker.name for worker in found.workers]) == (1, ["w-2"])


@pytest.mark.parametrize(("created", "reported"), [("12:00:30", True), ("12:30:00", False)])
def test_an_eviction_explains_only_the_pod_created_right_after_it(
    make_endpoint, make_status, make_pod, make_worker, finding, message_of, created, reported
):
    endpoint = make_endpoint()
    conditions = [ready_changed("2026-01-01T12:00:00")]
    evicted = make_pod("w-1", ready=False, phase="Failed", reason="Evicted", conditions=conditions)
    metadata = {
        "labels": {"pod-template-hash": "new"},
        "creationTimestamp": f"2026-01-01T{created}Z",
    }
    new = make_worker("w-2", "Starting", settings=endpoint, metadata=metadata)
    found = make_status(endpoint, evicted, new)
    assert (finding(found, "Available")[1] == "PodFailed") is reported
    assert ("Evicted" in message_of(found, "Available")) is reported


def test_the_newest_eviction_is_reported(make_endpoint, make_status, make_pod, make_worker, message_of):
    endpoint = make_endpoint()
    evicted = [
        make_pod(
            f"w-{number}",
            ready=False,
            phase="Failed",
            reason="Evicted",
            conditions=[ready_changed(f"2026-01-01T12:0{number}:00")],
        )
        for number in (1, 2)
    ]
    found = make_status(endpoint, *evicted, make_worker("w-3", "Starting", settings=endpoint))
    assert message_of(found, "Available").startswith("0 of 1 replica is ready (minimum: 1). Pod w-2 failed")


@pytest.mark.parametrize("replacement", ["not created", "terminating"])
def test_an_old_eviction_does_not_explain_a_later_start(
    make_endpoint, make_status, make_pod, make_worker, finding, replacement
):
    endpoint = make_endpoint()
    eviction = {"ready": False, "phase": "Failed", "reason": "Evicted"}
    metadata = {
        "labels": {"pod-template-hash": "new"},
        "creationTimestamp": "2025-12-01T12:00:10Z",
        **TERMINATING,
    }
    others = []
    if replacement == "terminating":
        others = [make_worker("w-2", settings=endpoint, metadata=metadata)]
    old = make_pod("w-1", **eviction, conditions=[ready_changed("2025-12-01T12:00:00")])
    assert finding(make_status(endpoint, old, *others), "Available")[1] == "Starting"
    recent = make_pod("w-1", **eviction, conditions=[ready_changed("2026-01-01T11:59:00")])
    assert finding(make_status(endpoint, recent, *others), "Available")[1] == "PodFailed"


def test_resources_on_a_lost_node_are_not_waited_for(
    make_endpoint, make_status, make_pod, make_worker, finding
):
    endpoint = make_endpoint()
    lost = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]
    old = make_worker("w-1", settings=endpoint, metadata=TERMINATING, conditions=lost)
    new = make_pod("w-2", ready=False, phase="Pending", conditions=[NO_GPU], containerStatuses=[])
    status, reason, message = finding(make_status(endpoint, old, new), "Available")
    assert (status, reason) == ("False", "NodeLost")
    assert (
        "Pod w-2 is waiting for the resources of pod w-1, which cannot terminate: node node-1 does not "
        "respond" in message
    )
    terminating = make_worker("w-3", settings=endpoint, metadata=TERMINATING)
    assert finding(make_status(endpoint, old, terminating, new), "Available")[1] == "Starting", (
        "w-3 releases its resources"
    )
