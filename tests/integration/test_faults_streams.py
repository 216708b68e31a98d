"""Streams of workers that lie, flood or end, all at once: what they cannot do."""

import json
import threading
import time

import pytest

from tests.integration.simulated_node import SimulatedNode
from vllmendpoint_operator.controller.publish.status_write_limiter import BURST, WRITE_INTERVAL_SECONDS


@pytest.fixture
def serving(shared, make_endpoint):
    def make(**spec):
        endpoint = make_endpoint().create(**spec)
        SimulatedNode(endpoint).run()
        return endpoint

    return make


def test_a_worker_that_praises_itself_is_not_ready_by_that(serving, until):
    endpoint = serving()
    (pod,) = endpoint.pods()
    (worker,) = endpoint.started
    endpoint.set_pod_status(pod, ready=False, address=worker.server_address[0])
    worker.send_report("Generating", ready=True, started=True)
    endpoint.until("Available", "False")
    found = endpoint.get()["status"]
    assert (found["readyReplicas"], found["workers"][0]["ready"]) == (0, False)
    assert endpoint.condition("Ready")["status"] == "False"


def test_readiness_is_told_while_every_stream_is_cut(serving):
    endpoint = serving(replicas=2, strategy={"rollingUpdate": {"maxUnavailable": 1}})
    pods = endpoint.pods()
    addresses = [pod["status"]["podIP"] for pod in pods]
    for worker in endpoint.started:
        worker.close_streams()
    for pod, address in zip(pods, addresses, strict=True):
        endpoint.set_pod_status(pod, ready=False, address=address)
    endpoint.until("Available", "False")
    assert endpoint.get()["status"]["readyReplicas"] == 0


def test_a_flood_costs_few_writes_and_hides_no_stall_of_others(serving, api, until):
    loud, quiet = serving(), serving()
    (worker,), (other,) = loud.started, quiet.started
    reports = []
    for number in range(400):
        worker.report["verdict"] |= {"message": f"news {number}"}
        reports.append(json.dumps(worker.report).encode() + b"\n")
    mark, end = api.audit_offset(), time.monotonic() + 3

    def flood():
        while time.monotonic() < end:
            with worker.updated:
                worker.raw = b"".join(reports)
                worker.updated.notify_all()
            time.sleep(0.01)

    thread = threading.Thread(target=flood)
    thread.start()
    other.send_report("Stalled")
    quiet.until("Generating", "False", "EngineStalled", seconds=8)
    thread.join()
    assert len(statuses(api, mark, loud)) <= 2, "not one for each of the thousands"


def test_one_that_goes_to_and_fro_is_written_a_few_times_and_then_seldom(serving, api):
    """Slowly enough to be no flood: each time is a transition."""
    fickle = serving()
    (worker,) = fickle.started
    mark, started = api.audit_offset(), time.monotonic()
    for number in range(100):
        worker.send_report(("Stalled", "Generating")[number % 2])
        time.sleep(0.05)
    seconds = time.monotonic() - started
    found = statuses(api, mark, fickle)
    assert 5 <= len(found) <= BURST + seconds / WRITE_INTERVAL_SECONDS + 1
    worker.send_report("Stalled")
    fickle.until("Generating", "False", "EngineStalled", seconds=2 * WRITE_INTERVAL_SECONDS)


def statuses(api, mark, endpoint):
    """Writes of its status since then."""
    return [w for w in api.writes(mark, namespace="shared") if w == f"patch vllmendpoints {endpoint.name}"]
