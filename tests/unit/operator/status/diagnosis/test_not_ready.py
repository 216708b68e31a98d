"""Why a pod without a failed container is not ready, from its worker's report and its containers' states."""

import pytest

from tests.unit.operator.status.cluster_states import crashed
from vllmendpoint_api import Reason
from vllmendpoint_operator.status.diagnosis.pods import diagnose_pod

TIMEOUT = 600
SIDECAR = {"name": "proxy", "restartCount": 1, "ready": False}


@pytest.mark.parametrize(
    ("verdict", "report", "reason", "texts"),
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
def test_the_report_of_a_worker_explains_why_it_is_not_ready(make_worker, verdict, report, reason, texts):
    found = diagnose_pod(make_worker("w-1", verdict, ready=False, report=report), TIMEOUT)
    assert found.reason is reason
    for text in texts:
        assert text in found.message


def test_a_failing_custom_ping_handler_is_reported_unless_the_engine_fails(make_worker):
    answer = "model:f answers 503 instead of 200"
    ping = {"state": "Failing", "message": answer, "since": "2026-01-01T12:00:00Z"}
    pod = make_worker("w-1", ready=False, report={"ready": False, "customPing": ping})
    cause = diagnose_pod(pod, 1800)
    assert cause is not None
    assert cause.reason is Reason.PING_FAILED
    assert answer in cause.message
    stalled = make_worker("w-1", "Stalled", report={"customPing": ping})
    cause = diagnose_pod(stalled, 1800)
    assert cause is not None
    assert cause.reason is Reason.ENGINE_STALLED, "the engine's problem goes first"


def test_a_hanging_worker_is_diagnosed_without_its_last_report(make_worker):
    """The report stream is silent and the kubelet's probes time out."""
    hung = make_worker("w-1", ready=False, connected=False, error="silent for 15 s")
    found = diagnose_pod(hung, TIMEOUT)
    assert found.reason is Reason.NOT_READY
    assert "is not ready, and the operator receives no report from it (silent for 15 s)" in found.message
    # Within the grace period the last report still counts.
    assert (
        diagnose_pod(make_worker("w-1", ready=False, connected=False, grace_expired=False), TIMEOUT).reason
        is Reason.STARTING
    )
    loading = make_worker("w-1", "Starting", connected=False, container={"started": False})
    assert diagnose_pod(loading, TIMEOUT).reason is Reason.STARTING
    # The kubelet reaches the container, so another cause delays the pod.
    answers = make_worker("w-1", ready=False, connected=False, container={"ready": True})
    assert diagnose_pod(answers, TIMEOUT).reason is Reason.STARTING


@pytest.mark.parametrize(
    ("pod", "message"),
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
def test_a_generating_worker_that_is_not_ready_has_a_reason(make_worker, pod, message):
    found = diagnose_pod(make_worker("w-1", ready=False, **pod), TIMEOUT)
    assert (found.reason, found.message) == (Reason.STARTING, f"Pod w-1 {message}")


def test_a_worker_that_generates_but_is_not_ready_is_warming_up_or_shutting_down(make_worker):
    found = diagnose_pod(make_worker("w-1", ready=False, report={"ready": False}), TIMEOUT)
    assert (found.reason, found.message) == (
        Reason.NOT_READY,
        "Pod w-1 is not accepting requests: it is warming up or shutting down.",
    )


def test_the_message_has_the_stage_of_a_restarting_worker(make_worker):
    container = {"started": False, "restartCount": 1, "lastState": crashed(code=3)["lastState"]}
    stage = {"stage__name": "LoadingWeights"}
    pod = make_worker("w-1", "Starting", report=stage, ready=False, container=container)
    assert diagnose_pod(pod, TIMEOUT).message.endswith(
        "It is restarting: stage LoadingWeights since 11:50:00 UTC."
    )
