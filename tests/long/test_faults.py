"""Long faults: a hanging request, an API server that is unreachable for longer than the lease, a CRD that is
not served for a while, and a leader that is killed during a rollout."""

import json
import time

import pytest

from tests.integration.crash_points import KILLABLE
from tests.integration.fault_proxy import FaultProxy
from tests.integration.proxied_operator import CHILDREN, NAMESPACE, WATCHES, proxied_operator
from tests.integration.simulated_node import SimulatedNode

ENDPOINTS = rf"/namespaces/{NAMESPACE}/vllmendpoints(\?|$)"


@pytest.fixture(scope="module")
def proxied(api, tmp_path_factory):
    with proxied_operator(api, tmp_path_factory.mktemp("faults")) as running:
        yield running


@pytest.fixture(autouse=True)
def clear_faults(request):
    yield
    if "proxied" in request.fixturenames:
        request.getfixturevalue("proxied").fault_proxy.clear()


def test_a_hanging_request_times_out_and_delays_no_other_endpoint(proxied, make_endpoint):
    stuck, other = make_endpoint(NAMESPACE), make_endpoint(NAMESPACE)
    fault = proxied.fault_proxy.inject(seconds=60, method="PATCH", path=f"{CHILDREN}{stuck.name}")
    stuck.create()
    other.create()
    SimulatedNode(other).run()
    assert fault.times == 0
    SimulatedNode(stuck).run(seconds=60)
    proxied.check()


def test_the_operator_continues_after_the_crd_was_not_served(proxied, make_endpoint, until):
    endpoint = make_endpoint(NAMESPACE).create()
    SimulatedNode(endpoint).run()
    fault = proxied.fault_proxy.inject(status=404, times=3, method="GET", path=ENDPOINTS)
    proxied.fault_proxy.end_watches()
    until(lambda: fault.times == 0, "the CRD is not found", 60)
    endpoint.patch(spec={"replicas": 2})
    until(lambda: len(endpoint.pods()) == 2, "it is scaled", 60)
    assert endpoint.condition("Accepted")["status"] == "True"
    proxied.check()


def test_watches_resume_after_a_long_failure(proxied, make_endpoint, api, until):
    """Longer than kopf retries."""
    endpoint = make_endpoint(NAMESPACE).create()
    SimulatedNode(endpoint).run()
    fault = proxied.fault_proxy.inject(status=500, times=10**6, path=WATCHES)
    proxied.fault_proxy.end_watches()
    time.sleep(70)
    api.delete("Service", NAMESPACE, endpoint.name)
    endpoint.patch(spec={"replicas": 2})
    assert 10 < 10**6 - fault.times < 500, "retried, but not in a tight loop"
    proxied.fault_proxy.clear()
    until(lambda: len(endpoint.pods()) == 2, "it is scaled", 40)
    until(lambda: endpoint.child("Service"), "the Service is back", 40)
    proxied.check()


def test_the_operator_ends_if_the_api_server_is_unreachable_for_longer_than_the_lease(
    api, operate, make_endpoint, namespace, until, tmp_path
):
    """Another operator may lead by then. The next operator continues."""
    fault_proxy = FaultProxy(api, tmp_path)
    try:
        first = operate(namespace, kubeconfig=fault_proxy.kubeconfig, identity="operator").until_leading()
        endpoint = make_endpoint(namespace).create()
        SimulatedNode(endpoint).run()
        outage = fault_proxy.inject(seconds=30, times=10**6)
        endpoint.patch(spec={"replicas": 2})
        offset = api.audit_offset()
        assert first.process.wait(20) == 1
        assert "lease" in first.text().splitlines()[-1]
        outage.times = 0
        time.sleep(1)
        assert api.writes(offset, namespace=namespace) == []
        operate(namespace, kubeconfig=fault_proxy.kubeconfig, identity="operator").until_leading()
        until(lambda: len(endpoint.pods()) == 2, "it is scaled")
    finally:
        fault_proxy.close()


@pytest.mark.parametrize("at", [2, 4])
def test_the_next_leader_completes_the_rollout_of_a_killed_leader(
    api, operate, make_endpoint, namespace, until, tmp_path, at
):
    trap = tmp_path / "trap"
    first = operate(namespace, program=(KILLABLE, trap), identity="first").until_leading()
    second = operate(namespace, identity="second")
    endpoint = make_endpoint(namespace).create(replicas=2, worker={"image": "first:1"})
    node = SimulatedNode(endpoint)
    node.run()
    old = {pod["metadata"]["uid"] for pod in endpoint.pods()}
    trap.write_text(json.dumps({"at": at, "when": "answered"}))
    endpoint.patch(spec={"worker": {"image": "second:1"}})
    assert first.process.wait(20) == 137
    assert endpoint.condition("Available")["status"] == "True"
    second.until_leading()
    node.run()
    assert not old & {pod["metadata"]["uid"] for pod in endpoint.pods()}
    assert len(api.all("ControllerRevision", namespace)) == 2
    assert len(endpoint.pods()) == 2
