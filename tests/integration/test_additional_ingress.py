"""The chart's additional ingress, on policies that exist already."""

import json

import pytest

RULES = [{"ports": [{"port": 15008}]}, {"from": [{"ipBlock": {"cidr": "169.254.7.127/32"}}]}]
STORED = [{"ports": [{"port": 15008, "protocol": "TCP"}]}, RULES[1]]


@pytest.fixture
def policies():
    def read(endpoint):
        found = [endpoint.child("NetworkPolicy", suffix) for suffix in ("-workers", "-frontend")]
        return [policy["spec"]["ingress"] for policy in found if policy]

    return read


def test_a_changed_value_reaches_existing_endpoints_and_no_pod(
    api, namespace, operate, make_endpoints, policies, until
):
    first = operate(namespace).leads()
    endpoint = make_endpoints(namespace).create()
    until(lambda: len(policies(endpoint)) == 2, "both policies")
    endpoint.until("Available", "False", "Starting")
    before = policies(endpoint)
    workers = endpoint.child("Deployment", "-workers")
    assert first.stop() == 0

    operate(namespace, additional_ingress=json.dumps(RULES)).leads()
    wanted = [[*rules, *STORED] for rules in before]
    until(lambda: policies(endpoint) == wanted, lambda: policies(endpoint))
    assert (
        endpoint.child("Deployment", "-workers")["metadata"]["generation"]
        == (workers["metadata"]["generation"])
    )
    assert not endpoint.get()["status"]["revision"]["upgradeAvailable"]

    # What was applied is what is stored: nothing is applied again, and an edit is undone.
    mark = api.audit_offset()
    policy = endpoint.child("NetworkPolicy", "-workers")
    policy["spec"]["ingress"] = before[0]
    api.call("PUT", api.path("NetworkPolicy", namespace, policy["metadata"]["name"]), policy)
    until(lambda: policies(endpoint) == wanted, lambda: policies(endpoint))
    endpoint.patch(spec={"replicas": 2})
    until(lambda: endpoint.child("Deployment", "-workers")["spec"]["replicas"] == 2, "2 replicas")
    written = [write for write in api.writes(mark, namespace=namespace) if "networkpolicies" in write]
    assert written == [f"patch networkpolicies {endpoint.name}-workers"]
