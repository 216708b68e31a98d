"""``status.workers``: worst first, at most 32, figures every five minutes."""

from dataclasses import replace
from datetime import timedelta

import pytest

from vllmendpoint_operator.reports.state import StreamState


def test_worst_first(make_endpoint, make_status, make_worker):
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


def test_stalled_but_ready_goes_before_generating(make_endpoint, make_status, make_worker):
    """``mode: Observe`` keeps a stalled replica ready."""
    endpoint = make_endpoint(replicas=2)
    pods = [make_worker("a", settings=endpoint), make_worker("b", "Stalled", ready=True, settings=endpoint)]
    assert [w.name for w in make_status(endpoint, *pods).workers] == ["b", "a"]


def test_at_most_32_and_the_rest_counted(make_endpoint, make_status, make_worker, condition):
    endpoint = make_endpoint(replicas=40)
    pods = [make_worker(f"w-{i:02}", settings=endpoint) for i in range(39)]
    pods.append(make_worker("x-bad", "Stalled", settings=endpoint))
    found = make_status(endpoint, *pods)
    assert (len(found.workers), found.workers_omitted, found.replicas) == (32, 8, 40)
    assert found.workers[0].name == "x-bad"
    assert (found.ready_replicas, found.generating_replicas) == (39, 39)
    assert "1 of 40 replicas" in condition(found, "Generating").message


def test_pods_on_their_way_out_do_not_count(make_endpoint, make_status, make_worker):
    endpoint = make_endpoint()
    going = make_worker("old", "Stalled", metadata={"deletionTimestamp": "2026-01-01T12:00:00Z"})
    found = make_status(endpoint, going, make_worker("new", settings=endpoint))
    assert [w.name for w in found.workers] == ["new"]
    assert (found.replicas, found.ready_replicas) == (1, 1)


PROBE = {"lastProbe__time": "2026-01-01T12:04:00Z", "lastProbe__latencyMilliseconds": 80.0}


@pytest.mark.parametrize(
    ("minutes", "said", "written"),
    [
        (1, PROBE, False),
        (4, PROBE, False),
        (6, PROBE, True),
        (1, {**PROBE, "lastProbe__outcome": "Timeout"}, True),
    ],
)
def test_probe_figures_every_five_minutes(
    make_endpoint, make_status, make_worker, noon, minutes, said, written
):
    endpoint = make_endpoint()
    before = make_status(endpoint, make_worker("w", settings=endpoint))
    assert before.workers[0].last_probe.latency_milliseconds == 12
    probed = {"lastProbe__time": (noon + timedelta(minutes=minutes)).isoformat()}
    pod = make_worker("w", settings=endpoint, said=said | probed)
    # By the worker's clock, which may be any time off.
    after = make_status(replace(endpoint, status=before), pod, now=noon + timedelta(hours=1))
    assert (after != before) is written
    assert (after.workers[0].last_probe.latency_milliseconds == 80) is written


def test_a_changed_verdict_brings_its_probe_at_once(make_endpoint, make_status, make_worker, noon):
    endpoint = make_endpoint()
    before = make_status(endpoint, make_worker("w", settings=endpoint))
    pod = make_worker("w", "Stalled", settings=endpoint, said=PROBE)
    after = make_status(replace(endpoint, status=before), pod, now=noon + timedelta(minutes=1))
    assert after.workers[0].last_probe.latency_milliseconds == 80
    assert after.workers[0].last_transition_time == "2026-01-01T12:01:00Z"


def test_unreachable_after_the_grace_only(make_endpoint, make_status, make_worker, make_pod, condition):
    endpoint = make_endpoint()
    before = make_status(endpoint, make_worker("w", settings=endpoint))
    later = replace(endpoint, status=before)
    cut = make_worker("w", settings=endpoint, connected=False, grace_expired=False, error="reset")
    assert make_status(later, cut) == before
    lost = make_status(
        later, make_worker("w", settings=endpoint, connected=False, error="connection refused")
    )
    assert lost.workers[0].verdict is None
    assert lost.workers[0].reason == "WorkerUnreachable"
    assert condition(lost, "Generating").message == (
        "1 of 1 replica is unreachable. The operator receives no report from port 9091 of pod w (connection "
        "refused). Check the node, and that NetworkPolicies allow the operator to connect to it."
    )
    assert condition(lost, "Ready").reason == "WorkerUnreachable"
    assert (
        make_status(replace(endpoint, status=lost), make_worker("w", settings=endpoint)).generating_replicas
        == 1
    )
    never = make_status(endpoint, make_pod("w", StreamState()))
    assert (never.workers[0].verdict, never.workers[0].reason) == (None, "")


def test_refused_configuration_is_the_workers_reason(make_endpoint, make_status, make_worker):
    problem = {"reason": "InvalidPayload", "source": "Spec", "field": "payload", "message": "no such field."}
    said = {"stage__name": "Refused", "configuration__state": "Refused", "configuration__problems": [problem]}
    found = make_status(make_endpoint(), make_worker("w", "Starting", said=said))
    assert (found.workers[0].reason, found.workers[0].message) == ("InvalidPayload", "no such field.")


def test_a_pod_that_does_not_run_has_no_verdict(make_endpoint, make_status, make_worker):
    container = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 3, "started": False}
    container["lastState"] = {"terminated": {"exitCode": 1, "reason": "Error"}}
    found = make_status(make_endpoint(), make_worker("w", ready=False, container=container))
    worker = found.workers[0]
    assert (worker.verdict, worker.reason, worker.restart_count) == (None, "CrashLooping", 3)
    assert found.generating_replicas == 0
