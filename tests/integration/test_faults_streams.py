"""Streams of workers that lie, flood or end, all at once: what they cannot do."""

import json
import threading
import time

import pytest

from tests.integration.simulated_node import SimulatedNode


@pytest.fixture
def serving(shared, space):
    def make(**spec):
        endpoint = space().create(**spec)
        SimulatedNode(endpoint).run()
        return endpoint

    return make


def test_a_worker_that_praises_itself_is_not_ready_by_that(serving, until):
    endpoint = serving()
    (pod,) = endpoint.pods()
    (worker,) = endpoint.started
    endpoint.play(pod, ready=False, address=worker.server_address[0])
    worker.say("Generating", ready=True, started=True)
    endpoint.until("Available", "False")
    found = endpoint.get()["status"]
    assert (found["readyReplicas"], found["workers"][0]["ready"]) == (0, False)
    assert endpoint.condition("Ready")["status"] == "False"


def test_readiness_is_told_while_every_stream_is_cut(serving):
    endpoint = serving(replicas=2, strategy={"rollingUpdate": {"maxUnavailable": 1}})
    pods = endpoint.pods()
    addresses = [pod["status"]["podIP"] for pod in pods]
    for worker in endpoint.started:
        worker.cut()
    for pod, address in zip(pods, addresses, strict=True):
        endpoint.play(pod, ready=False, address=address)
    endpoint.until("Available", "False")
    assert endpoint.get()["status"]["readyReplicas"] == 0


def test_a_flood_costs_few_writes_and_hides_no_stall_of_others(serving, api, until):
    loud, quiet = serving(), serving()
    (worker,), (other,) = loud.started, quiet.started
    reports = []
    for number in range(400):
        worker.report["verdict"] |= {"message": f"news {number}"}
        reports.append(json.dumps(worker.report).encode() + b"\n")
    mark, end = api.mark(), time.monotonic() + 3

    def flood():
        while time.monotonic() < end:
            with worker.news:
                worker.raw = b"".join(reports)
                worker.news.notify_all()
            time.sleep(0.01)

    thread = threading.Thread(target=flood)
    thread.start()
    started = time.monotonic()
    other.say("Stalled")
    quiet.until("Generating", "False", "EngineStalled")
    assert time.monotonic() - started < 2
    thread.join()
    written = [write for write in api.writes(mark, namespace="shared") if loud.name in write]
    assert len(written) < 150, "not one for each of the thousands"
