"""What each way of deleting an endpoint leaves, and what then happens under its name."""

import shlex
import time

import pytest

from tests.integration.operator_effects import late_writes, leftovers
from tests.integration.simulated_node import SimulatedNode

GARBAGE_COLLECTED = 45
"""Seconds: the garbage collector learns of a new CRD within 30."""


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
@pytest.mark.parametrize("moment", ["settled", "fresh"])
def test_deletion_leaves_nothing_and_nothing_is_written_after_it(
    operate, make_endpoint, api, namespace, until, propagation, moment
):
    operate(namespace).leads()
    endpoint = make_endpoint(namespace).create(replicas=2)
    if moment == "settled":
        endpoint.start_all(2)
        endpoint.until("Ready", "True")
    else:
        until(lambda: endpoint.child("Deployment", "-workers"), "half way")
    mark = api.audit_offset()
    api.delete("VLLMEndpoint", namespace, endpoint.name, propagation)
    until(lambda: not leftovers(api, namespace), lambda: leftovers(api, namespace), GARBAGE_COLLECTED)
    time.sleep(1)
    assert leftovers(api, namespace) == []
    assert late_writes(api, mark, namespace) == []


def image(endpoint):
    deployment = endpoint.child("Deployment", "-workers")
    return deployment and deployment["spec"]["template"]["spec"]["containers"][0]["image"]


def alarms(api, namespace):
    return [event for event in api.all("Event", namespace) if event["reason"] == "NameTaken"]


def test_made_anew_under_the_same_name(operate, make_endpoint, api, namespace, until):
    operate(namespace).leads()
    endpoint = make_endpoint(namespace).create(worker={"image": "first:1"})
    endpoint.until("Available", "False", "Starting")
    old = endpoint.get()["metadata"]["uid"]
    api.delete("VLLMEndpoint", namespace, endpoint.name)
    endpoint.create(worker={"image": "second:1"})
    until(lambda: image(endpoint) == "second:1", lambda: image(endpoint), GARBAGE_COLLECTED)
    uid = endpoint.get()["metadata"]["uid"]
    assert uid != old
    endpoint.until("Available", "False", "Starting")
    until(lambda: len(endpoint.owned()) == 12, lambda: [o["metadata"]["name"] for o in endpoint.owned()])
    assert alarms(api, namespace) == [], "its own predecessor is no alarm"


def test_made_anew_while_a_child_of_the_old_one_is_held(operate, make_endpoint, api, namespace, until):
    """As by a finalizer of a service mesh, or a pod that takes its time."""
    operate(namespace).leads()
    endpoint = make_endpoint(namespace).create(worker={"image": "first:1"})
    endpoint.until("Available", "False", "Starting")
    held = f"{endpoint.name}-workers"
    api.patch("Service", namespace, held, {"metadata": {"finalizers": ["example.com/held"]}})
    api.delete("VLLMEndpoint", namespace, endpoint.name)
    until(
        lambda: "deletionTimestamp" in endpoint.child("Service", "-workers")["metadata"],
        "the garbage collector is there",
        GARBAGE_COLLECTED,
    )
    endpoint.create(worker={"image": "second:1"})
    endpoint.until("UpToDate", "Unknown", "Pending")
    told = f"the Service '{held}' is being deleted; this goes on when it is gone"
    # After those that go with it, in whatever order the collector takes them.
    until(lambda: told in endpoint.condition("UpToDate")["message"], endpoint.get)
    assert endpoint.condition("Accepted")["status"] == "True", "nobody has to do anything"
    assert endpoint.condition("Reconciling")["status"] == "True"
    api.patch("Service", namespace, held, {"metadata": {"finalizers": None}})
    SimulatedNode(endpoint).run()
    assert image(endpoint) == "second:1"
    assert alarms(api, namespace) == []


def test_orphans_stay_and_their_name_is_taken_until_they_are_deleted(
    operate, make_endpoint, api, namespace, until
):
    operate(namespace).leads()
    endpoint = make_endpoint(namespace).create()
    SimulatedNode(endpoint).run()
    pods = {pod["metadata"]["uid"] for pod in endpoint.pods()}
    children = {(obj["kind"], obj["metadata"]["name"]) for obj in endpoint.owned()}
    mark = api.audit_offset()
    api.delete("VLLMEndpoint", namespace, endpoint.name, "Orphan")
    until(lambda: api.get("VLLMEndpoint", namespace, endpoint.name) is None, "it is gone", GARBAGE_COLLECTED)
    left = [api.get(kind, namespace, name) for kind, name in children]
    assert all(obj and "ownerReferences" not in obj["metadata"] for obj in left)
    assert late_writes(api, mark, namespace) == []

    endpoint.create(worker={"image": "second:1"})
    taken = endpoint.until("Accepted", "False", "NameTaken")
    assert "was left by an earlier endpoint of this name, deleted with --cascade=orphan" in taken["message"]
    assert endpoint.condition("Ready")["message"] == taken["message"]
    assert endpoint.condition("Stalled")["status"] == "True"
    assert {pod["metadata"]["uid"] for pod in endpoint.pods()} == pods, "they serve on"
    touched = {(obj["kind"], obj["metadata"]["name"]) for obj in endpoint.owned()} & children
    assert touched == set(), "what is not its own is not applied to"

    command = shlex.split(taken["message"].partition("kubectl ")[2])
    api.kubectl(*command)
    SimulatedNode(endpoint).run(seconds=GARBAGE_COLLECTED)
    assert image(endpoint) == "second:1"
    until(lambda: not pods & {pod["metadata"]["uid"] for pod in endpoint.pods()}, "the old ones go")


def test_with_its_namespace_and_again_in_a_new_one(operate, make_endpoint, api, namespace, until):
    home = f"{namespace}-home"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": home}})
    operator = operate(home, namespaces=namespace).leads()
    endpoint = make_endpoint(namespace).create(replicas=2)
    SimulatedNode(endpoint).run()
    path = f"/api/v1/namespaces/{namespace}"
    api.call("DELETE", path)
    mark = api.audit_offset()

    def gone():
        try:
            return not api.call("GET", path)
        except LookupError:
            return True

    until(gone, lambda: api.call("GET", path), 60)
    asked = api.requests(mark, namespace=namespace)
    assert len(asked) < 100, "what is refused is not asked for again and again"
    made = [entry for entry in asked if entry["responseStatus"]["code"] == 201]
    # An Event that follows its status write may cross with the deletion.
    assert [entry["requestURI"] for entry in made if entry["objectRef"]["resource"] != "events"] == []
    assert operator.process.poll() is None
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    for worker in endpoint.started:
        worker.close_streams()
    again = make_endpoint(namespace, endpoint.name).create()
    SimulatedNode(again).run(seconds=GARBAGE_COLLECTED)
