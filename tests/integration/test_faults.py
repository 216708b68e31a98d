"""The API server fails, throttles, loses responses or is slow; watches end, are cut, return errors or
nothing.

After each fault, no change is lost, the conditions are correct, each child was written once, and the operator
has not restarted.
"""

import pytest

from tests.integration.fault_proxy import stream_error
from tests.integration.proxied_operator import CHILDREN, NAMESPACE, WATCHES, proxied_operator
from tests.integration.simulated_node import SimulatedNode


@pytest.fixture(scope="module")
def operator(api, tmp_path_factory):
    with proxied_operator(api, tmp_path_factory.mktemp("faults")) as running:
        yield running


@pytest.fixture
def proxied(operator):
    yield operator
    operator.fault_proxy.clear()
    operator.check()


def assert_ready_with_each_child_written_once(proxied, endpoint, offset):
    SimulatedNode(endpoint).run()
    applied = proxied.applied(endpoint, offset)
    assert len(applied) == len(endpoint.owned())
    assert set(applied.values()) == {1}, applied


@pytest.mark.parametrize("status", [409, 429, 500])
def test_failed_writes_are_retried(proxied, make_endpoint, api, status):
    endpoint, offset = make_endpoint(NAMESPACE), api.audit_offset()
    fault = proxied.fault_proxy.inject(
        status=status, times=2, method="PATCH", path=f"{CHILDREN}{endpoint.name}"
    )
    status_fault = proxied.fault_proxy.inject(status=status, method="PATCH", path=f"/{endpoint.name}/status")
    endpoint.create()
    assert_ready_with_each_child_written_once(proxied, endpoint, offset)
    assert (fault.times, status_fault.times) == (0, 0)


def test_writes_that_keep_failing_are_reported(proxied, make_endpoint, api):
    endpoint, offset = make_endpoint(NAMESPACE), api.audit_offset()
    webhook = b'{"kind": "Status", "message": "failed calling webhook \\"x\\": connection refused"}'
    fault = proxied.fault_proxy.inject(
        status=500, times=1000, body=webhook, method="PATCH", path=f"/deployments/{endpoint.name}-workers"
    )
    endpoint.create()
    message = endpoint.until("Ready", "False", "Starting")["message"]
    assert f"The operator cannot create the Deployment {endpoint.name}-workers yet: " in message
    assert 'failed calling webhook "x": connection refused. The operator retries.' in message
    fault.times = 0
    assert_ready_with_each_child_written_once(proxied, endpoint, offset)


def test_writes_with_lost_responses_are_not_repeated_needlessly(proxied, make_endpoint, api):
    endpoint, offset = make_endpoint(NAMESPACE), api.audit_offset()
    faults = [
        proxied.fault_proxy.inject(lost=True, times=2, method="PATCH", path=f"{CHILDREN}{endpoint.name}"),
        proxied.fault_proxy.inject(lost=True, method="PATCH", path=f"/{endpoint.name}/status"),
    ]
    endpoint.create()
    SimulatedNode(endpoint).run()
    applied = proxied.applied(endpoint, offset)
    assert len(applied) == len(endpoint.owned())
    # If the next attempt precedes the watch event, the created object is applied again, without effect.
    assert sum(applied.values()) <= len(applied) + 2, applied
    assert [fault.times for fault in faults] == [0, 0]
    assert endpoint.get()["status"]["observedGeneration"] == 1


def test_failed_events_do_not_affect_reconciliation(proxied, make_endpoint, api, until):
    fault = proxied.fault_proxy.inject(status=500, method="POST", path="/events")
    offset = api.audit_offset()
    endpoint = make_endpoint(NAMESPACE).create()
    assert_ready_with_each_child_written_once(proxied, endpoint, offset)
    until(lambda: fault.times == 0, "its Event was sent")


def test_retry_after_is_respected_and_delays_no_other_endpoint(proxied, make_endpoint, api, until):
    slow, other = make_endpoint(NAMESPACE), make_endpoint(NAMESPACE)
    fault = proxied.fault_proxy.inject(
        status=429, method="PATCH", path=f"/services/{slow.name}", headers={"Retry-After": "5"}
    )
    slow.create()
    until(lambda: fault.times == 0, "the response with Retry-After")
    throttled = max(request.time for request in requests_for(proxied, slow))
    slow.patch(metadata={"annotations": {"unrelated": "1"}})  # an event meanwhile
    other.create()
    other.until("Available", "False", "Starting")
    slow.until("Available", "False", "Starting")
    (retry, *_) = [request.time for request in requests_for(proxied, slow) if request.time > throttled]
    assert retry - throttled >= 5
    assert min(request.time for request in requests_for(proxied, other)) < retry


def requests_for(proxied, endpoint):
    """Requests of the operator for the endpoint and its children."""
    return [request for request in proxied.fault_proxy.passed if f"/{endpoint.name}" in request.path]


def test_a_slow_api_server_causes_no_repeated_writes(proxied, make_endpoint, api):
    proxied.fault_proxy.inject(times=1000, seconds=0.05, path=f"/namespaces/{NAMESPACE}/")
    offset = api.audit_offset()
    endpoint = make_endpoint(NAMESPACE).create()
    assert_ready_with_each_child_written_once(proxied, endpoint, offset)


@pytest.mark.parametrize(
    "last_line",
    [None, stream_error(410), stream_error(500), b"<html>not here</html>"],
    ids=["cut", "too old", "failed", "no JSON"],
)
def test_changes_during_a_gap_of_the_watches_are_reconciled(proxied, make_endpoint, api, until, last_line):
    changed, deleted, created = make_endpoint(NAMESPACE), make_endpoint(NAMESPACE), make_endpoint(NAMESPACE)
    for endpoint in (changed, deleted):
        endpoint.create()
    for endpoint in (changed, deleted):
        SimulatedNode(endpoint).run()
    old = changed.child("Service")
    proxied.fault_proxy.freeze_watches()
    api.delete("Service", NAMESPACE, changed.name)
    api.patch("ConfigMap", NAMESPACE, f"{changed.name}-settings", {"data": {"settings.json": "{}"}})
    changed.patch(spec={"replicas": 2})
    api.delete("VLLMEndpoint", NAMESPACE, deleted.name)
    created.create()
    proxied.fault_proxy.end_watches(last_line)
    SimulatedNode(created).run()
    service = until(lambda: changed.child("Service"), "the Service is back")
    assert service["metadata"]["uid"] != old["metadata"]["uid"]
    until(
        lambda: changed.child("ConfigMap", "-settings")["data"]["settings.json"] != "{}", "drift is reverted"
    )
    until(lambda: len(changed.pods()) == 2, "it is scaled")
    until(
        lambda: not deleted.pods() and not deleted.child("Service"),
        "the children of the deleted endpoint are deleted",
        45,
    )
    until(lambda: f'name="{deleted.name}"' not in proxied.metrics(), "its series are removed")
    assert f'name="{changed.name}"' in proxied.metrics()


def test_throttled_watches_are_restored(proxied, make_endpoint, until):
    endpoint = make_endpoint(NAMESPACE).create()
    SimulatedNode(endpoint).run()
    fault = proxied.fault_proxy.inject(status=429, times=20, path=WATCHES, headers={"Retry-After": "1"})
    proxied.fault_proxy.end_watches()
    until(lambda: fault.times < 7, "the watch of each kind is rejected")
    fault.times = 0
    endpoint.patch(spec={"replicas": 2})
    until(lambda: len(endpoint.pods()) == 2, "it is scaled")
