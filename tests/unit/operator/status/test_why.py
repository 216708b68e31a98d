"""The one sentence, from pod statuses as kubelets and schedulers write them."""

import pytest

from vllmendpoint_api import Reason
from vllmendpoint_operator.status.diagnosis.pod_diagnosis import most_severe
from vllmendpoint_operator.status.diagnosis.pods import diagnose_pod

BUDGET = 600


def waiting(reason, message="", *, restarts=0, last=None):
    container = {
        "started": False,
        "restartCount": restarts,
        "state": {"waiting": {"reason": reason, "message": message}},
    }
    return {"container": {**container, "lastState": {"terminated": last} if last else {}}, "phase": "Pending"}


def ended(code, reason="Error", message="", *, seconds=42):
    return {
        "exitCode": code,
        "reason": reason,
        "message": message,
        "startedAt": "2026-01-01T11:00:00Z",
        "finishedAt": f"2026-01-01T11:{seconds // 60:02}:{seconds % 60:02}Z",
    }


def again(last, restarts=1):
    """Restarted after ``last``, and not started yet."""
    return {"container": {"started": False, "restartCount": restarts, "lastState": {"terminated": last}}}


def unscheduled(message, **spec):
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]
    return {"phase": "Pending", "conditions": conditions, "containerStatuses": [], "spec": spec}


PROXY = {"name": "proxy", "resources": {"limits": {"memory": "32Mi"}}}
BOTH = {"containers": [{"name": "main", "resources": {"limits": {"memory": "200Gi"}}}, PROXY]}
SIDECAR = {"name": "proxy", "restartCount": 1, "ready": False}
FRONTEND = {"metadata": {"labels": {"app.kubernetes.io/component": "frontend"}}}
GPU = {"containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": "8"}}}]}
MEMORY = {"containers": [{"name": "main", "resources": {"limits": {"memory": "4Gi"}}}]}
CASES = {
    "no cpu": (
        unscheduled(
            "0/3 nodes are available: 3 Insufficient cpu. preemption: 0/3 nodes are available: 3 No victims."
        ),
        Reason.UNSCHEDULABLE,
        [
            "Pod w-1 is waiting for cpu: none of 3 nodes has that much free",
            "The scheduler reports: 0/3 nodes",
        ],
    ),
    "no gpu": (
        unscheduled(
            "0/4 nodes are available: 4 Insufficient nvidia.com/gpu. no new claims to deallocate.", **GPU
        ),
        Reason.INSUFFICIENT_GPU,
        ["Pod w-1 is waiting for 8 nvidia.com/gpu: none of 4 nodes", "device plugin"],
    ),
    "no mig slice": (
        unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/mig-1g.10gb."),
        Reason.INSUFFICIENT_GPU,
        ["is waiting for nvidia.com/mig-1g.10gb: none of 1 node has that many free"],
    ),
    "tainted": (
        unscheduled("0/2 nodes are available: 2 node(s) had untolerated taint {gpu: true}."),
        Reason.UNSCHEDULABLE,
        ["cannot be scheduled: none of 2 nodes fits", "untolerated taint"],
    ),
    "claim not bound": (
        unscheduled("pod has unbound immediate PersistentVolumeClaims. not found"),
        Reason.CLAIM_NOT_BOUND,
        ["is waiting for a volume: one of its PersistentVolumeClaims is not bound.", "unbound immediate"],
    ),
    "image pull": (
        waiting("ImagePullBackOff", 'Back-off pulling image "registry.example/worker:1"'),
        Reason.IMAGE_PULL_FAILED,
        ["cannot pull the image registry.example/worker:1", "Check worker.image and worker.imagePullSecrets"],
    ),
    "image name": (
        waiting("InvalidImageName", "couldn't parse image name"),
        Reason.IMAGE_PULL_FAILED,
        ["couldn't parse image name"],
    ),
    "secret": (
        waiting("CreateContainerConfigError", 'secret "hf" not found'),
        Reason.SECRET_NOT_FOUND,
        ['secret "hf" not found'],
    ),
    "secret key": (
        waiting("CreateContainerConfigError", "couldn't find key token in Secret team-a/hf"),
        Reason.SECRET_NOT_FOUND,
        ["couldn't find key token in Secret team-a/hf"],
    ),
    "config map": (
        waiting("CreateContainerConfigError", 'configmap "gone" not found'),
        Reason.CONFIG_MAP_NOT_FOUND,
        ['configmap "gone" not found'],
    ),
    "config map key": (
        waiting("CreateContainerConfigError", "couldn't find key a in ConfigMap team-a/gone"),
        Reason.CONFIG_MAP_NOT_FOUND,
        ["couldn't find key a in ConfigMap team-a/gone"],
    ),
    "not root": (
        waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
        Reason.CONTAINER_CONFIG_ERROR,
        ["runAsNonRoot and image will run as root. Check worker.env and worker.podTemplate."],
    ),
    "killed for memory, between restarts": (
        {**waiting("CrashLoopBackOff", restarts=3, last=ended(137, "OOMKilled")), "spec": MEMORY},
        Reason.OOM_KILLED,
        ["limit 4Gi, 3 restarts", "Raise worker.resources.limits.memory, or lower --max-model-len"],
    ),
    "killed for memory, starting again": (
        again(ended(137, "OOMKilled")),
        Reason.OOM_KILLED,
        ["no limit except the node's memory, 1 restart)", "It is restarting"],
    ),
    "crash with a message": (
        waiting(
            "CrashLoopBackOff", restarts=5, last=ended(1, message="Traceback\nValueError: no such model\n")
        ),
        Reason.CRASH_LOOPING,
        [
            "exit code 1 (5 restarts)",
            "Its last message was: ValueError: no such model",
            "kubectl logs w-1 --previous",
        ],
    ),
    "just ended": (
        {"container": {"started": False, "state": {"terminated": ended(2)}}},
        Reason.CRASH_LOOPING,
        ["exit code 2"],
    ),
    "killed at the end of the start-up budget": (
        again(ended(137, seconds=BUDGET + 30)),
        Reason.STARTUP_TIMEOUT,
        ["did not start within 600 s. Raise worker.startupTimeoutSeconds, or see"],
    ),
    "ended by SIGTERM at the end of the start-up budget": (
        again(ended(143, seconds=BUDGET + 2)),
        Reason.STARTUP_TIMEOUT,
        ["did not start within 600 s. Raise worker.startupTimeoutSeconds"],
    ),
    "at the end of the budget, waiting to start again": (
        waiting("CrashLoopBackOff", restarts=2, last=ended(137, seconds=BUDGET + 30)),
        Reason.STARTUP_TIMEOUT,
        ["2 restarts"],
    ),
    "killed long before the budget": (again(ended(137, seconds=20)), Reason.CRASH_LOOPING, ["exit code 137"]),
    "ended itself after as long as the budget": (
        again(ended(3, seconds=BUDGET + 5)),
        Reason.CRASH_LOOPING,
        ["exit code 3"],
    ),
    "killed after hours of service": (
        again(ended(137, seconds=3500)),
        Reason.CRASH_LOOPING,
        ["exit code 137"],
    ),
    "evicted": (
        {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."},
        Reason.POD_FAILED,
        [
            (
                "failed on node node-1 (Evicted): The node was low on resource: memory. Set "
                "worker.resources.requests"
            )
        ],
    ),
    "shut down in good order": (
        {
            "phase": "Succeeded",
            "conditions": [
                {
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "TerminationByKubelet",
                    "message": "Pod was terminated in response to imminent node shutdown.",
                }
            ],
            **again(ended(0, "Completed"), restarts=0),
        },
        Reason.POD_FAILED,
        ["terminated on node node-1 (TerminationByKubelet): Pod was terminated in response to imminent node"],
    ),
    "a frontend that does not come up": (
        {**again(ended(137, seconds=BUDGET + 5)), **FRONTEND},
        Reason.STARTUP_TIMEOUT,
        ["did not start within 600 s. See `kubectl logs w-1"],
    ),
    "a frontend killed for memory": (
        {**again(ended(137, "OOMKilled")), **FRONTEND},
        Reason.OOM_KILLED,
        ["Raise frontend.resources.limits.memory. It is restarting"],
    ),
    "a sidecar killed for memory": (
        {"containerStatuses": [SIDECAR | {"state": {"terminated": ended(137, "OOMKilled")}}], "spec": BOTH},
        Reason.OOM_KILLED,
        [
            "In pod w-1, the container proxy ran out of memory",
            "limit 32Mi",
            "Raise its limit in worker.podTemplate.",
        ],
    ),
    "without a limit beside a sidecar that has one": (
        {**again(ended(137, "OOMKilled")), "spec": {"containers": [PROXY, {"name": "main"}]}},
        Reason.OOM_KILLED,
        ["no limit except the node's memory"],
    ),
    "a sidecar's image": (
        {
            "containerStatuses": [
                SIDECAR | {"image": "p:1", "state": {"waiting": {"reason": "ErrImagePull", "message": "404"}}}
            ]
        },
        Reason.IMAGE_PULL_FAILED,
        ["the image p:1 of container proxy: 404", "check its name and tag in worker.podTemplate."],
    ),
    "a longer time to end in": (
        {
            **again(ended(137, seconds=BUDGET + 290)),
            "spec": {"terminationGracePeriodSeconds": 300, "containers": []},
        },
        Reason.STARTUP_TIMEOUT,
        ["did not start within 600 s. Raise worker.startupTimeoutSeconds"],
    ),
    "an init container": (
        {
            **waiting("PodInitializing"),
            "initContainerStatuses": [
                {"name": "done", "ready": True, "state": {"terminated": ended(0)}},
                {"name": "proxy", "ready": False, "state": {"running": {}}},
                {"name": "fetch", "ready": False, "state": {"running": {}}},
            ],
            "spec": {"initContainers": [{"name": "proxy", "restartPolicy": "Always"}, {"name": "fetch"}]},
        },
        Reason.STARTING,
        ["Pod w-1 is starting: its init container fetch has not completed yet."],
    ),
    "creating": (
        {**waiting("ContainerCreating")},
        Reason.STARTING,
        ["Pod w-1 is starting (phase Pending)."],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_pod(make_pod, case):
    status, reason, parts = CASES[case]
    found = diagnose_pod(make_pod("w-1", ready=False, **status), BUDGET)
    assert found.reason is reason
    for part in parts:
        assert part in found.message
    assert found.message.startswith(("Pod w-1 ", "In pod w-1, the "))
    assert found.message.endswith(".")
    assert "\n" not in found.message
    assert ".." not in found.message.replace("...", "")


@pytest.mark.parametrize(
    ("verdict", "said", "reason", "parts"),
    [
        (
            "Starting",
            {"stage__name": "LoadingWeights", "stage__detail": "3 of 8 shards"},
            Reason.STARTING,
            ["stage LoadingWeights (3 of 8 shards) since 11:50:00 UTC. It must start within 600 s"],
        ),
        ("Starting", {"stage__since": "2026-01-01T13:50:00+02:00"}, Reason.STARTING, ["since 11:50:00 UTC"]),
        ("Starting", {"started": True}, Reason.STARTING, ["its first health probe has not completed yet"]),
        (
            "Stalled",
            {"verdict__message": "No token for 12 s."},
            Reason.ENGINE_STALLED,
            ["not ready: the engine is stalled. No token for 12 s."],
        ),
        ("Dead", {}, Reason.ENGINE_DEAD, ["not ready: the engine is dead."]),
        (
            "Starting",
            {
                "started": True,
                "stage__name": "Refused",
                "configuration__problems": [
                    {"reason": "InvalidPayload", "source": "Spec", "field": "f", "message": "m"}
                ],
            },
            Reason.NOT_READY,
            ["serves no requests until its configuration is valid"],
        ),
    ],
)
def test_worker_that_speaks(make_worker, verdict, said, reason, parts):
    found = diagnose_pod(make_worker("w-1", verdict, ready=False, said=said), BUDGET)
    assert found.reason is reason
    for part in parts:
        assert part in found.message


def test_ready_and_going_need_no_reason(make_pod):
    assert diagnose_pod(make_pod("w-1"), BUDGET) is None
    assert diagnose_pod(make_pod("w-1", ready=False, metadata={"deletionTimestamp": "x"}), BUDGET) is None


def test_what_only_the_user_can_mend_goes_first(make_pod):
    causes = [
        diagnose_pod(make_pod(case, ready=False, **CASES[case][0]), BUDGET)
        for case in ("creating", "no cpu", "crash with a message", "image pull")
    ]
    assert most_severe(causes).reason is Reason.IMAGE_PULL_FAILED
    assert most_severe(causes[:3]).reason is Reason.CRASH_LOOPING
    assert most_severe(causes[:2]).reason is Reason.UNSCHEDULABLE
    assert most_severe([]) is None


def test_a_failing_custom_ping_is_named(make_worker):
    said = "model:f answers 503 instead of 200"
    ping = {"state": "Failing", "message": said, "since": "2026-01-01T12:00:00Z"}
    pod = make_worker("w-1", ready=False, said={"ready": False, "customPing": ping})
    cause = diagnose_pod(pod, 1800)
    assert cause is not None
    assert cause.reason is Reason.PING_FAILED
    assert said in cause.message
    stalled = make_worker("w-1", "Stalled", said={"customPing": ping})
    cause = diagnose_pod(stalled, 1800)
    assert cause is not None
    assert cause.reason is Reason.ENGINE_STALLED, "the engine's own trouble goes first"


def test_one_that_hangs_is_not_what_it_said_last(make_worker):
    """The stream went silent, the kubelet's probes time out, and nothing restarts it."""
    hung = make_worker("w-1", ready=False, connected=False, error="silent for 15 s")
    found = diagnose_pod(hung, BUDGET)
    assert found.reason is Reason.NOT_READY
    assert "is not ready, and the operator receives no report from it (silent for 15 s)" in found.message
    # Cut for a moment only, it is what it was.
    assert (
        diagnose_pod(make_worker("w-1", ready=False, connected=False, grace_expired=False), BUDGET).reason
        is Reason.STARTING
    )
    loading = make_worker("w-1", "Starting", connected=False, container={"started": False})
    assert diagnose_pod(loading, BUDGET).reason is Reason.STARTING
    # The kubelet does reach it, and something else holds it up.
    answers = make_worker("w-1", ready=False, connected=False, container={"ready": True})
    assert diagnose_pod(answers, BUDGET).reason is Reason.STARTING


@pytest.mark.parametrize(
    ("pod", "told"),
    [
        ({}, "generates, but the kubelet has not reported it as ready yet."),
        ({"container": {"ready": True}}, "generates, but the kubelet has not reported it as ready yet."),
        (
            {
                "containerStatuses": [
                    {"name": "main", "ready": True, "started": True, "state": {"running": {}}},
                    {**SIDECAR, "state": {"running": {}}, "restartCount": 0},
                ]
            },
            "generates, but its container proxy is not ready.",
        ),
        (
            {
                "container": {"ready": True},
                "conditions": [
                    {
                        "type": "Ready",
                        "status": "False",
                        "reason": "ReadinessGatesNotReady",
                        "message": 'the status of pod readiness gate "a/b" is not "True", but False',
                    }
                ],
            },
            'generates, but the status of pod readiness gate "a/b" is not "True", but False.',
        ),
    ],
)
def test_what_holds_up_one_that_generates(make_worker, pod, told):
    found = diagnose_pod(make_worker("w-1", ready=False, **pod), BUDGET)
    assert (found.reason, found.message) == (Reason.STARTING, f"Pod w-1 {told}")


def test_one_that_generates_and_takes_no_requests(make_worker):
    found = diagnose_pod(make_worker("w-1", ready=False, said={"ready": False}), BUDGET)
    assert (found.reason, found.message) == (
        Reason.NOT_READY,
        "Pod w-1 is not accepting requests: it is warming up or shutting down.",
    )


def test_the_stage_of_one_that_starts_again(make_worker):
    pod = make_worker(
        "w-1", "Starting", said={"stage__name": "LoadingWeights"}, ready=False, **again(ended(3))
    )
    assert diagnose_pod(pod, BUDGET).message.endswith(
        "It is restarting: stage LoadingWeights since 11:50:00 UTC."
    )
