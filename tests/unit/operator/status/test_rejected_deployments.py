"""Messages about Deployments whose pods the API server rejects, or that the operator does not apply."""

import pytest

from tests.unit.operator.status.cluster_states import (
    CPU_UNSPECIFIED,
    POD_SECURITY,
    QUOTA_EXCEEDED,
    of_template,
    replica_failure,
)
from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import PlanError

FRONTEND_DOWN = "0 of 1 frontend pod is ready, so the endpoint accepts no requests."


@pytest.mark.parametrize(
    ("rejection", "remedy"),
    [
        (QUOTA_EXCEEDED, "limited: pods=0. Raise the ResourceQuota, or lower replicas or strategy."),
        (
            POD_SECURITY,
            "privileged=true). Change worker.podTemplate, or lower the Pod Security level of the namespace.",
        ),
        ('pods "x" is forbidden: error looking up service account a/b', "Kubernetes retries."),
    ],
    ids=["quota", "Pod Security", "transient"],
)
def test_rejected_worker_pods_are_reported_with_a_remedy(
    make_endpoint, children_with, make_status, finding, rejection, remedy
):
    endpoint = make_endpoint(replicas=2)
    children = children_with(endpoint, conditions=[replica_failure(rejection)], replicas=0, updatedReplicas=0)
    status, reason, message = finding(make_status(endpoint, children=children), "Available")
    assert (status, reason) == ("False", "PodCreationFailed")
    assert message.startswith(
        "0 of 2 replicas are ready (minimum: 1). "
        "Kubernetes cannot create pods of the Deployment smollm-workers: pods "
    )
    assert remedy in message


@pytest.fixture
def with_rejected_frontend(children_with):
    def make(endpoint, message=QUOTA_EXCEEDED, **status):
        failure = replica_failure(message)
        return children_with(endpoint, "frontend", conditions=[failure], **{"replicas": 0, **status})

    return make


def test_a_rejected_frontend_is_reported_while_the_workers_load(
    make_endpoint, with_rejected_frontend, make_status, make_worker, finding
):
    endpoint = make_endpoint()
    children = with_rejected_frontend(endpoint)
    loading = make_worker("w-1", "Starting", settings=endpoint, report={"stage__name": "LoadingWeights"})
    found = make_status(endpoint, loading, frontends=(), children=children)
    status, reason, message = finding(found, "Available")
    assert (status, reason) == ("False", "FrontendUnavailable")
    assert message.startswith(
        "0 of 1 replica is ready (minimum: 1). Pod w-1 is starting: stage LoadingWeights since"
    )
    assert (
        f" {FRONTEND_DOWN} Kubernetes cannot create pods of the Deployment smollm-frontend: pods " in message
    )
    assert message.endswith(". Raise the ResourceQuota, or lower frontend.replicas.")
    assert finding(found, "Ready")[1] == "FrontendUnavailable"
    assert finding(found, "Reconciling")[0] == "True", "the workers still load"
    without = make_endpoint(frontend={"mode": "None"})
    assert finding(make_status(without, loading, frontends=()), "Available")[1] == "Starting"


def test_rejected_workers_and_a_rejected_frontend_are_both_reported(
    make_endpoint, children_with, with_rejected_frontend, make_status, finding
):
    endpoint = make_endpoint()
    children = with_rejected_frontend(endpoint, POD_SECURITY)
    children = children_with(endpoint, children=children, conditions=[replica_failure(CPU_UNSPECIFIED)])
    found = make_status(endpoint, frontends=(), children=children)
    status, reason, message = finding(found, "Available")
    assert (status, reason) == ("False", "PodCreationFailed")
    assert (
        "The ResourceQuota q requires these fields: set worker.resources.requests.cpu. "
        f"{FRONTEND_DOWN}" in message
    )
    assert "Change frontend.podTemplate, or lower the Pod Security level of the namespace." in message


@pytest.mark.parametrize("component", ["workers", "frontend"])
def test_the_newest_replica_sets_rejection_goes_before_the_deployments(
    make_endpoint, children_with, make_status, message_of, component
):
    """The Deployment controller does not replace a condition while its status and reason stay the same."""
    endpoint = make_endpoint()
    children = children_with(endpoint, component, conditions=[replica_failure(CPU_UNSPECIFIED)])
    failures = {(f"smollm-{component}", "1"): QUOTA_EXCEEDED, (f"smollm-{component}", "0"): "an older one's"}
    found = make_status(endpoint, frontends=(), children=children, replica_failures=failures)
    message = message_of(found, "Available")
    assert "exceeded quota: q, requested: pods=1" in message
    assert "must specify" not in message
    # If the newest ReplicaSet has no failure, that of an older one may be the obstacle.
    found = make_status(endpoint, frontends=(), children=children, replica_failures={})
    assert "must specify cpu" in message_of(found, "Available")


def test_a_rejection_is_not_reported_after_the_deployment_has_recovered(
    make_endpoint, make_status, make_worker, finding
):
    endpoint = make_endpoint()
    loading = make_worker("w-1", "Starting", settings=endpoint)
    found = make_status(endpoint, loading, replica_failures={("smollm-workers", "1"): QUOTA_EXCEEDED})
    assert finding(found, "Available")[1] == "Starting"


def test_a_quota_for_some_of_the_pods_is_reported_with_an_earlier_eviction(
    make_endpoint, children_with, make_status, make_pod, finding, message_of
):
    strategy = {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    endpoint = make_endpoint(replicas=2, strategy=strategy)
    children = children_with(
        endpoint, conditions=[replica_failure(QUOTA_EXCEEDED)], replicas=1, updatedReplicas=1
    )
    starting = make_pod("w-1", ready=False)
    found = make_status(endpoint, starting, children=children)
    assert finding(found, "Available")[1] == "PodCreationFailed"
    evicted = make_pod("w-1", ready=False, reason="Evicted", phase="Failed")
    found = make_status(endpoint, evicted, children=children)
    assert finding(found, "Available")[1] == "PodCreationFailed"
    assert "An earlier pod was removed from its node. Pod w-1 failed on node node-1 (Evicted)" in message_of(
        found, "Available"
    )


def test_a_rejected_frontend_is_reported_with_zero_replicas(
    make_endpoint, with_rejected_frontend, make_status, finding
):
    endpoint = make_endpoint(replicas=0)
    found = make_status(endpoint, frontends=(), children=with_rejected_frontend(endpoint))
    assert finding(found, "Available")[1] == "ScaledToZero"
    status, reason, message = finding(found, "Ready")
    assert (status, reason) == ("False", "RollingOut")
    assert (
        "0 of 1 frontend pod runs the current revision. "
        "Kubernetes cannot create pods of the Deployment smollm-frontend: pods " in message
    )


def test_a_rejected_frontend_rollout_goes_before_the_workers_rollout_in_progress(
    make_endpoint, children_with, with_rejected_frontend, make_status, make_worker, finding
):
    endpoint = make_endpoint(replicas=2)
    children = with_rejected_frontend(endpoint, replicas=1, updatedReplicas=0)
    children = children_with(endpoint, children=children, replicas=2, updatedReplicas=1, availableReplicas=1)
    old = make_worker("w-1", settings=endpoint, metadata=of_template("old", "11:00"))
    new = make_worker("w-2", "Starting", settings=endpoint, metadata=of_template("new", "11:30"))
    status, reason, message = finding(make_status(endpoint, old, new, children=children), "UpToDate")
    assert (status, reason) == ("False", "RolloutStopped")
    assert message.startswith(
        "0 of 1 frontend pod runs the current revision, and 1 frontend pod of an older revision remains. "
        "The rollout is stopped, and 1 of 1 frontend pod continues to serve. "
        "Kubernetes cannot create pods of the Deployment smollm-frontend: "
    )
    assert message.endswith(
        " 1 of 2 replicas runs the current revision, and 1 replica of an older revision remains."
    )


@pytest.mark.parametrize("reason", [Reason.INVALID_POD_TEMPLATE, Reason.CONFIG_MAP_NOT_FOUND, Reason.PENDING])
def test_pods_that_are_not_applied_are_not_called_starting(make_endpoint, make_status, finding, reason):
    problem = PlanError(reason, "a: b;\nfix it")
    found = finding(make_status(make_endpoint(), problem=problem, children={}), "Available")
    count = "0 of 1 replica is ready (minimum: 1)."
    if reason is Reason.PENDING:
        assert found == (
            "False",
            "Starting",
            f"{count} The operator cannot create the Deployment smollm-workers yet: a: b; fix it.",
        )
    else:
        action = "The operator does not create the Deployment smollm-workers until this error is fixed"
        assert found == ("False", "NotReady", f"{count} {action}: a: b; fix it.")


def test_a_problem_of_both_components_is_reported_once(make_endpoint, make_status, message_of):
    problem = PlanError(Reason.CONFIG_MAP_NOT_FOUND, "no ConfigMap")
    found = make_status(make_endpoint(), problem=problem, frontends=(), children={})
    assert message_of(found, "Available").count("no ConfigMap") == 1
    assert "frontend" not in message_of(found, "Available")


def test_a_scale_up_that_is_not_applied_is_not_ready(
    make_endpoint, make_plan, make_observed, make_status, make_worker, finding
):
    before = make_endpoint()
    children = make_observed(make_plan(before)).children
    problem = PlanError(Reason.CONFIG_MAP_NOT_FOUND, "no ConfigMap")
    endpoint = make_endpoint(replicas=5)
    found = make_status(endpoint, make_worker(settings=before), children=children, problem=problem)
    assert finding(found, "Available")[1:] == (
        "NotReady",
        (
            "1 of 5 replicas is ready (minimum: 4). The operator does not scale up the Deployment "
            "smollm-workers until this error is fixed: no ConfigMap."
        ),
    )


def test_a_rejection_is_reported_before_the_controller_has_observed_the_newest_generation(
    make_endpoint, children_with, make_status, finding
):
    endpoint = make_endpoint()
    children = children_with(endpoint)
    failure = replica_failure('pods "x" is forbidden: exceeded quota: q')
    children["Deployment", "smollm-workers"]["status"] = {"conditions": [failure]}
    status, reason, message = finding(make_status(endpoint, children=children), "Available")
    assert (status, reason) == ("False", "PodCreationFailed")
    assert "exceeded quota" in message
