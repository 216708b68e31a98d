"""Diagnoses of pod statuses that real schedulers, kubelets, registries and controllers wrote.

``recorded.json`` was taken with `kubectl get pod -o json` from a node of hack/cluster (Kubernetes 1.36.2,
containerd 2) and reduced to the fields that the operator keeps. How each was created:

- the GPU cases: a worker asking for nvidia.com/gpu on a node without; on a node with 1 in its status (as from
  a device plugin), taken by another pod; and one asking for 8 of that node;
- ``pull-*``: a registry on the node's port 80 that answers 401, 403, 404, 429 or 500;
- ``claim-not-bound``: a claim of a storage class that does not exist; ``evicted``: an emptyDir over its
  limit; ``oom``: a worker in 30 Mi; ``budget``: startupTimeoutSeconds 10; ``init-fails``: exit code 7;
- ``native-*``: an init container with restartPolicy Always; ``ordinary-*``: a second container;
- ``node-lost``: a Node whose Lease no kubelet renews, and what the node controller changed in its pod.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from vllmendpoint_api import CONDITION_REASONS, Condition, Reason
from vllmendpoint_operator.observe.snapshot import Pod
from vllmendpoint_operator.status.diagnosis.pods import diagnose_pod

RECORDED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "recorded.json").read_text())
TIMEOUT = 10

EXPECTED: dict[str, tuple[Reason, str]] = {
    "no-device-plugin": (
        Reason.INSUFFICIENT_GPU,
        (
            "is waiting for 1 nvidia.com/gpu: none of 1 node offers that many, free or in use. Request "
            "fewer, "
            "or add a GPU node. If a node has them, check its driver and its device plugin: without these, a "
            "node offers no GPU. The scheduler reports: 0/1 nodes are available: 1 Insufficient "
            "nvidia.com/gpu."
        ),
    ),
    "gpus-busy": (
        Reason.INSUFFICIENT_GPU,
        (
            "is waiting for 1 nvidia.com/gpu: 1 of 1 node has that much, but it is in use. Free GPUs, or "
            "add a "
            "GPU node. The scheduler reports: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
        ),
    ),
    "more-gpus-than-a-node-has": (
        Reason.INSUFFICIENT_GPU,
        "is waiting for 8 nvidia.com/gpu: none of 1 node offers that many, free or in use.",
    ),
    "no-cpu": (
        Reason.UNSCHEDULABLE,
        (
            "is waiting for 500 cpu: none of 1 node is large enough, even when empty. Request less, or add a "
            "larger node. The scheduler reports: 0/1 nodes are available: 1 Insufficient cpu."
        ),
    ),
    "no-memory": (Reason.UNSCHEDULABLE, "is waiting for 900Gi memory: none of 1 node is large enough"),
    "node-selector": (
        Reason.UNSCHEDULABLE,
        (
            "cannot be scheduled: none of 1 node fits. The scheduler reports: 0/1 nodes are available: 1 "
            "node(s) didn't match Pod's node affinity/selector."
        ),
    ),
    "claim-not-bound": (
        Reason.CLAIM_NOT_BOUND,
        (
            "is waiting for a volume: its PersistentVolumeClaim (unbound) is not bound. Run `kubectl "
            "describe "
            "pvc`, and check"
        ),
    ),
    "no-image": (
        Reason.IMAGE_PULL_FAILED,
        (
            "the image localhost:1/no/such-image:1: Head "
            '"https://localhost:1/v2/no/such-image/manifests/1": dial '
            "tcp 127.0.0.1:1: connect: connection refused. The node cannot reach the registry"
        ),
    ),
    "no-such-host": (Reason.IMAGE_PULL_FAILED, "i/o timeout. The node cannot reach the registry"),
    "pull-unauthorized": (
        Reason.IMAGE_PULL_FAILED,
        (
            "cannot pull the image localhost:80/unauthorized/worker:1: pull access denied, "
            "repository does not exist or may require authorization: authorization failed: no basic auth "
            "credentials. The registry requires credentials: store them in a Secret and add it to "
            "worker.imagePullSecrets."
        ),
    ),
    "pull-denied": (
        Reason.IMAGE_PULL_FAILED,
        (
            "403 Forbidden denied: denied says the registry. The registry denies access: the credentials in "
            "worker.imagePullSecrets may not read the image."
        ),
    ),
    "pull-missing": (
        Reason.IMAGE_PULL_FAILED,
        (
            "localhost:80/missing/worker:1: not found. The registry does not have this image: check its "
            "name and tag"
        ),
    ),
    "pull-toomany": (Reason.IMAGE_PULL_FAILED, "429 Too Many Requests. The registry limits pulls"),
    "pull-broken": (Reason.IMAGE_PULL_FAILED, "500 Internal Server Error. The registry has an error"),
    "bad-image-name": (
        Reason.IMAGE_PULL_FAILED,
        "repository name (Case) must be lowercase. Check worker.image",
    ),
    "no-secret": (
        Reason.SECRET_NOT_FOUND,
        (
            'cannot start its container: secret "not-there" not found. Create it, or correct the reference '
            "in "
            "model.tokenSecretRef, worker.env, worker.envFrom or a podTemplate."
        ),
    ),
    "no-mount": (
        Reason.STARTING,
        "is starting on node vllmendpoint-local: its volumes and its network are not set up yet",
    ),
    "oom": (
        Reason.OOM_KILLED,
        "ran out of memory and was killed (OOMKilled, exit code 137, limit 30Mi, 1 restart). Raise",
    ),
    "init-fails": (
        Reason.CRASH_LOOPING,
        (
            "container prepare terminated with exit code 7 (1 restart). Its last message was: no such "
            "bucket. "
            "See `kubectl logs init-fails-workers-859554df44-hlzbb -c prepare --previous`. It is restarting."
        ),
    ),
    "init-secret": (
        Reason.CONFIG_MAP_NOT_FOUND,
        (
            'cannot start its init container fetch: configmap "nope" not found. Create it, or correct the '
            "reference in worker.podTemplate."
        ),
    ),
    "native-probe": (
        Reason.STARTING,
        "is starting: its sidecar container proxy is running, but its startup probe has not succeeded yet.",
    ),
    "native-unready": (
        Reason.STARTING,
        "is starting: its sidecar container proxy is not ready.",
    ),
    "native-crash": (
        Reason.CRASH_LOOPING,
        (
            "sidecar container proxy terminated with exit code 1 (3 restarts). Its last message was: no "
            "config. "
            "See `kubectl logs native-crash -c proxy --previous`."
        ),
    ),
    "native-exits-0": (
        Reason.CRASH_LOOPING,
        "sidecar container proxy terminated with exit code 0 (3 restarts). See `kubectl logs",
    ),
    "native-image": (
        Reason.IMAGE_PULL_FAILED,
        "cannot pull the image localhost/no/such:1 of sidecar container proxy: Head",
    ),
    "native-secret": (
        Reason.SECRET_NOT_FOUND,
        (
            'cannot start its sidecar container proxy: secret "nope" not found. Create it, or correct the '
            "reference"
        ),
    ),
    "native-command": (
        Reason.CONTAINER_CONFIG_ERROR,
        "cannot start its sidecar container proxy: failed to create containerd task: failed to create shim",
    ),
    "ordinary-exits-0": (
        Reason.CRASH_LOOPING,
        "container log terminated with exit code 0 (3 restarts). See `kubectl logs ordinary-exits-0 -c log",
    ),
    "evicted": (
        Reason.POD_FAILED,
        (
            'failed on node vllmendpoint-local (Evicted): Usage of EmptyDir volume "cache" exceeds '
            'the limit "1Mi". '
            "Set worker.resources.requests to what the pod uses, and raise the limits of its volumes."
        ),
    ),
    "budget": (
        Reason.STARTUP_TIMEOUT,
        (
            "was terminated by the kubelet (exit code 0, 1 restart), because it did not start within 10 s. "
            "Raise worker.startupTimeoutSeconds, or see `kubectl logs"
        ),
    ),
    "node-lost": (
        Reason.NODE_LOST,
        "Pod on-ghost runs on node ghost, which does not respond to the control plane",
    ),
}


def recorded(name: str) -> Pod:
    found = RECORDED[name]
    return Pod(found["name"], "uid", {"metadata": {"name": found["name"]}, **found})


def test_every_recorded_pod_has_an_expected_message() -> None:
    assert set(EXPECTED) == set(RECORDED)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_message_of_a_recorded_pod(name: str) -> None:
    reason, text = EXPECTED[name]
    pod = recorded(name)
    cause = diagnose_pod(pod, TIMEOUT)
    assert cause is not None
    assert cause.reason is reason
    assert text in cause.message
    assert cause.message.startswith((f"Pod {pod.name} ", f"In pod {pod.name}, the "))
    assert cause.message.endswith(".")
    assert cause.message.isprintable(), "one line"
    assert ".." not in cause.message
    known = CONDITION_REASONS[Condition.AVAILABLE] + CONDITION_REASONS[Condition.RESOLVED_REFS]
    assert cause.reason in known


# Termination messages of a worker; tests/long/test_causes.py has a real engine write them.
LAST_MESSAGES = {
    "The engine failed: ValueError: To serve at least one request with the models's max seq len "
    "(1024), (0.19 "
    "GiB KV cache is needed, which is larger than the available KV cache memory (0.06 GiB).": (
        Reason.CRASH_LOOPING,
        (
            "terminated with exit code 1 (2 restarts). Its last message was: The engine failed: ValueError: "
            "To serve at least one"
        ),
    ),
    "ModelDownloadFailed: the model 'team/gated' cannot be downloaded: http://hub/x answered 403 "
    "Forbidden. The "
    "model is gated or private.": (
        Reason.MODEL_DOWNLOAD_FAILED,
        (
            "terminated (2 restarts): the model 'team/gated' cannot be downloaded: http://hub/x answered 403 "
            "Forbidden."
        ),
    ),
    "2026-11-22 INFO x\nValueError: the cause\nresource_tracker: 1 leaked semaphore": (
        Reason.CRASH_LOOPING,
        "Its last message was: ValueError: the cause. See",
    ),
    "only\x1b[31m words\x00\n": (Reason.CRASH_LOOPING, "Its last message was: only [31m words. See"),
    "": (Reason.CRASH_LOOPING, "terminated with exit code 1 (2 restarts). See `kubectl logs"),
}


@pytest.mark.parametrize("message", LAST_MESSAGES)
def test_the_termination_message_is_quoted(message: str) -> None:
    reason, text = LAST_MESSAGES[message]
    pod = recorded("oom")
    (main,) = pod.status["containerStatuses"]
    last = {**main["lastState"]["terminated"], "reason": "Error", "exitCode": 1, "message": message}
    changed = {
        **pod.status,
        "containerStatuses": [{**main, "restartCount": 2, "lastState": {"terminated": last}}],
    }
    cause = diagnose_pod(Pod(pod.name, pod.uid, {**pod.obj, "status": changed}), 1800)
    assert cause is not None
    assert cause.reason is reason
    assert text in cause.message


def test_the_message_about_a_startup_timeout_quotes_the_stage() -> None:
    pod = recorded("budget")
    (main,) = pod.status["containerStatuses"]
    last = main["lastState"]["terminated"] | {
        "message": "The worker was terminated in the stage Importing, reached at 06:20:40 UTC."
    }
    changed = {**pod.status, "containerStatuses": [{**main, "lastState": {"terminated": last}}]}
    cause = diagnose_pod(Pod(pod.name, pod.uid, {**pod.obj, "status": changed}), TIMEOUT)
    assert cause is not None
    assert (
        "within 10 s. Its last message was: The worker was terminated in the stage Importing, reached at "
        "06:20:40 UTC. Raise" in cause.message
    )


@pytest.mark.parametrize(
    ("scheduler", "text"),
    [
        (
            (
                "0/5 nodes are available: 2 node(s) had untolerated taint {a: b}, 3 Insufficient "
                "nvidia.com/gpu. "
                "preemption: 0/5 nodes are available: 2 Preemption is not helpful for scheduling, 3 "
                "No preemption "
                "victims found for incoming pod."
            ),
            "1 of 5 nodes has that much, but it is in use",
        ),
        (
            (
                "0/5 nodes are available: 2 Insufficient cpu, 3 Insufficient nvidia.com/gpu. "
                "preemption: 0/5 nodes are "
                "available: 2 No preemption victims found for incoming pod, 3 Preemption is not "
                "helpful for scheduling."
            ),
            "none of 5 nodes has that many free",
        ),
        (
            (
                "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: not eligible due to "
                "preemptionPolicy=Never."
            ),
            (
                "none of 2 nodes has that many free. Free GPUs, or add a GPU node. If a node has them, "
                "check its driver"
            ),
        ),
    ],
)
def test_a_resource_is_called_in_use_only_if_the_scheduler_proves_it(scheduler: str, text: str) -> None:
    pod = recorded("gpus-busy")
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": scheduler}
    cause = diagnose_pod(Pod(pod.name, pod.uid, {**pod.obj, "status": {"conditions": [condition]}}), TIMEOUT)
    assert cause is not None
    assert cause.reason is Reason.INSUFFICIENT_GPU
    assert text in cause.message
    assert "preemption" not in cause.message


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            'failed to resolve reference "r.io/x:1": UNAUTHORIZED: authentication required',
            (
                "cannot pull the image localhost:80/missing/worker:1: UNAUTHORIZED: authentication "
                "required. The registry requires credentials"
            ),
        ),
        ("no match for platform in manifest: not found", "The image is not built for this node's platform."),
        (
            'Back-off pulling image "localhost:80/missing/worker:1"',
            (
                "ImagePullBackOff (see `kubectl describe pod pull-missing2-workers-5f48ff96bf-hckg2` for the "
                "registry's answer)."
            ),
        ),
    ],
)
def test_answers_of_other_registries_and_kubelets_have_a_remedy(message: str, text: str) -> None:
    pod = recorded("pull-missing")
    (main,) = pod.status["containerStatuses"]
    state = {"waiting": {"reason": "ImagePullBackOff", "message": message}}
    changed = {**pod.status, "containerStatuses": [{**main, "state": state}]}
    cause = diagnose_pod(Pod(pod.name, pod.uid, {**pod.obj, "status": changed}), TIMEOUT)
    assert cause is not None
    assert text in cause.message
