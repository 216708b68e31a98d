"""``Available`` and ``UpToDate`` where pods fail, are refused, or stop a rollout."""

from dataclasses import replace

import pytest

from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import PlanError


def told(condition, found, kind):
    entry = condition(found, kind)
    return entry.status, entry.reason, entry.message


def deployment(make_plan, living, endpoint, **status):
    children = dict(living(make_plan(endpoint)).children)
    key = ("Deployment", "smollm-workers")
    children[key] = {**children[key], "status": {"observedGeneration": 1, **status}}
    return children


FRONTEND_DOWN = "0 of 1 frontend pod is ready, so the endpoint accepts no requests."
FAILURE = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}
# As kube-controller-manager 1.36 writes them (tests/integration has it write them).
QUOTA = (
    'pods "smollm-workers-7d-" is forbidden: exceeded quota: q, requested: pods=1, used: pods=0, '
    "limited: pods=0"
)
SECURITY = (
    'pods "smollm-workers-7d-x" is forbidden: violates PodSecurity "restricted:latest": privileged '
    "(container "
    '"main" must not set securityContext.privileged=true)'
)


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        (
            QUOTA,
            "limited: pods=0. Raise the ResourceQuota, or lower replicas or strategy.",
        ),
        (
            SECURITY,
            "privileged=true). Change worker.podTemplate, or lower the Pod Security level of the namespace.",
        ),
        ('pods "x" is forbidden: error looking up service account a/b', "Kubernetes retries."),
    ],
)
def test_pods_that_may_not_be_made(make_endpoint, make_plan, living, make_status, condition, message, advice):
    endpoint = make_endpoint(replicas=2)
    failure = {**FAILURE, "message": message}
    children = deployment(make_plan, living, endpoint, conditions=[failure], replicas=0, updatedReplicas=0)
    status, reason, said = told(condition, make_status(endpoint, children=children), "Available")
    assert (status, reason) == ("False", "PodCreationFailed")
    assert said.startswith(
        "0 of 2 replicas are ready (minimum: 1). "
        "Kubernetes cannot create pods of the Deployment smollm-workers: pods "
    )
    assert advice in said


def refused_frontend(make_plan, living, endpoint, message=QUOTA, **status):
    children = dict(living(make_plan(endpoint)).children)
    key = ("Deployment", "smollm-frontend")
    failure = {**FAILURE, "message": message}
    children[key] = {
        **children[key],
        "status": {"observedGeneration": 1, "conditions": [failure], "replicas": 0, **status},
    }
    return children


def test_a_refused_frontend_is_told_while_the_workers_load(
    make_endpoint, make_plan, living, make_status, make_worker, condition
):
    endpoint = make_endpoint()
    children = refused_frontend(make_plan, living, endpoint)
    loading = make_worker("w-1", "Starting", settings=endpoint, said={"stage__name": "LoadingWeights"})
    found = make_status(endpoint, loading, frontends=(), children=children)
    status, reason, said = told(condition, found, "Available")
    assert (status, reason) == ("False", "FrontendUnavailable")
    assert said.startswith(
        "0 of 1 replica is ready (minimum: 1). Pod w-1 is starting: stage LoadingWeights since"
    )
    assert f" {FRONTEND_DOWN} Kubernetes cannot create pods of the Deployment smollm-frontend: pods " in said
    assert said.endswith(". Raise the ResourceQuota, or lower frontend.replicas.")
    assert told(condition, found, "Ready")[1] == "FrontendUnavailable"
    assert told(condition, found, "Reconciling")[0] == "True", "the workers load on"
    without = make_endpoint(frontend={"mode": "None"})
    assert told(condition, make_status(without, loading, frontends=()), "Available")[1] == "Starting"


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ({"waiting": {"reason": "ErrImagePull", "message": "404"}}, "cannot pull the image"),
        (
            {"waiting": {"reason": "CreateContainerConfigError", "message": "no"}},
            "cannot start its container",
        ),
    ],
)
def test_a_frontend_that_cannot_start_is_told_while_the_workers_load(
    make_endpoint, make_status, make_pod, make_worker, condition, state, cause
):
    endpoint = make_endpoint()
    loading = make_worker("w-1", "Starting", settings=endpoint)
    broken = make_pod("f-1", ready=False, container={"state": state, "started": False})
    found = make_status(endpoint, loading, frontends=(broken,))
    assert told(condition, found, "Available")[1] == "FrontendUnavailable"
    assert f" {FRONTEND_DOWN} Pod f-1 {cause}" in condition(found, "Available").message


def test_a_frontend_on_its_way_is_no_news_while_the_workers_load(
    make_endpoint, make_status, make_pod, make_worker, condition
):
    endpoint = make_endpoint()
    loading = make_worker("w-1", "Starting", settings=endpoint)
    frontend = make_pod("f-1", ready=False, container={"started": False})
    found = make_status(endpoint, loading, frontends=(frontend,))
    assert told(condition, found, "Available")[1] == "Starting"
    assert "frontend" not in condition(found, "Available").message


def test_where_both_are_refused_both_are_told(make_endpoint, make_plan, living, make_status, condition):
    endpoint = make_endpoint()
    children = refused_frontend(make_plan, living, endpoint, SECURITY)
    key = ("Deployment", "smollm-workers")
    failure = {**FAILURE, "message": 'pods "x" is forbidden: failed quota: q: must specify cpu for: main'}
    children[key] = {**children[key], "status": {"observedGeneration": 1, "conditions": [failure]}}
    status, reason, said = told(
        condition, make_status(endpoint, frontends=(), children=children), "Available"
    )
    assert (status, reason) == ("False", "PodCreationFailed")
    assert (
        f"The ResourceQuota q requires these fields: set worker.resources.requests.cpu. {FRONTEND_DOWN}"
        in said
    )
    assert "Change frontend.podTemplate, or lower the Pod Security level of the namespace." in said


@pytest.mark.parametrize("part", ["workers", "frontend"])
def test_the_newest_refusal_is_told_although_the_deployment_keeps_the_first(
    make_endpoint, make_plan, living, make_status, condition, part
):
    """Its controller does not replace a condition whose status and reason stay."""
    endpoint = make_endpoint()
    children = dict(living(make_plan(endpoint)).children)
    failure = {**FAILURE, "message": 'pods "x" is forbidden: failed quota: q: must specify cpu for: main'}
    key = ("Deployment", f"smollm-{part}")
    children[key] = {**children[key], "status": {"observedGeneration": 1, "conditions": [failure]}}
    newest = {(f"smollm-{part}", "1"): QUOTA, (f"smollm-{part}", "0"): "an older one's"}
    found = make_status(endpoint, frontends=(), children=children, replica_failures=newest)
    said = condition(found, "Available").message
    assert "exceeded quota: q, requested: pods=1" in said
    assert "must specify" not in said
    # Where the newest ReplicaSet has no failure, an older one's may stand in the way.
    found = make_status(endpoint, frontends=(), children=children, replica_failures={})
    assert "must specify cpu" in condition(found, "Available").message


def test_a_refusal_that_is_over_is_not_told(make_endpoint, make_status, make_worker, condition):
    endpoint = make_endpoint()
    loading = make_worker("w-1", "Starting", settings=endpoint)
    found = make_status(endpoint, loading, replica_failures={("smollm-workers", "1"): QUOTA})
    assert told(condition, found, "Available")[1] == "Starting"


def test_what_keeps_both_from_being_applied_is_told_once(make_endpoint, make_status, condition):
    problem = PlanError(Reason.CONFIG_MAP_NOT_FOUND, "no ConfigMap")
    found = make_status(make_endpoint(), problem=problem, frontends=(), children={})
    assert condition(found, "Available").message.count("no ConfigMap") == 1
    assert "frontend" not in condition(found, "Available").message


def test_a_frontend_whose_rollout_is_refused_is_told_while_that_of_the_workers_goes_on(
    make_endpoint, make_plan, living, make_status, make_pod, make_worker, condition
):
    endpoint = make_endpoint(replicas=2)
    children = refused_frontend(make_plan, living, endpoint, replicas=1, updatedReplicas=0)
    key = ("Deployment", "smollm-workers")
    status = {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 1, "availableReplicas": 1}
    children[key] = {**children[key], "status": status}
    old = make_worker("w-1", settings=endpoint, metadata=with_hash("old", "11:00"))
    new = make_worker("w-2", "Starting", settings=endpoint, metadata=with_hash("new", "11:30"))
    found = make_status(endpoint, old, new, children=children)
    status, reason, said = told(condition, found, "UpToDate")
    assert (status, reason) == ("False", "RolloutStopped")
    assert said.startswith(
        "0 of 1 frontend pod runs the current revision, and 1 frontend pod of an older revision remains. "
        "The rollout is stopped, and 1 of 1 frontend pod continues to serve. "
        "Kubernetes cannot create pods of the Deployment smollm-frontend: "
    )
    assert said.endswith(
        " 1 of 2 replicas runs the current revision, and 1 replica of an older revision remains."
    )


def test_a_refused_frontend_is_told_at_zero_replicas(
    make_endpoint, make_plan, living, make_status, condition
):
    endpoint = make_endpoint(replicas=0)
    children = refused_frontend(make_plan, living, endpoint)
    found = make_status(endpoint, frontends=(), children=children)
    assert told(condition, found, "Available")[1] == "ScaledToZero"
    status, reason, said = told(condition, found, "Ready")
    assert (status, reason) == ("False", "RollingOut")
    assert (
        "0 of 1 frontend pod runs the current revision. "
        "Kubernetes cannot create pods of the Deployment smollm-frontend: pods " in said
    )


@pytest.mark.parametrize("reason", [Reason.INVALID_POD_TEMPLATE, Reason.CONFIG_MAP_NOT_FOUND, Reason.PENDING])
def test_no_pod_is_being_created_that_may_not_be(make_endpoint, make_status, condition, reason):
    found = make_status(make_endpoint(), problem=PlanError(reason, "a: b;\nfix it"), children={})
    said = condition(found, "Available")
    if reason is Reason.PENDING:
        assert (said.status, said.reason) == ("False", "Starting")
        assert said.message.endswith(
            "(minimum: 1). The operator cannot create the Deployment smollm-workers yet: a: b; fix it."
        )
    else:
        assert (said.status, said.reason) == ("False", "NotReady")
        assert said.message.endswith(
            "(minimum: 1). The operator does not create the Deployment smollm-workers until this error is "
            "fixed: a: b; fix it."
        )


def test_a_quota_that_lets_some_in(make_endpoint, make_plan, living, make_status, make_pod, condition):
    strategy = {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    endpoint = make_endpoint(replicas=2, strategy=strategy)
    failure = {**FAILURE, "message": QUOTA}
    children = deployment(make_plan, living, endpoint, conditions=[failure], replicas=1, updatedReplicas=1)
    starting = make_pod("w-1", ready=False)
    found = make_status(endpoint, starting, children=children)
    assert told(condition, found, "Available")[1] == "PodCreationFailed"
    stuck = make_pod("w-1", ready=False, reason="Evicted", phase="Failed")
    found = make_status(endpoint, stuck, children=children)
    assert told(condition, found, "Available")[1] == "PodCreationFailed"
    assert (
        "An earlier pod was removed from its node. Pod w-1 failed on node node-1 (Evicted)"
        in condition(found, "Available").message
    )


def test_an_evicted_pod_and_the_one_in_its_place(
    make_endpoint, make_status, make_pod, make_worker, condition
):
    endpoint = make_endpoint()
    gone = make_pod("w-1", ready=False, phase="Failed", reason="Evicted", message="low on resource: memory.")
    after = make_worker("w-2", "Starting", settings=endpoint, said={"stage__name": "LoadingWeights"})
    found = make_status(endpoint, gone, after)
    status, reason, said = told(condition, found, "Available")
    assert (status, reason) == ("False", "PodFailed")
    assert (
        "Pod w-1 failed on node node-1 (Evicted): low on resource: memory. Set worker.resources.requests"
        in said
    )
    assert "Its replacement is not ready yet. Pod w-2 is starting: stage LoadingWeights since" in said
    assert (found.replicas, [worker.name for worker in found.workers]) == (1, ["w-2"])
    well = make_status(endpoint, gone, make_worker("w-2", settings=endpoint))
    assert told(condition, well, "Ready")[0] == "True", "history is no alarm"


NO_GPU = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available: "
    "1 No preemption victims found for incoming pod.",
}
LEAVING = {"deletionTimestamp": "2026-01-01T12:00:05Z"}


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_rollout_without_a_gpu_to_spare_is_no_alarm(
    make_endpoint, make_plan, living, make_status, make_pod, make_worker, condition, replicas
):
    """With no surge the new pod is made while the old one ends, and holds its GPU."""
    endpoint = make_endpoint(replicas=replicas)
    children = deployment(make_plan, living, endpoint, replicas=replicas, updatedReplicas=1)
    others = [make_worker("w-2", settings=endpoint, metadata=with_hash("old", "11:00"))][: replicas - 1]
    old = make_worker("w-1", settings=endpoint, metadata=with_hash("old", "11:00") | LEAVING)
    waits = make_pod(
        "w-3",
        ready=False,
        metadata=with_hash("new", "12:00"),
        phase="Pending",
        conditions=[NO_GPU],
        containerStatuses=[],
    )
    found = make_status(endpoint, old, *others, waits, children=children)
    said = told(condition, found, "UpToDate")
    assert said[1] == "RollingOut", said
    assert next(worker.reason for worker in found.workers if worker.name == "w-3") == "Starting"
    if replicas == 1:
        assert told(condition, found, "Available") == (
            "False",
            "Starting",
            (
                "0 of 1 replica is ready (minimum: 1). "
                "Pod w-3 is waiting for pod w-1 to terminate and release its resources."
            ),
        )
    gone = make_status(endpoint, *others, waits, children=children)
    kind = "Available" if replicas == 1 else "UpToDate"
    assert told(condition, gone, kind)[1] == ("InsufficientGPU" if replicas == 1 else "RolloutStopped")


def with_hash(hash_, created):
    return {
        "labels": {"pod-template-hash": hash_},
        "creationTimestamp": f"2026-01-01T{created}:00Z",
    }


def crash(message):
    last = {"terminated": {"exitCode": 1, "reason": "Error", "message": message}}
    waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
    return {"started": False, "restartCount": 3, "state": waiting, "lastState": last}


@pytest.mark.parametrize("made", ["11:30", "11:00"], ids=["later", "in the same second"])
def test_a_new_revision_that_does_not_start_stops_the_rollout(
    make_endpoint, make_plan, living, make_status, make_pod, make_worker, condition, made
):
    endpoint = make_endpoint(replicas=3)
    children = deployment(make_plan, living, endpoint, replicas=3, updatedReplicas=1)
    old = [make_worker(f"w-{i}", settings=endpoint, metadata=with_hash("old", "11:00")) for i in (1, 2)]
    new = make_pod("w-3", ready=False, container=crash("ValueError: no"), metadata=with_hash("new", made))
    found = make_status(endpoint, *old, new, children=children)
    status, reason, said = told(condition, found, "UpToDate")
    assert (status, reason) == ("False", "RolloutStopped")
    assert said.startswith(
        "1 of 3 replicas runs the current revision, and 2 replicas of an older revision remain. The rollout "
        "is "
        "stopped, and 2 of 3 replicas continue to serve. Pod w-3 terminated with exit code 1 (3 restarts). "
        "Its "
        "last message was: ValueError: no. See `kubectl logs w-3"
    )
    assert told(condition, found, "Available")[0] == "True"
    assert told(condition, found, "Ready")[:2] == ("False", "RolloutStopped")
    assert told(condition, found, "Reconciling")[0] == "False"


def test_an_old_replica_that_fails_does_not_stop_it(
    make_endpoint, make_plan, living, make_status, make_pod, make_worker, condition
):
    """The Deployment's controller replaces the unready ones of the old revision first."""
    endpoint = make_endpoint(replicas=3)
    children = deployment(make_plan, living, endpoint, replicas=3, updatedReplicas=1)
    old = make_pod("w-1", ready=False, container=crash("x"), metadata=with_hash("old", "11:00"))
    fine = make_worker("w-2", settings=endpoint, metadata=with_hash("old", "11:00"))
    new = make_worker("w-3", "Starting", settings=endpoint, metadata=with_hash("new", "11:30"))
    found = make_status(endpoint, old, fine, new, children=children)
    assert told(condition, found, "UpToDate")[1] == "RollingOut"
    assert told(condition, found, "Reconciling")[0] == "True"


@pytest.mark.parametrize("verdict", ["Stalled", "Failing", "Dead"])
def test_a_new_replica_that_does_not_generate_stops_it(
    make_endpoint, make_plan, living, make_status, make_worker, condition, verdict
):
    endpoint = make_endpoint(replicas=2)
    children = deployment(make_plan, living, endpoint, replicas=2, updatedReplicas=1)
    old = make_worker("w-1", settings=endpoint, metadata=with_hash("old", "11:00"))
    new = make_worker(
        "w-2",
        verdict,
        settings=endpoint,
        metadata=with_hash("new", "11:30"),
        said={"verdict__message": "Why."},
    )
    found = make_status(endpoint, old, new, children=children)
    assert told(condition, found, "UpToDate")[1] == "RolloutStopped"
    serving = "1 of 2 replicas continues to serve. Pod w-2 is not ready: the "
    problem = {"Stalled": "engine is stalled", "Failing": "health probe fails", "Dead": "engine is dead"}
    assert f"{serving}{problem[verdict]}. Why." in condition(found, "UpToDate").message
    assert told(condition, found, "Available")[0] == "True"


@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        ("model data: 123 of 2000000000 bytes, 4 objects", "(model data: 0 % of 2.0 GB, 4 objects)"),
        ("model data: 1199999999 of 2000000000 bytes, 4 objects", "(model data: 50 % of 2.0 GB, 4 objects)"),
        ("model data: 35999999 of 36000001 bytes, 1 objects", "(model data: 90 % of 37 MB, 1 objects)"),
        ("model data: 0 of 0 bytes, 0 objects", "(model data: 0 of 0 bytes, 0 objects)"),
        ("team/model", "(team/model)"),
    ],
)
def test_a_download_is_told_in_tenths(make_endpoint, make_status, make_worker, condition, detail, shown):
    endpoint = make_endpoint()
    said = {"stage__name": "Downloading", "stage__detail": detail}
    found = make_status(endpoint, make_worker("w-1", "Starting", settings=endpoint, said=said))
    assert (
        f"is starting: stage Downloading {shown} since 11:50:00 UTC" in condition(found, "Available").message
    )


@pytest.mark.parametrize("verdict", ["Stalled", "Failing"])
def test_observing_tells_and_does_not_gate(make_endpoint, make_status, make_worker, condition, verdict):
    """Mode Observe: the worker stays ready whatever its probe finds; rollouts and traffic go on."""
    endpoint = make_endpoint(replicas=2, healthCheck={"mode": "Observe"})
    bad = make_worker("w-1", verdict, ready=True, settings=endpoint, said={"ready": True})
    found = make_status(endpoint, bad, make_worker("w-2", settings=endpoint))
    assert told(condition, found, "Available")[:2] == ("True", "Available")
    assert told(condition, found, "UpToDate")[0] == "True"
    assert told(condition, found, "Generating")[0] == "False"
    assert (found.ready_replicas, found.generating_replicas) == (2, 1)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"running": {"startedAt": "2026-01-01T11:50:00Z"}}, "Starting"),
        ({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}, "FrontendUnavailable"),
    ],
)
def test_a_frontend_on_its_way_is_a_start_and_no_defect(
    make_endpoint, make_plan, make_pod, make_status, make_worker, condition, state, reason
):
    endpoint = make_endpoint()
    frontend = make_pod("f-1", ready=False, container={"state": state, "started": False})
    found = make_status(endpoint, make_worker(settings=endpoint), frontends=(frontend,))
    assert told(condition, found, "Available")[:2] == ("False", reason)


def test_one_that_ended_in_good_order_is_a_record_too(make_endpoint, make_status, make_pod, make_worker):
    endpoint = make_endpoint()
    gone = make_pod("w-1", ready=False, phase="Succeeded")
    found = make_status(endpoint, gone, make_worker("w-2", settings=endpoint))
    assert (found.replicas, [worker.name for worker in found.workers]) == (1, ["w-2"])


@pytest.mark.parametrize(("made", "told_of"), [("12:00:30", True), ("12:30:00", False)])
def test_a_record_explains_what_took_its_place_and_nothing_later(
    make_endpoint, make_status, make_pod, make_worker, condition, made, told_of
):
    endpoint = make_endpoint()
    since = {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T12:00:00Z"}
    gone = make_pod("w-1", ready=False, phase="Failed", reason="Evicted", conditions=[since])
    labels = {"labels": {"pod-template-hash": "new"}}
    after = make_worker(
        "w-2",
        "Starting",
        settings=endpoint,
        metadata={**labels, "creationTimestamp": f"2026-01-01T{made}Z"},
    )
    found = make_status(endpoint, gone, after)
    assert (told(condition, found, "Available")[1] == "PodFailed") is told_of
    assert ("Evicted" in condition(found, "Available").message) is told_of


def test_the_newest_record_is_told(make_endpoint, make_status, make_pod, make_worker, condition):
    endpoint = make_endpoint()
    gone = [
        make_pod(
            f"w-{number}",
            ready=False,
            phase="Failed",
            reason="Evicted",
            conditions=[
                {"type": "Ready", "status": "False", "lastTransitionTime": f"2026-01-01T12:0{number}:00Z"}
            ],
        )
        for number in (1, 2)
    ]
    found = make_status(endpoint, *gone, make_worker("w-3", "Starting", settings=endpoint))
    assert condition(found, "Available").message.startswith(
        "0 of 1 replica is ready (minimum: 1). Pod w-2 failed"
    )


def test_what_a_lost_node_holds_is_not_waited_for(
    make_endpoint, make_status, make_pod, make_worker, condition
):
    endpoint = make_endpoint()
    lost = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]
    old = make_worker("w-1", settings=endpoint, metadata=LEAVING, conditions=lost)
    new = make_pod("w-2", ready=False, phase="Pending", conditions=[NO_GPU], containerStatuses=[])
    status, reason, said = told(condition, make_status(endpoint, old, new), "Available")
    assert (status, reason) == ("False", "NodeLost")
    assert (
        "Pod w-2 is waiting for the resources of pod w-1, which cannot terminate: node node-1 does not "
        "respond" in said
    )
    ends = make_worker("w-3", settings=endpoint, metadata=LEAVING)
    assert told(condition, make_status(endpoint, old, ends, new), "Available")[1] == "Starting", (
        "that one ends"
    )


@pytest.mark.parametrize("paused", [False, True])
def test_zero_replicas_that_are_not_applied(
    make_endpoint, make_plan, living, make_status, make_worker, condition, paused
):
    before = make_endpoint(replicas=2)
    children = living(make_plan(before)).children
    pods = [make_worker(f"w-{number}", settings=before) for number in (1, 2)]
    problem = None if paused else PlanError(Reason.CONFIG_MAP_NOT_FOUND, "no ConfigMap")
    found = make_status(make_endpoint(replicas=0, paused=paused), *pods, children=children, problem=problem)
    assert told(condition, found, "Available") == (
        "True",
        "Available",
        (
            "The field spec.replicas is 0, but the Deployment smollm-workers still has 2 replicas. "
            "2 pods still serve requests."
        ),
    )
    assert told(condition, found, "Generating")[:2] == ("True", "Generating")
    assert told(condition, found, "Ready")[0] == "False"


LEFT = {
    "ready": ("True", "Available", "The field spec.replicas is 0. 2 pods still serve requests."),
    "not ready": ("False", "Pending", "The field spec.replicas is 0. 2 pods exist, but none is ready."),
    "terminating": ("True", "ScaledToZero", "The endpoint serves no requests because spec.replicas is 0."),
    "failed": ("True", "ScaledToZero", "The endpoint serves no requests because spec.replicas is 0."),
}


@pytest.mark.parametrize("pods", LEFT)
def test_scaled_to_zero_is_true_once_no_pod_is_left(
    make_endpoint, make_status, make_pod, make_worker, condition, pods
):
    running = make_endpoint(replicas=2)
    make = {
        "ready": lambda name: make_worker(name, settings=running),
        "not ready": lambda name: make_pod(name, ready=False),
        "terminating": lambda name: make_worker(name, settings=running, metadata=LEAVING),
        "failed": lambda name: make_pod(name, ready=False, phase="Failed"),
    }[pods]
    found = make_status(make_endpoint(replicas=0), make("w-1"), make("w-2"))
    assert told(condition, found, "Available") == LEFT[pods]
    if LEFT[pods][0] == "True":
        assert told(condition, found, "Ready")[2] == LEFT[pods][2], "not: 0 of 0 replicas"
    assert (told(condition, found, "Ready")[1] == "ScaledToZero") == (LEFT[pods][1] == "ScaledToZero")


def test_one_pod_is_no_plural(make_endpoint, make_status, make_pod, make_worker, condition):
    serving = make_status(make_endpoint(replicas=0), make_worker(settings=make_endpoint()))
    assert (
        told(condition, serving, "Available")[2]
        == "The field spec.replicas is 0. 1 pod still serves requests."
    )
    left = make_status(make_endpoint(replicas=0), make_pod("w-1", ready=False))
    assert told(condition, left, "Available")[2] == (
        "The field spec.replicas is 0. 1 pod exists, but it is not ready."
    )


@pytest.mark.parametrize(("paused", "reason"), [(True, "Paused"), (False, "Pending")])
def test_zero_replicas_that_are_not_applied_over_pods_that_are_not_ready(
    make_endpoint, make_plan, living, make_status, make_pod, condition, paused, reason
):
    children = living(make_plan(make_endpoint(replicas=2))).children
    pods = [make_pod(f"w-{number}", ready=False) for number in (1, 2)]
    problem = None if paused else PlanError(Reason.INVALID_SPEC, "engine.args: no")
    found = make_status(make_endpoint(replicas=0, paused=paused), *pods, children=children, problem=problem)
    status, said, message = told(condition, found, "Available")
    assert (status, said) == ("False", reason)
    assert "the Deployment smollm-workers still has 2 replicas" in message
    assert "2 pods" in message


def test_a_scale_up_that_is_not_applied(
    make_endpoint, make_plan, living, make_status, make_worker, condition
):
    before = make_endpoint()
    children = living(make_plan(before)).children
    problem = PlanError(Reason.CONFIG_MAP_NOT_FOUND, "no ConfigMap")
    endpoint = make_endpoint(replicas=5)
    found = make_status(endpoint, make_worker(settings=before), children=children, problem=problem)
    assert told(condition, found, "Available")[1:] == (
        "NotReady",
        (
            "1 of 5 replicas is ready (minimum: 4). The operator does not scale up the Deployment "
            "smollm-workers "
            "until this error is fixed: no ConfigMap."
        ),
    )


def test_a_replica_that_does_not_come_up_is_told_where_the_others_suffice(
    make_endpoint, make_status, make_pod, make_worker, condition
):
    endpoint = make_endpoint(replicas=2)
    good = make_worker("w-1", settings=endpoint)
    found = make_status(endpoint, good, make_pod("w-2", ready=False, container=crash("ValueError: no")))
    assert told(condition, found, "Ready")[0] == "True"
    said = condition(found, "Ready").message
    assert said.startswith(
        "1 of 2 replicas is generating. 1 replica is not ready. Pod w-2 terminated with exit code 1"
    )
    generating = condition(found, "Generating").message
    assert generating.startswith(
        "1 of 1 started replica is generating. 1 more has not started. Pod w-2 terminated with"
    )
    found = make_status(endpoint, good, make_worker("w-2", "Starting", settings=endpoint))
    assert condition(found, "Generating").message == "1 of 1 started replica is generating."


@pytest.mark.parametrize("after", ["none yet", "one that ends"])
def test_an_old_record_explains_no_later_start(
    make_endpoint, make_status, make_pod, make_worker, condition, after
):
    endpoint = make_endpoint()
    since = {"type": "Ready", "status": "False", "lastTransitionTime": "2025-12-01T12:00:00Z"}
    gone = make_pod("w-1", ready=False, phase="Failed", reason="Evicted", conditions=[since])
    labels = {"labels": {"pod-template-hash": "new"}}
    place = {**labels, "creationTimestamp": "2025-12-01T12:00:10Z"} | LEAVING
    ends = [] if after == "none yet" else [make_worker("w-2", settings=endpoint, metadata=place)]
    found = make_status(endpoint, gone, *ends)
    assert told(condition, found, "Available")[1] == "Starting"
    just_now = {**since, "lastTransitionTime": "2026-01-01T11:59:00Z"}
    gone = make_pod("w-1", ready=False, phase="Failed", reason="Evicted", conditions=[just_now])
    assert told(condition, make_status(endpoint, gone, *ends), "Available")[1] == "PodFailed"


def test_a_new_leader_keeps_what_was_known_of_one_that_hangs(
    make_endpoint, make_status, make_worker, make_pod, condition
):
    endpoint = make_endpoint()
    hung = make_worker("w-1", ready=False, connected=False, error="silent", settings=endpoint)
    before = make_status(endpoint, hung)
    assert told(condition, before, "Available")[1] == "NotReady"
    unheard = make_pod("w-1", ready=False)
    after = make_status(replace(endpoint, status=before), unheard)
    assert told(condition, after, "Available") == told(condition, before, "Available")
    well = make_status(endpoint, make_worker("w-1", settings=endpoint))
    assert told(condition, well, "Available")[0] == "True"
    after = make_status(replace(endpoint, status=well), unheard)
    assert told(condition, after, "Available")[0] == "False", "readiness needs no report"


def test_one_that_is_ready_and_was_not_heard_yet_has_started(
    make_endpoint, make_status, make_worker, make_pod, condition
):
    endpoint = make_endpoint(replicas=2)
    found = make_status(endpoint, make_worker("w-1", settings=endpoint), make_pod("w-2"))
    assert condition(found, "Generating").message == "1 of 1 started replica is generating."
