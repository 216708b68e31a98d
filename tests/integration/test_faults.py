"""The API server fails, throttles, loses answers, is slow; watches end, are cut, bring errors or nothing.

After each: nothing lost, the right conditions, each child written once, and the operator the same process.
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


def ready_with_each_child_written_once(proxied, endpoint, mark):
    SimulatedNode(endpoint).run()
    applied = proxied.applied(endpoint, mark)
    assert len(applied) == len(endpoint.owned())
    assert set(applied.values()) == {1}, applied


@pytest.mark.parametrize("status", [409, 429, 500])
def test_writes_that_fail_are_made_good(proxied, make_endpoint, api, status):
    endpoint, mark = make_endpoint(NAMESPACE), api.audit_offset()
    fault = proxied.fault_proxy.inject(
        status=status, times=2, method="PATCH", path=f"{CHILDREN}{endpoint.name}"
    )
    told = proxied.fault_proxy.inject(status=status, method="PATCH", path=f"/{endpoint.name}/status")
    endpoint.create()
    ready_with_each_child_written_once(proxied, endpoint, mark)
    assert (fault.times, told.times) == (0, 0)


def test_writes_that_fail_for_long_are_told(proxied, make_endpoint, api):
    endpoint, mark = make_endpoint(NAMESPACE), api.audit_offset()
    webhook = b'{"kind": "Status", "message": "failed calling webhook \\"x\\": connection refused"}'
    fault = proxied.fault_proxy.inject(
        status=500, times=1000, body=webhook, method="PATCH", path=f"/deployments/{endpoint.name}-workers"
    )
    endpoint.create()
    said = endpoint.until("Ready", "False", "Starting")["message"]
    assert f"The operator cannot create the Deployment {endpoint.name}-workers yet: " in said
    assert 'failed calling webhook "x": connection refused. The operator retries.' in said
    fault.times = 0
    ready_with_each_child_written_once(proxied, endpoint, mark)


def test_answers_that_are_lost_double_nothing(proxied, make_endpoint, api):
    endpoint, mark = make_endpoint(NAMESPACE), api.audit_offset()
    faults = [
        proxied.fault_proxy.inject(lost=True, times=2, method="PATCH", path=f"{CHILDREN}{endpoint.name}"),
        proxied.fault_proxy.inject(lost=True, method="PATCH", path=f"/{endpoint.name}/status"),
    ]
    endpoint.create()
    SimulatedNode(endpoint).run()
    applied = proxied.applied(endpoint, mark)
    assert len(applied) == len(endpoint.owned())
    # Where the watch is later than the next attempt, what was made is applied to, without effect.
    assert sum(applied.values()) <= len(applied) + 2, applied
    assert [fault.times for fault in faults] == [0, 0]
    assert endpoint.get()["status"]["observedGeneration"] == 1


def test_events_that_fail_take_nothing_with_them(proxied, make_endpoint, api, until):
    fault = proxied.fault_proxy.inject(status=500, method="POST", path="/events")
    mark = api.audit_offset()
    endpoint = make_endpoint(NAMESPACE).create()
    ready_with_each_child_written_once(proxied, endpoint, mark)
    until(lambda: fault.times == 0, "its Event is tried")


def test_retry_after_is_kept_and_holds_nobody_else_up(proxied, make_endpoint, api, until):
    slow, other = make_endpoint(NAMESPACE), make_endpoint(NAMESPACE)
    fault = proxied.fault_proxy.inject(
        status=429, method="PATCH", path=f"/services/{slow.name}", headers={"Retry-After": "5"}
    )
    slow.create()
    until(lambda: fault.times == 0, "it is told to wait")
    told = max(request.time for request in of(proxied, slow))
    slow.patch(metadata={"annotations": {"unrelated": "1"}})  # whatever comes in meanwhile
    other.create()
    other.until("Available", "False", "Starting")
    slow.until("Available", "False", "Starting")
    (next_one, *_) = [request.time for request in of(proxied, slow) if request.time > told]
    assert next_one - told >= 5
    assert min(request.time for request in of(proxied, other)) < next_one


def of(proxied, endpoint):
    """What the operator asked about the endpoint and its children."""
    return [request for request in proxied.fault_proxy.passed if f"/{endpoint.name}" in request.path]


def test_a_slow_server_is_waited_for(proxied, make_endpoint, api):
    proxied.fault_proxy.inject(times=1000, seconds=0.05, path=f"/namespaces/{NAMESPACE}/")
    mark = api.audit_offset()
    endpoint = make_endpoint(NAMESPACE).create()
    ready_with_each_child_written_once(proxied, endpoint, mark)


@pytest.mark.parametrize(
    "last_line",
    [None, stream_error(410), stream_error(500), b"<html>not here</html>"],
    ids=["cut", "too old", "failed", "no JSON"],
)
def test_nothing_that_happens_in_a_gap_of_the_watches_is_lost(proxied, make_endpoint, api, until, last_line):
    standing, going, fresh = make_endpoint(NAMESPACE), make_endpoint(NAMESPACE), make_endpoint(NAMESPACE)
    for endpoint in (standing, going):
        endpoint.create()
    for endpoint in (standing, going):
        SimulatedNode(endpoint).run()
    old = standing.child("Service")
    proxied.fault_proxy.freeze_watches()
    api.delete("Service", NAMESPACE, standing.name)
    api.patch("ConfigMap", NAMESPACE, f"{standing.name}-settings", {"data": {"settings.json": "{}"}})
    standing.patch(spec={"replicas": 2})
    api.delete("VLLMEndpoint", NAMESPACE, going.name)
    fresh.create()
    proxied.fault_proxy.end_watches(last_line)
    SimulatedNode(fresh).run()
    service = until(lambda: standing.child("Service"), "the Service is back")
    assert service["metadata"]["uid"] != old["metadata"]["uid"]
    until(
        lambda: standing.child("ConfigMap", "-settings")["data"]["settings.json"] != "{}", "drift is put back"
    )
    until(lambda: len(standing.pods()) == 2, "it is scaled")
    until(lambda: not going.pods() and not going.child("Service"), "the deleted one's children go", 45)
    until(lambda: f'name="{going.name}"' not in proxied.metrics(), "it is forgotten")
    assert f'name="{standing.name}"' in proxied.metrics()


def test_watches_that_are_refused_for_a_while(proxied, make_endpoint, until):
    endpoint = make_endpoint(NAMESPACE).create()
    SimulatedNode(endpoint).run()
    fault = proxied.fault_proxy.inject(status=429, times=20, path=WATCHES, headers={"Retry-After": "1"})
    proxied.fault_proxy.end_watches()
    until(lambda: fault.times < 7, "each kind's watch is refused")
    fault.times = 0
    endpoint.patch(spec={"replicas": 2})
    until(lambda: len(endpoint.pods()) == 2, "it is scaled")
