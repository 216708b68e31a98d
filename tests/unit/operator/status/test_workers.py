"""``status.workers``: the most severe first, at most 32, ``lastProbe`` at most every five minutes."""

from dataclasses import replace
from datetime import timedelta

import pytest

from vllmendpoint_operator.reports.state import StreamState


def test_workers_are_sorted_by_severity(make_endpoint, make_status, make_worker):
    endpoint = make_endpoint(replicas=6)
    pods = [
        make_worker("a", "Generating", settings=endpoint),
        make_worker("b", "Busy", settings=endpoint),
        make_worker("c", "Starting", settings=endpoint),
        make_worker("d", "Failing", settings=endpoint),
        make_worker("e", "Stalled", settings=endpoint),
        make_worker("f", "Dead", settings=endpoint),
    ]
    assert [w.name for w in make_status(endpoint, *pods).workers] == ["f", "e", "d", "c", "b", "a"]


def test_a_stalled_worker_that_is_ready_goes_before_a_generating_one(make_endpoint, make_status, make_worker):
    """With ``healthCheck.mode: Observe`` a stalled worker stays ready."""
    endpoint = make_endpoint(replicas=2)
    pods = [make_worker("a", settings=endpoint), make_worker("b", "Stalled", ready=True, settings=endpoint)]
    assert [w.name for w in make_status(endpoint, *pods).workers] == ["b", "a"]


def test_at_most_32_workers_are_listed_and_the_others_are_counted(
    make_endpoint, make_status, make_worker, condition
):
    endpoint = make_endpoint(replicas=40)
    pods = [make_worker(f"w-{i:02}", settings=endpoint) for i in range(39)]
    pods.append(make_worker("x-bad", "Stalled", settings=endpoint))
    found = make_status(endpoint, *pods)
    assert (len(found.workers), found.workers_omitted, found.replicas) == (32, 8, 40)
    assert found.workers[0].name == "x-bad"
    assert (found.ready_replicas, found.generating_replicas) == (39, 39)
    assert "1 of 40 replicas" in condition(found, "Generating").message


def test_terminating_pods_are_not_listed(make_endpoint, make_status, make_worker):
    endpoint = make_endpoint()
    terminating = make_worker("old", "Stalled", metadata={"deletionTimestamp": "2026-01-01T12:00:00Z"})
    found = make_status(endpoint, terminating, make_worker("new", settings=endpoint))
    assert [w.name for w in found.workers] == ["new"]
    assert (found.replicas, found.ready_replicas) == (1, 1)


PROBE = {"lastProbe__time": "2026-01-01T12:04:00Z", "lastProbe__latencyMilliseconds": 80.0}


@pytest.mark.parametrize(
    ("minutes", "report", "written"),
    [
        (1, PROBE, False),
        (4, PROBE, False),
        (6, PROBE, True),
        (1, {**PROBE, "lastProbe__outcome": "Timeout"}, True),
    ],
)
def test_the_last_probe_is_updated_every_five_minutes_or_with_its_outcome(
    make_endpoint, make_status, make_worker, noon, minutes, report, written
):
    endpoint = make_endpoint()
    before = make_status(endpoint, make_worker("w", settings=endpoint))
    assert before.workers[0].last_probe.latency_milliseconds == 12
    probed = {"lastProbe__time": (noon + timedelta(minutes=minutes)).isoformat()}
    pod = make_worker("w", settings=endpoint, report=report | probed)
    # The worker's clock decides, which may differ from the operator's.
    after = make_status(replace(endpoint, status=before), pod, now=noon + timedelta(hours=1))
    assert (after != before) is written
    assert (after.workers[0].last_probe.latency_milliseconds == 80) is written


def test_a_changed_verdict_updates_the_last_probe(make_endpoint, make_status, make_worker, noon):
    endpoint = make_endpoint()
    before = make_status(endpoint, make_worker("w", settings=endpoint))
    pod = make_worker("w", "Stalled", settings=endpoint, report=PROBE)
    after = make_status(replace(endpoint, status=before), pod, now=noon + timedelta(minutes=1))
    assert after.workers[0].last_probe.latency_milliseconds == 80
    assert after.workers[0].last_transition_time == "2026-01-01T12:01:00Z"


def test_a_disconnected_worker_is_unreachable_after_the_grace_period(
    make_endpoint, make_status, make_worker, make_pod, condition
):
    endpoint = make_endpoint()
    before = make_status(endpoint, make_worker("w", settings=endpoint))
    later = replace(endpoint, status=before)
    disconnected = make_worker("w", settings=endpoint, connected=False, grace_expired=False, error="reset")
    assert make_status(later, disconnected) == before
    unreachable = make_status(
        later, make_worker("w", settings=endpoint, connected=False, error="connection refused")
    )
    assert unreachable.workers[0].verdict is None
    assert unreachable.workers[0].reason == "WorkerUnreachable"
    assert condition(unreachable, "Generating").message == (
        "1 of 1 replica is unreachable. The operator receives no report from port 9091 of pod w (connection "
        "refused). Check the node, and that NetworkPolicies allow the operator to connect to it."
    )
    assert condition(unreachable, "Ready").reason == "WorkerUnreachable"
    assert (
        make_status(
            replace(endpoint, status=unreachable), make_worker("w", settings=endpoint)
        ).generating_replicas
        == 1
    )
    without_report = make_status(endpoint, make_pod("w", StreamState()))
    assert (without_report.workers[0].verdict, without_report.workers[0].reason) == (None, "")


def test_the_reason_of_a_worker_that_rejects_its_configuration_is_the_problems(
    make_endpoint, make_status, make_worker
):
    problem = {"reason": "InvalidPayload", "source": "Spec", "field": "payload", "message": "no such field."}
    report = {
        "stage__name": "Refused",
        "configuration__state": "Refused",
        "configuration__problems": [problem],
    }
    found = make_status(make_endpoint(), make_worker("w", "Starting", report=report))
    assert (found.workers[0].reason, found.workers[0].message) == ("InvalidPayload", "no such field.")


def test_a_crashed_worker_has_no_verdict(make_endpoint, make_status, make_worker):
    container = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 3, "started": False}
    container["lastState"] = {"terminated": {"exitCode": 1, "reason": "Error"}}
    found = make_status(make_endpoint(), make_worker("w", ready=False, container=container))
    worker = found.workers[0]
    assert (worker.verdict, worker.reason, worker.restart_count) == (None, "CrashLooping", 3)
    assert found.generating_replicas == 0
