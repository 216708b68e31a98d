"""Deletion of an endpoint with each propagation policy, and creation of an endpoint with the same name."""

import shlex
import time

import pytest

from tests.integration.operator_effects import late_writes, leftovers
from tests.integration.simulated_node import SimulatedNode

COLLECTION_SECONDS = 45
"""Maximum time of a garbage collection: the collector discovers a new CRD within 30 s."""


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
@pytest.mark.parametrize("moment", ["when ready", "during creation"])
def test_deletion_deletes_all_objects_and_no_write_follows(
    operate, make_endpoint, api, namespace, until, propagation, moment
):
    operate(namespace).until_leading()
    endpoint = make_endpoint(namespace).create(replicas=2)
    if moment == "when ready":
        endpoint.start_all(2)
        endpoint.until("Ready", "True")
    else:
        until(lambda: endpoint.child("Deployment", "-workers"), "part of its children")
    offset = api.audit_offset()
    api.delete("VLLMEndpoint", namespace, endpoint.name, propagation)
    until(lambda: not leftovers(api, namespace), lambda: leftovers(api, namespace), COLLECTION_SECONDS)
    time.sleep(1)
    assert leftovers(api, namespace) == []
    assert late_writes(api, offset, namespace) == []


def name_conflicts(api, namespace):
    return [event for event in api.all("Event", namespace) if event["reason"] == "NameTaken"]


def test_an_endpoint_is_recreated_with_the_same_name(operate, make_endpoint, api, namespace, until):
    operate(namespace).until_leading()
    endpoint = make_endpoint(namespace).create(worker={"image": "first:1"})
    endpoint.until("Available", "False", "Starting")
    old = endpoint.get()["metadata"]["uid"]
    api.delete("VLLMEndpoint", namespace, endpoint.name)
    endpoint.create(worker={"image": "second:1"})
    until(lambda: endpoint.worker_image() == "second:1", endpoint.worker_image, COLLECTION_SECONDS)
    uid = endpoint.get()["metadata"]["uid"]
    assert uid != old
    endpoint.until("Available", "False", "Starting")
    until(lambda: len(endpoint.owned()) == 12, lambda: [o["metadata"]["name"] for o in endpoint.owned()])
    assert name_conflicts(api, namespace) == [], "children of the deleted endpoint are no conflict"


def test_an_endpoint_is_recreated_while_a_child_of_the_old_one_terminates(
    operate, make_endpoint, api, namespace, until
):
    """For example because of a finalizer of a service mesh, or a slow pod."""
    operate(namespace).until_leading()
    endpoint = make_endpoint(namespace).create(worker={"image": "first:1"})
    endpoint.until("Available", "False", "Starting")
    held = f"{endpoint.name}-workers"
    api.patch("Service", namespace, held, {"metadata": {"finalizers": ["example.com/held"]}})
    api.delete("VLLMEndpoint", namespace, endpoint.name)
    until(
        lambda: "deletionTimestamp" in endpoint.child("Service", "-workers")["metadata"],
        "the garbage collector deletes it",
        COLLECTION_SECONDS,
    )
    endpoint.create(worker={"image": "second:1"})
    endpoint.until("UpToDate", "Unknown", "Pending")
    pending = f"The Service '{held}' is being deleted. The operator creates it again after that."
    # Messages about other children may precede it: the garbage collector deletes them in any order.
    until(lambda: pending in endpoint.condition("UpToDate")["message"], endpoint.get)
    assert endpoint.condition("Accepted")["status"] == "True", "no action is required"
    assert endpoint.condition("Reconciling")["status"] == "True"
    api.patch("Service", namespace, held, {"metadata": {"finalizers": None}})
    SimulatedNode(endpoint).run()
    assert endpoint.worker_image() == "second:1"
    assert name_conflicts(api, namespace) == []


def test_orphans_keep_their_names_until_they_are_deleted(operate, make_endpoint, api, namespace, until):
    operate(namespace).until_leading()
    endpoint = make_endpoint(namespace).create()
    SimulatedNode(endpoint).run()
    pods = {pod["metadata"]["uid"] for pod in endpoint.pods()}
    children = {(obj["kind"], obj["metadata"]["name"]) for obj in endpoint.owned()}
    offset = api.audit_offset()
    api.delete("VLLMEndpoint", namespace, endpoint.name, "Orphan")
    until(lambda: api.get("VLLMEndpoint", namespace, endpoint.name) is None, "it is gone", COLLECTION_SECONDS)
    orphans = [api.get(kind, namespace, name) for kind, name in children]
    assert all(obj and "ownerReferences" not in obj["metadata"] for obj in orphans)
    assert late_writes(api, offset, namespace) == []

    endpoint.create(worker={"image": "second:1"})
    conflict = endpoint.until("Accepted", "False", "NameTaken")
    assert (
        "remains from an earlier endpoint of this name that was deleted with --cascade=orphan"
        in conflict["message"]
    )
    assert endpoint.condition("Ready")["message"] == conflict["message"]
    assert endpoint.condition("Stalled")["status"] == "True"
    assert {pod["metadata"]["uid"] for pod in endpoint.pods()} == pods, "the orphaned pods keep serving"
    adopted = {(obj["kind"], obj["metadata"]["name"]) for obj in endpoint.owned()} & children
    assert adopted == set(), "orphans are not adopted"

    command = shlex.split(conflict["message"].partition("`kubectl ")[2].partition("`")[0])
    api.kubectl(*command)
    SimulatedNode(endpoint).run(seconds=COLLECTION_SECONDS)
    assert endpoint.worker_image() == "second:1"
    until(lambda: not pods & {pod["metadata"]["uid"] for pod in endpoint.pods()}, "the old pods are deleted")


def test_an_endpoint_is_deleted_with_its_namespace_and_recreated_in_a_new_one(
    operate, make_endpoint, api, namespace, until
):
    operator_namespace = f"{namespace}-operator"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": operator_namespace}})
    operator = operate(operator_namespace, namespaces=namespace).until_leading()
    endpoint = make_endpoint(namespace).create(replicas=2)
    SimulatedNode(endpoint).run()
    path = f"/api/v1/namespaces/{namespace}"
    api.call("DELETE", path)
    offset = api.audit_offset()

    def gone():
        try:
            return not api.call("GET", path)
        except LookupError:
            return True

    until(gone, lambda: api.call("GET", path), 60)
    requests = api.requests(offset, namespace=namespace)
    assert len(requests) < 100, "rejected requests are not repeated in a tight loop"
    created = [entry for entry in requests if entry["responseStatus"]["code"] == 201]
    # An Event that follows its status write may be in flight during the deletion.
    assert [entry["requestURI"] for entry in created if entry["objectRef"]["resource"] != "events"] == []
    assert operator.process.poll() is None
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    for worker in endpoint.started:
        worker.close_streams()
    recreated = make_endpoint(namespace, endpoint.name).create()
    SimulatedNode(recreated).run(seconds=COLLECTION_SECONDS)
