"""Parts of objects as Kubernetes 1.36 writes them."""

from typing import Any

QUOTA_EXCEEDED = (
    'pods "smollm-workers-7d-" is forbidden: exceeded quota: q, requested: pods=1, used: pods=0, '
    "limited: pods=0"
)
CPU_UNSPECIFIED = 'pods "x" is forbidden: failed quota: q: must specify cpu for: main'
POD_SECURITY = (
    'pods "smollm-workers-7d-x" is forbidden: violates PodSecurity "restricted:latest": privileged '
    '(container "main" must not set securityContext.privileged=true)'
)
NO_GPU = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available: "
    "1 No preemption victims found for incoming pod.",
}
TERMINATING = {"deletionTimestamp": "2026-01-01T12:00:05Z"}
"""Metadata of a terminating pod."""
BOTH = {"w-1": "Answered", "w-2": "Answered"}
"""Routes of a frontend to two workers."""
BROKEN = {"answering": False, "ready": False, "message": "No response within 5 s."}
"""Report of a frontend whose HTTP server does not answer."""


def became_ready(at: str) -> list[dict[str, str]]:
    """Conditions of a pod."""
    return [{"type": "Ready", "status": "True", "lastTransitionTime": at}]


def replica_failure(message: str) -> dict[str, str]:
    """Condition of a Deployment whose pods the API server rejects."""
    return {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}


def of_template(template_hash: str, created: str) -> dict[str, Any]:
    """Metadata of a pod; ``created``: a time of day."""
    return {
        "labels": {"pod-template-hash": template_hash},
        "creationTimestamp": f"2026-01-01T{created}:00Z",
    }


def crashed(message: str = "", *, code: int = 1, restarts: int = 3) -> dict[str, Any]:
    """Status of a container that waits for its next restart."""
    last = {"terminated": {"exitCode": code, "reason": "Error", "message": message}}
    waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
    return {"started": False, "restartCount": restarts, "state": waiting, "lastState": last}
