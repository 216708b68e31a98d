"""What workers say of themselves, second by second, and whom the operator believes."""

import time

import pytest

AT_ONCE = 8
"""On a loaded machine; what waits for the next look, or for a stream's silence, takes 10 s and more."""


@pytest.fixture
def running(shared, make_endpoint):
    """An endpoint with one worker that generates."""
    endpoint = make_endpoint().create()
    (worker,) = endpoint.start_all()
    endpoint.until("Ready", "True")
    endpoint.pod = endpoint.pods()[0]["metadata"]["name"]
    return endpoint, worker


def test_a_stall_is_told_at_once_and_once(running, api, until):
    endpoint, worker = running
    worker.send_report("Stalled")
    found = endpoint.until("Generating", "False", "EngineStalled", seconds=AT_ONCE)
    assert found["message"].startswith(
        f"1 of 1 replica is not generating: the engine in pod {endpoint.pod} is stalled. "
        "Stalled (set by the test). The pod receives no traffic"
    )
    assert endpoint.condition("Available")["status"] == "True", (
        "the pod is ready until the kubelet says otherwise"
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


def test_the_worst_replica_goes_first_and_order_is_no_change(shared, make_endpoint, api, until):
    endpoint = make_endpoint().create(replicas=3)
    workers = endpoint.start_all(3)
    endpoint.until("Ready", "True")
    # Two of three are enough for Ready: the third may still be on its way.
    whole = {"readyReplicas": 3, "generatingReplicas": 3}
    until(lambda: whole.items() <= endpoint.get()["status"].items(), "all three generate")
    names = [w["name"] for w in endpoint.get()["status"]["workers"]]
    assert names == sorted(names)
    uids = {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in endpoint.pods()}
    last = next(w for w in workers if uids[w.report["podUid"]] == names[-1])
    last.send_report("Stalled")
    endpoint.until("Generating", "False", "EngineStalled")
    assert endpoint.condition("Available")["status"] == "True"
    assert [w["name"] for w in endpoint.get()["status"]["workers"]] == [names[-1], *names[:-1]]
    endpoint.until_event("EngineStalled")
    mark = api.audit_offset()
    endpoint.patch(metadata={"annotations": {"unrelated": "1"}})
    time.sleep(1)
    assert not [write for write in api.writes(mark, namespace="shared") if endpoint.name in write]


def test_a_lost_worker_is_unknown_after_the_grace_and_comes_back(running, until):
    endpoint, worker = running
    worker.close_streams()
    started = time.monotonic()
    endpoint.until("Generating", "Unknown", "WorkerUnreachable", seconds=25)
    assert time.monotonic() - started > 8
    assert endpoint.condition("Available")["status"] == "True", "counts come from the pods' readiness"
    back = type(worker)(worker.server_address[0], worker.report["podUid"], "")
    endpoint.started.append(back)
    back.send_report(configuration=worker.report["configuration"])
    endpoint.until("Ready", "True")


HOSTILE = {
    "malformed": b"nonsense\n",
    "huge": b"x" * 200_000 + b"\n",
    "endless": b"x" * 200_000,
    "deep": b"[" * 50_000 + b"\n",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_stream_is_not_believed(running, what):
    """What was known stands for the grace; whoever sends rubbish is not asked in a tight loop."""
    endpoint, worker = running
    with worker.updated:
        worker.raw = HOSTILE[what]
        worker.updated.notify_all()
    time.sleep(1.5)
    assert endpoint.condition("Generating")["status"] == "True"
    assert worker.connections < 6
    with worker.updated:
        worker.raw = None
    worker.send_report("Failing")
    endpoint.until("Generating", "False", "ProbeFailed")


def test_a_report_of_another_pod_is_not_believed(shared, make_endpoint, until):
    endpoint = make_endpoint().create()
    (pod,) = until(endpoint.pods, "its pod")
    worker = endpoint.start_worker(pod, uid="somebody-else")
    until(lambda: worker.connections >= 2, "asked again")
    found = endpoint.get()["status"]
    assert found["generatingReplicas"] == 0
    endpoint.until("Generating", "Unknown", "WorkerUnreachable", seconds=25)
    assert "the report is of another pod" in endpoint.condition("Generating")["message"]


def test_a_pod_with_our_labels_and_another_owner_is_not_asked(running, api, until):
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
    until(lambda: endpoint.get()["status"]["workers"][0].get("verdict") == "Busy", "the true worker is heard")
    assert endpoint.get()["status"]["replicas"] == 1
    assert intruder.connections == 0
    api.delete("Pod", "shared", f"{endpoint.name}-intruder")


def test_what_only_the_status_would_choke_on_is_kept_out(running, api, until):
    endpoint, worker = running
    worker.send_report("Busy", verdict__message="a\x1b[31m\nb", lastProbe__tokens=10**30)
    time.sleep(1)
    worker.send_report("Busy", lastProbe__tokens=1)
    until(lambda: endpoint.get()["status"]["workers"][0].get("verdict") == "Busy", endpoint.get)
    assert endpoint.get()["status"]["workers"][0]["message"].isprintable()
