"""Reports of workers, their effects on the conditions, and reports that the operator ignores."""

import time

import pytest

REPORT_SECONDS = 8
"""Maximum on a busy machine; polling, or the timeout of a stream, would take 10 s and more."""


@pytest.fixture
def running(shared, make_endpoint):
    """An endpoint with one worker that generates."""
    endpoint = make_endpoint().create()
    (worker,) = endpoint.start_all()
    endpoint.until("Ready", "True")
    endpoint.pod = endpoint.pods()[0]["metadata"]["name"]
    return endpoint, worker


def test_a_stall_is_reported_immediately_and_once(running, api, until):
    endpoint, worker = running
    worker.send_report("Stalled")
    found = endpoint.until("Generating", "False", "EngineStalled", seconds=REPORT_SECONDS)
    assert found["message"].startswith(
        f"1 of 1 replica is not generating: the engine in pod {endpoint.pod} is stalled. "
        "Stalled (set by the test). The pod receives no traffic"
    )
    assert endpoint.condition("Available")["status"] == "True", (
        "the pod is ready until the kubelet reports otherwise"
    )
    assert endpoint.condition("Ready")["reason"] == "EngineStalled"
    assert endpoint.get()["status"]["generatingReplicas"] == 0
    for tokens in range(5):
        worker.send_report(lastProbe__tokens=tokens)
    endpoint.until_event("EngineStalled")
    worker.send_report("Generating")
    endpoint.until("Generating", "True")
    endpoint.until("Ready", "True")
    endpoint.until_event("Ready", times=2)
    assert len(endpoint.events("EngineStalled")) == 1


def test_the_most_severe_replica_is_first_and_its_order_causes_no_writes(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create(replicas=3)
    workers = endpoint.start_all(3)
    endpoint.until("Ready", "True")
    # Two of three are enough for Ready; the third may follow.
    complete = {"readyReplicas": 3, "generatingReplicas": 3}
    until(lambda: complete.items() <= endpoint.get()["status"].items(), "all three generate")
    names = [w["name"] for w in endpoint.get()["status"]["workers"]]
    assert names == sorted(names)
    uids = {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in endpoint.pods()}
    last = next(w for w in workers if uids[w.report["podUid"]] == names[-1])
    last.send_report("Stalled")
    endpoint.until("Generating", "False", "EngineStalled")
    assert endpoint.condition("Available")["status"] == "True"
    assert [w["name"] for w in endpoint.get()["status"]["workers"]] == [names[-1], *names[:-1]]
    endpoint.until_event("EngineStalled")
    offset = api.audit_offset()
    endpoint.patch(metadata={"annotations": {"unrelated": "1"}})
    time.sleep(1)
    assert not [write for write in api.writes(offset, namespace="shared") if endpoint.name in write]


def test_a_disconnected_worker_is_unknown_after_the_grace_period_and_recovers(running, until):
    endpoint, worker = running
    worker.close_streams()
    started = time.monotonic()
    endpoint.until("Generating", "Unknown", "WorkerUnreachable", seconds=25)
    assert time.monotonic() - started > 8
    assert endpoint.condition("Available")["status"] == "True", "the counts are of ready pods"
    restarted = type(worker)(worker.server_address[0], worker.report["podUid"], "")
    endpoint.started.append(restarted)
    restarted.send_report(configuration=worker.report["configuration"])
    endpoint.until("Ready", "True")


INVALID = {
    "malformed": b"nonsense\n",
    "huge": b"x" * 200_000 + b"\n",
    "endless": b"x" * 200_000,
    "deep": b"[" * 50_000 + b"\n",
}


@pytest.mark.parametrize("what", INVALID)
def test_an_invalid_stream_is_ignored(running, what):
    """The last report is valid for the grace period, and the operator does not reconnect in a tight loop."""
    endpoint, worker = running
    with worker.updated:
        worker.raw = INVALID[what]
        worker.updated.notify_all()
    time.sleep(1.5)
    assert endpoint.condition("Generating")["status"] == "True"
    assert worker.connections < 6
    with worker.updated:
        worker.raw = None
    worker.send_report("Failing")
    endpoint.until("Generating", "False", "ProbeFailed")


def test_a_report_of_another_pod_is_ignored(shared, make_endpoint, until):
    endpoint = make_endpoint().create()
    (pod,) = until(endpoint.pods, "its pod")
    worker = endpoint.start_worker(pod, uid="another-pod")
    until(lambda: worker.connections >= 2, "the operator reconnects")
    found = endpoint.get()["status"]
    assert found["generatingReplicas"] == 0
    endpoint.until("Generating", "Unknown", "WorkerUnreachable", seconds=25)
    assert "the report is of another pod" in endpoint.condition("Generating")["message"]


def test_a_pod_with_the_labels_of_an_endpoint_and_another_owner_is_ignored(running, api, until):
    endpoint, worker = running
    labels = endpoint.pods()[0]["metadata"]["labels"]
    labels = {key: value for key, value in labels.items() if key != "pod-template-hash"}
    container = {"name": "main", "image": "x"}
    pod = api.create(
        "Pod",
        "shared",
        f"{endpoint.name}-intruder",
        metadata={"labels": labels},
        spec={"containers": [container]},
    )
    intruder = endpoint.start_worker(pod)
    worker.send_report("Busy")
    until(lambda: endpoint.get()["status"]["workers"][0].get("verdict") == "Busy", "the report of the worker")
    assert endpoint.get()["status"]["replicas"] == 1
    assert intruder.connections == 0
    api.delete("Pod", "shared", f"{endpoint.name}-intruder")


def test_values_that_the_api_server_would_reject_are_not_written_to_the_status(running, api, until):
    endpoint, worker = running
    worker.send_report("Busy", verdict__message="a\x1b[31m\nb", lastProbe__tokens=10**30)
    time.sleep(1)
    worker.send_report("Busy", lastProbe__tokens=1)
    until(lambda: endpoint.get()["status"]["workers"][0].get("verdict") == "Busy", endpoint.get)
    assert endpoint.get()["status"]["workers"][0]["message"].isprintable()
