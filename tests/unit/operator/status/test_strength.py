"""What ``Ready`` says of an endpoint that has lost a replica, and of one at full strength."""

from dataclasses import replace

import pytest

CRASH = {
    "started": False,
    "restartCount": 1,
    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    "lastState": {"terminated": {"exitCode": 139, "reason": "Error"}},
}
QUOTA = {"type": "ReplicaFailure", "status": "True", "message": 'pods "x" is forbidden: exceeded quota: q'}
OBSERVED = {"observedGeneration": 1}


def said(found, condition, kind="Ready"):
    entry = condition(found, kind)
    return entry.status, entry.reason, entry.message


@pytest.fixture
def settled(make_endpoint, make_status):
    """Status of an endpoint whose rollout had been complete before these pods were seen."""

    def make(*pods, endpoint, whole, **more):
        before = make_status(endpoint, *whole)
        return make_status(replace(endpoint, status=before), *pods, **more)

    return make


def lacking(make_plan, living, endpoint, part="workers", **status):
    children = dict(living(make_plan(endpoint)).children)
    key = ("Deployment", f"smollm-{part}")
    children[key] = {**children[key], "status": {**children[key]["status"], **status}}
    return children


@pytest.mark.parametrize(("count", "verb"), [(1, "replica is"), (2, "replicas are"), (5, "replicas are")])
def test_at_full_strength(make_endpoint, make_status, make_worker, condition, count, verb):
    endpoint = make_endpoint(replicas=count)
    found = make_status(endpoint, *[make_worker(f"w-{n}", settings=endpoint) for n in range(count)])
    assert said(found, condition) == ("True", "Ready", f"{count} of {count} {verb} generating.")


LOST = {
    "one that crashed": (
        {"ready": False, "container": CRASH},
        (
            "1 replica is not ready. Pod w-2 terminated with exit code 139 (1 restart). See `kubectl logs "
            "w-2 --previous`."
        ),
    ),
    "one that starts again": (
        {"ready": False, "container": {"started": False}},
        "1 replica is not ready. Pod w-2 is starting (phase Running).",
    ),
    "one whose image is gone": (
        {
            "ready": False,
            "container": {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "404"}}},
        },
        "1 replica is not ready. Pod w-2 cannot pull the image registry.example/worker:1: 404.",
    ),
    "one that was evicted, and not replaced yet": (
        {"ready": False, "phase": "Failed", "reason": "Evicted"},
        "1 replica is not ready. Pod w-2 failed on node node-1 (Evicted).",
    ),
}


@pytest.mark.parametrize("lost", LOST)
def test_one_of_two_is_lost(make_endpoint, settled, make_pod, make_worker, condition, lost):
    endpoint = make_endpoint(replicas=2)
    good = make_worker("w-1", settings=endpoint)
    pod, cause = LOST[lost]
    found = settled(
        good,
        make_pod("w-2", **pod),
        endpoint=endpoint,
        whole=[good, make_worker("w-2", settings=endpoint)],
    )
    status, reason, message = said(found, condition)
    assert (status, reason) == ("True", "Ready")
    assert message.startswith(f"1 of 2 replicas is generating. {cause}")


def test_one_that_starts_again_says_how_far_it_is(make_endpoint, make_status, make_worker, condition):
    endpoint = make_endpoint(replicas=2)
    stage = {"stage__name": "LoadingWeights"}
    again = make_worker("w-2", "Starting", settings=endpoint, said=stage, container={"started": False})
    found = make_status(endpoint, make_worker("w-1", settings=endpoint), again)
    assert said(found, condition)[2] == (
        "1 of 2 replicas is generating. 1 replica is not ready. Pod w-2 is starting: stage LoadingWeights "
        "since "
        "11:50:00 UTC. It must start within 1800 s (worker.startupTimeoutSeconds)."
    )


def test_one_whose_pod_may_not_be_made_again(
    make_endpoint, make_plan, living, settled, make_worker, condition
):
    strategy = {"rollingUpdate": {"maxUnavailable": 2}}
    endpoint = make_endpoint(replicas=3, strategy=strategy)
    pods = [make_worker(f"w-{n}", settings=endpoint) for n in range(3)]
    children = lacking(make_plan, living, endpoint, conditions=[QUOTA], availableReplicas=1)
    found = settled(pods[0], endpoint=endpoint, whole=pods, children=children)
    assert said(found, condition)[2] == (
        "1 of 3 replicas is generating. 2 replicas are not ready. Kubernetes cannot create pods of the "
        'Deployment smollm-workers: pods "x" is forbidden: exceeded quota: q. Raise the ResourceQuota, or '
        "request less."
    )


def test_a_frontend_that_is_lost_is_told_too(
    make_endpoint, make_status, make_plan, living, make_pod, make_worker, condition
):
    endpoint = make_endpoint(frontend={"replicas": 2})
    worker = make_worker(settings=endpoint)
    both = (make_pod("f-1"), make_pod("f-2"))
    full = make_status(endpoint, worker, frontends=both)
    assert said(full, condition)[2] == "1 of 1 replica is generating."
    one = (both[0], make_pod("f-2", ready=False, container=CRASH))
    found = make_status(replace(endpoint, status=full), worker, frontends=one)
    assert said(found, condition)[2].startswith(
        "1 of 1 replica is generating. 1 of 2 frontend pods is ready. 1 frontend pod is not ready. "
        "Pod f-2 terminated with"
    )


def test_without_probing_nobody_knows_whether_it_generates(
    make_endpoint, make_status, make_worker, make_pod, condition
):
    endpoint = make_endpoint(replicas=2, healthCheck={"mode": "Disabled"})
    pods = [make_worker(name, "Disabled", settings=endpoint) for name in ("w-1", "w-2")]
    found = make_status(endpoint, *pods)
    assert said(found, condition) == ("True", "Ready", "2 of 2 replicas are ready.")
    crashed = make_pod("w-2", ready=False, container=CRASH)
    lost = make_status(replace(endpoint, status=found), pods[0], crashed)
    assert said(lost, condition)[2].startswith(
        "1 of 2 replicas is ready. 1 replica is not ready. Pod w-2 terminated"
    )


def test_a_new_leader_tells_nothing_anew(make_endpoint, make_status, make_worker, make_pod, condition):
    endpoint = make_endpoint(replicas=2)
    good = make_worker("w-1", settings=endpoint)
    stage = {"stage__name": "LoadingWeights"}
    loading = make_worker("w-2", "Starting", settings=endpoint, said=stage, container={"started": False})
    before = make_status(endpoint, good, loading)
    unheard = [make_pod("w-1"), make_pod("w-2", ready=False, container={"started": False})]
    after = make_status(replace(endpoint, status=before), *unheard)
    assert said(after, condition) == said(before, condition)
