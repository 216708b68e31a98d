"""Problems of pods of an older template are not reported as problems of the current spec."""

from dataclasses import replace

import pytest

OLD = {"labels": {"pod-template-hash": "old"}, "creationTimestamp": "2026-01-01T11:00:00Z"}
NEW = {"labels": {"pod-template-hash": "new"}, "creationTimestamp": "2026-01-01T11:59:00Z"}
NO_SECRET = {"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}
NO_IMAGE = {"reason": "ImagePullBackOff", "message": "no such image"}
REFUSED = {
    "configuration__state": "Refused",
    "configuration__problems": [
        {"reason": "InvalidEnvironment", "source": "Environment", "field": "X", "message": "no."}
    ],
    "stage__name": "Refused",
    "started": False,
    "ready": False,
}


def waiting(waits):
    return {"ready": False, "container": {"state": {"waiting": waits}, "started": False}, "phase": "Pending"}


def states_of(condition, found, *kinds):
    return tuple((condition(found, kind).status, condition(found, kind).reason) for kind in kinds)


def unseen(make_plan, make_observed, endpoint):
    """The Deployment controller has not observed the newest spec yet."""
    children = dict(make_observed(make_plan(endpoint)).children)
    for key, obj in children.items():
        if key[0] == "Deployment":
            children[key] = {**obj, "metadata": {**obj["metadata"], "generation": 2}}
    return children


def test_a_corrected_secret_reference_resolves_before_older_pods_are_gone(
    make_endpoint, make_plan, make_observed, make_status, make_pod, make_worker, condition
):
    endpoint = make_endpoint(replicas=3)
    old = [make_pod(f"w-{i}", metadata=OLD, **waiting(NO_SECRET)) for i in (1, 2)]
    broken = make_pod("w-3", metadata=NEW, **waiting(NO_SECRET))
    loading = make_worker("w-3", "Starting", settings=endpoint, metadata=NEW)
    kinds = ("ResolvedRefs", "Stalled", "Available")
    assert states_of(condition, make_status(endpoint, *old, broken), *kinds) == (
        ("False", "SecretNotFound"),
        ("True", "SecretNotFound"),
        ("False", "SecretNotFound"),
    )
    assert states_of(condition, make_status(endpoint, *old, loading), *kinds) == (
        ("True", "Resolved"),
        ("False", "Settled"),
        ("False", "Starting"),
    )
    # Between the new spec and its first pod, no condition reports a problem.
    between = make_status(endpoint, *old, children=unseen(make_plan, make_observed, endpoint))
    assert states_of(condition, between, "ResolvedRefs", "Stalled", "Reconciling") == (
        ("Unknown", "Pending"),
        ("False", "Settled"),
        ("True", "Pending"),
    )


def test_a_corrected_environment_resolves_before_older_pods_are_gone(
    make_endpoint, make_plan, make_observed, make_status, make_worker, condition
):
    endpoint = make_endpoint(replicas=2)
    old = make_worker("w-1", "Starting", settings=endpoint, metadata=OLD, report=REFUSED)
    again = make_worker("w-2", "Starting", settings=endpoint, metadata=NEW, report=REFUSED)
    loading = make_worker("w-2", "Starting", settings=endpoint, metadata=NEW)
    kinds = ("ConfigurationResolved", "Stalled")
    assert states_of(condition, make_status(endpoint, old, again), *kinds) == (
        ("False", "InvalidEnvironment"),
        ("True", "InvalidEnvironment"),
    )
    assert states_of(condition, make_status(endpoint, old, loading), *kinds) == (
        ("Unknown", "Pending"),
        ("False", "Settled"),
    )
    between = make_status(endpoint, old, children=unseen(make_plan, make_observed, endpoint))
    assert states_of(condition, between, *kinds) == (("Unknown", "Pending"), ("False", "Settled"))


def test_settings_that_an_older_worker_rejects_are_reported(
    make_endpoint, make_status, make_worker, make_pod, condition
):
    """An older worker that serves requests rejects new settings like any other worker."""
    endpoint = make_endpoint(replicas=2)
    serves = {**REFUSED, "stage__name": "Serving", "started": True}
    old = make_worker("w-1", settings=endpoint, metadata=OLD, report=serves)
    pending = make_pod("w-2", metadata=NEW, **waiting({"reason": "ContainerCreating"}))
    assert states_of(condition, make_status(endpoint, old, pending), "ConfigurationResolved") == (
        ("False", "InvalidEnvironment"),
    )


def test_a_corrected_image_is_not_reported_for_older_pods(
    make_endpoint, make_status, make_pod, make_worker, condition
):
    endpoint = make_endpoint(replicas=2)
    old = make_pod("w-1", metadata=OLD, **waiting(NO_IMAGE))
    loading = make_worker("w-2", "Starting", settings=endpoint, metadata=NEW)
    assert states_of(condition, make_status(endpoint, old, loading), "Available", "Ready") == (
        ("False", "Starting"),
        ("False", "Starting"),
    )


@pytest.mark.parametrize("made", ["2026-01-01T11:00:00Z", "2026-01-01T11:59:30Z"], ids=["before", "after"])
def test_a_recreated_older_pod_is_not_of_the_new_revision(
    make_endpoint, make_plan, make_observed, make_status, make_pod, make_worker, condition, made
):
    """A drain during the rollout: the old ReplicaSet creates the newest pod."""
    endpoint = make_endpoint(replicas=3)
    children = dict(make_observed(make_plan(endpoint)).children)
    key = ("Deployment", "smollm-workers")
    status = {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 1}
    children[key] = {**children[key], "status": status}
    serving = make_worker("w-1", settings=endpoint, metadata=OLD)
    remade = make_pod("w-2", metadata={**OLD, "creationTimestamp": made}, **waiting(NO_IMAGE))
    crashing = make_pod("w-3", metadata=NEW, **waiting(NO_IMAGE))
    stopped = make_status(endpoint, serving, remade, crashing, children=children)
    assert states_of(condition, stopped, "UpToDate") == (("False", "RolloutStopped"),)
    assert "Pod w-3 cannot pull" in condition(stopped, "UpToDate").message
    loading = make_worker("w-3", "Starting", settings=endpoint, metadata=NEW)
    goes_on = make_status(endpoint, serving, remade, loading, children=children)
    assert states_of(condition, goes_on, "UpToDate") == (("False", "RollingOut"),)


def test_a_rejected_rollout_is_not_the_current_revision(make_endpoint, make_plan, make_observed, make_worker):
    from vllmendpoint_api import Reason
    from vllmendpoint_operator.errors import PlanError
    from vllmendpoint_operator.status import endpoint_status

    endpoint = make_endpoint()
    observed = make_observed(make_plan(endpoint), pods=[make_worker(settings=endpoint)])
    before = endpoint_status(endpoint, observed, make_plan(endpoint, observed), None)
    changed = replace(make_endpoint(worker={"image": "registry.example/worker:next"}), status=before)
    problem = PlanError(Reason.INVALID_POD_TEMPLATE, "no")
    after = endpoint_status(changed, observed, make_plan(changed, observed), problem)
    assert after.revision == before.revision
    taken = endpoint_status(changed, observed, make_plan(changed, observed), None)
    assert taken.revision.image == "registry.example/worker:next"


@pytest.mark.parametrize("step", ["the replicas first", "the old template again"])
def test_a_deployment_that_still_has_an_older_revision_number(
    make_endpoint, make_plan, make_observed, make_status, make_pod, condition, step
):
    """The Deployment controller writes both steps with the newest ``observedGeneration``."""
    endpoint = make_endpoint(replicas=2)
    observed = make_observed(make_plan(endpoint))
    children, hashes = dict(observed.children), dict(observed.template_hashes)
    key = ("Deployment", "smollm-workers")
    status = {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 1}
    if step == "the replicas first":
        status["updatedReplicas"] = 0
    else:
        hashes |= {("smollm-workers", "10"): "old", ("smollm-workers", "9"): "oldest"}
    children[key] = {**children[key], "status": status}
    broken = make_pod("w-1", metadata=NEW, **waiting(NO_SECRET))
    serving = make_pod("w-2", metadata=NEW)
    found = make_status(endpoint, broken, serving, children=children, template_hashes=hashes)
    assert states_of(condition, found, "ResolvedRefs", "Stalled") == (
        ("Unknown", "Pending"),
        ("False", "Settled"),
    )
    assert condition(found, "UpToDate").reason == "RollingOut"


def test_rejections_by_pods_of_an_unknown_template(
    make_endpoint, make_plan, make_observed, make_status, make_worker, condition
):
    endpoint = make_endpoint(replicas=2)
    never = make_worker("w-1", "Starting", settings=endpoint, metadata=OLD, report=REFUSED)
    hot = {**REFUSED, "stage__name": "Serving", "started": True}
    hot["configuration__problems"] = [{**REFUSED["configuration__problems"][0], "reason": "InvalidPayload"}]
    serves = make_worker("w-2", settings=endpoint, metadata=OLD, report=hot)
    found = make_status(endpoint, never, serves, children=unseen(make_plan, make_observed, endpoint))
    assert states_of(condition, found, "ConfigurationResolved") == (("False", "InvalidPayload"),)


def test_a_quota_that_blocks_new_pods_is_reported_before_problems_of_older_pods(
    make_endpoint, make_plan, make_observed, make_status, make_pod, condition
):
    endpoint = make_endpoint(replicas=1)
    children = dict(make_observed(make_plan(endpoint)).children)
    key = ("Deployment", "smollm-workers")
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: q"}
    status = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 0, "conditions": [failure]}
    children[key] = {**children[key], "status": status}
    old = make_pod("w-1", metadata=OLD, **waiting(NO_IMAGE))
    found = make_status(endpoint, old, children=children)
    assert states_of(condition, found, "Available") == (("False", "PodCreationFailed"),)


def test_problems_of_older_pods_are_not_reported_for_new_pods(
    make_endpoint, make_status, make_pod, make_worker, condition
):
    endpoint = make_endpoint(replicas=2)
    old = make_pod("w-1", metadata=OLD, **waiting(NO_SECRET))
    found = make_status(endpoint, old, make_worker("w-2", settings=endpoint, metadata=NEW))
    assert condition(found, "Generating").message == "1 of 1 started replica is generating."
