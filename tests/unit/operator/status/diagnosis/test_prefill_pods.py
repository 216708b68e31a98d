"""Messages about the pods of prefill workers name the fields that configure them."""

import pytest

from vllmendpoint_api import names
from vllmendpoint_operator.status.diagnosis.pods import diagnose_pod

PREFILL = {names.LABEL_COMPONENT: "prefill"}
CONTAINERS = {
    "ImagePullFailed": (
        {"state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}},
        "check its name and tag in worker.image.",
    ),
    "ContainerConfigError": (
        {"state": {"waiting": {"reason": "CreateContainerError", "message": "no"}}},
        "Check worker.env, worker.podTemplate and prefill.podTemplate.",
    ),
    "OOMKilled": (
        {"restartCount": 1, "state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}},
        "Raise prefill.resources.limits.memory, or lower --max-model-len or --max-num-seqs.",
    ),
    "StartupTimeout": (
        {
            "restartCount": 1,
            "state": {
                "terminated": {
                    "exitCode": 137,
                    "startedAt": "2026-01-01T11:00:00Z",
                    "finishedAt": "2026-01-01T11:10:00Z",
                }
            },
        },
        "Raise worker.startupTimeoutSeconds, or see `kubectl logs p-1 --previous`.",
    ),
}


@pytest.mark.parametrize("reason", CONTAINERS)
def test_the_remedy_names_fields_of_the_prefill_workers(make_pod, reason):
    container, remedy = CONTAINERS[reason]
    pod = make_pod("p-1", ready=False, labels=PREFILL, container={"started": False, **container})
    found = diagnose_pod(pod, 600)
    assert (found.reason, found.message.endswith(remedy)) == (reason, True), found.message


def test_an_evicted_prefill_worker_needs_other_requests(make_pod):
    pod = make_pod("p-1", ready=False, labels=PREFILL, phase="Failed", reason="Evicted")
    assert "Set prefill.resources.requests to what the pod uses" in diagnose_pod(pod, 600).message
