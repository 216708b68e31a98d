"""Why a pod is not ready: messages for pod statuses as kubelets and schedulers write them."""

import pytest

from vllmendpoint_api import Reason
from vllmendpoint_operator.status.diagnosis.pod_diagnosis import most_severe
from vllmendpoint_operator.status.diagnosis.pods import diagnose_pod

TIMEOUT = 600


def waiting(reason, message="", *, restarts=0, last=None):
    container = {
        "started": False,
        "restartCount": restarts,
        "state": {"waiting": {"reason": reason, "message": message}},
    }
    return {"container": {**container, "lastState": {"terminated": last} if last else {}}, "phase": "Pending"}


def terminated(code, reason="Error", message="", *, seconds=42):
    return {
        "exitCode": code,
        "reason": reason,
        "message": message,
        "startedAt": "2026-01-01T11:00:00Z",
        "finishedAt": f"2026-01-01T11:{seconds // 60:02}:{seconds % 60:02}Z",
    }


def restarted(last, restarts=1):
    """A running container that terminated with ``last`` and has not started yet."""
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
    "image pull of a frontend": (
        waiting("ImagePullBackOff", 'Back-off pulling image "registry.example/frontend:1"') | FRONTEND,
        Reason.IMAGE_PULL_FAILED,
        ["Check frontend.image and worker.imagePullSecrets"],
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
        {**waiting("CrashLoopBackOff", restarts=3, last=terminated(137, "OOMKilled")), "spec": MEMORY},
        Reason.OOM_KILLED,
        ["limit 4Gi, 3 restarts", "Raise worker.resources.limits.memory, or lower --max-model-len"],
    ),
    "killed for memory, restarting": (
        restarted(terminated(137, "OOMKilled")),
        Reason.OOM_KILLED,
        ["no limit except the node's memory, 1 restart)", "It is restarting"],
    ),
    "crash with a message": (
        waiting(
            "CrashLoopBackOff",
            restarts=5,
            last=terminated(1, message="Traceback\nValueError: no such model\n"),
        ),
        Reason.CRASH_LOOPING,
        [
            "exit code 1 (5 restarts)",
            "Its last message was: ValueError: no such model",
            "kubectl logs w-1 --previous",
        ],
    ),
    "just terminated": (
        {"container": {"started": False, "state": {"terminated": terminated(2)}}},
        Reason.CRASH_LOOPING,
        ["exit code 2"],
    ),
    "killed at the end of the start-up timeout": (
        restarted(terminated(137, seconds=TIMEOUT + 30)),
        Reason.STARTUP_TIMEOUT,
        ["did not start within 600 s. Raise worker.startupTimeoutSeconds, or see"],
    ),
    "terminated by SIGTERM at the end of the start-up timeout": (
        restarted(terminated(143, seconds=TIMEOUT + 2)),
        Reason.STARTUP_TIMEOUT,
        ["did not start within 600 s. Raise worker.startupTimeoutSeconds"],
    ),
    "killed at the end of the start-up timeout, waiting to restart": (
        waiting("CrashLoopBackOff", restarts=2, last=terminated(137, seconds=TIMEOUT + 30)),
        Reason.STARTUP_TIMEOUT,
        ["2 restarts"],
    ),
    "killed long before the start-up timeout": (
        restarted(terminated(137, seconds=20)),
        Reason.CRASH_LOOPING,
        ["exit code 137"],
    ),
    "exited by itself at the end of the start-up timeout": (
        restarted(terminated(3, seconds=TIMEOUT + 5)),
        Reason.CRASH_LOOPING,
        ["exit code 3"],
    ),
    "killed after hours of service": (
        restarted(terminated(137, seconds=3500)),
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
    "shut down with its node": (
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
            **restarted(terminated(0, "Completed"), restarts=0),
        },
        Reason.POD_FAILED,
        ["terminated on node node-1 (TerminationByKubelet): Pod was terminated in response to imminent node"],
    ),
    "a frontend that does not start": (
        {**restarted(terminated(137, seconds=TIMEOUT + 5)), **FRONTEND},
        Reason.STARTUP_TIMEOUT,
        ["did not start within 600 s. See `kubectl logs w-1"],
    ),
    "a frontend killed for memory": (
        {**restarted(terminated(137, "OOMKilled")), **FRONTEND},
        Reason.OOM_KILLED,
        ["Raise frontend.resources.limits.memory. It is restarting"],
    ),
    "a sidecar killed for memory": (
        {
            "containerStatuses": [SIDECAR | {"state": {"terminated": terminated(137, "OOMKilled")}}],
            "spec": BOTH,
        },
        Reason.OOM_KILLED,
        [
            "In pod w-1, the container proxy ran out of memory",
            "limit 32Mi",
            "Raise its limit in worker.podTemplate.",
        ],
    ),
    "without a limit beside a sidecar that has one": (
        {**restarted(terminated(137, "OOMKilled")), "spec": {"containers": [PROXY, {"name": "main"}]}},
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
    "a longer grace period": (
        {
            **restarted(terminated(137, seconds=TIMEOUT + 290)),
            "spec": {"terminationGracePeriodSeconds": 300, "containers": []},
        },
        Reason.STARTUP_TIMEOUT,
        ["did not start within 600 s. Raise worker.startupTimeoutSeconds"],
    ),
    "an init container": (
        {
            **waiting("PodInitializing"),
            "initContainerStatuses": [
                {"name": "done", "ready": True, "state": {"terminated": terminated(0)}},
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
def test_the_message_has_cause_and_remedy(make_pod, case):
    status, reason, texts = CASES[case]
    found = diagnose_pod(make_pod("w-1", ready=False, **status), TIMEOUT)
    assert found.reason is reason
    for text in texts:
        assert text in found.message
    assert found.message.startswith(("Pod w-1 ", "In pod w-1, the "))
    assert found.message.endswith(".")
    assert "\n" not in found.message
    assert ".." not in found.message.replace("...", "")


def test_ready_and_terminating_pods_have_no_diagnosis(make_pod):
    assert diagnose_pod(make_pod("w-1"), TIMEOUT) is None
    assert diagnose_pod(make_pod("w-1", ready=False, metadata={"deletionTimestamp": "x"}), TIMEOUT) is None


def test_what_only_the_user_can_fix_is_the_most_severe(make_pod):
    causes = [
        diagnose_pod(make_pod(case, ready=False, **CASES[case][0]), TIMEOUT)
        for case in ("creating", "no cpu", "crash with a message", "image pull")
    ]
    assert most_severe(causes).reason is Reason.IMAGE_PULL_FAILED
    assert most_severe(causes[:3]).reason is Reason.CRASH_LOOPING
    assert most_severe(causes[:2]).reason is Reason.UNSCHEDULABLE
    assert most_severe([]) is None
