"""Report streams with wrong reports, floods of reports or interruptions, and what they do not affect."""

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


def test_a_replica_is_ready_by_its_pod_and_not_by_its_report(serving, until):
    endpoint = serving()
    (pod,) = endpoint.pods()
    (worker,) = endpoint.workers
    endpoint.set_pod_status(pod, ready=False, address=worker.server_address[0])
    worker.send_report("Generating", ready=True, started=True)
    endpoint.until("Available", "False")
    found = endpoint.get()["status"]
    assert (found["readyReplicas"], found["workers"][0]["ready"]) == (0, False)
    assert endpoint.condition("Ready")["status"] == "False"


def test_readiness_is_updated_while_every_stream_is_interrupted(serving):
    endpoint = serving(replicas=2, strategy={"rollingUpdate": {"maxUnavailable": 1}})
    pods = endpoint.pods()
    addresses = [pod["status"]["podIP"] for pod in pods]
    for worker in endpoint.started:
        worker.close_streams()
    for pod, address in zip(pods, addresses, strict=True):
        endpoint.set_pod_status(pod, ready=False, address=address)
    endpoint.until("Available", "False")
    assert endpoint.get()["status"]["readyReplicas"] == 0


def test_a_flood_of_reports_causes_few_writes_and_hides_no_stall_of_others(serving, api, until):
    flooding, other = serving(), serving()
    (worker,), (other_worker,) = flooding.workers, other.workers
    reports = []
    for number in range(400):
        worker.report["verdict"] |= {"message": f"report {number}"}
        reports.append(json.dumps(worker.report).encode() + b"\n")
    offset, end = api.audit_offset(), time.monotonic() + 3

    def flood():
        while time.monotonic() < end:
            with worker.updated:
                worker.raw = b"".join(reports)
                worker.updated.notify_all()
            time.sleep(0.01)

    thread = threading.Thread(target=flood)
    thread.start()
    other_worker.send_report("Stalled")
    other.until("Generating", "False", "EngineStalled", seconds=8)
    thread.join()
    assert len(status_writes(api, offset, flooding)) <= 2, "not one for each of the thousands of reports"


def test_status_writes_of_an_alternating_verdict_are_rate_limited(serving, api):
    """Slow enough for each report to be a transition."""
    endpoint = serving()
    (worker,) = endpoint.workers
    offset, started = api.audit_offset(), time.monotonic()
    for number in range(100):
        worker.send_report(("Stalled", "Generating")[number % 2])
        time.sleep(0.05)
    seconds = time.monotonic() - started
    found = status_writes(api, offset, endpoint)
    assert 5 <= len(found) <= BURST + seconds / WRITE_INTERVAL_SECONDS + 1
    worker.send_report("Stalled")
    endpoint.until("Generating", "False", "EngineStalled", seconds=2 * WRITE_INTERVAL_SECONDS)


def status_writes(api, offset, endpoint):
    """Writes of the endpoint's status since the offset."""
    return [w for w in api.writes(offset, namespace="shared") if w == f"patch vllmendpoints {endpoint.name}"]
