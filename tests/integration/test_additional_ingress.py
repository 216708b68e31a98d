"""The additional ingress of the chart in existing network policies."""

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


def test_a_changed_additional_ingress_updates_policies_and_no_pod(
    api, namespace, operate, make_endpoints, policies, until
):
    first = operate(namespace).until_leading()
    endpoint = make_endpoints(namespace).create()
    until(lambda: len(policies(endpoint)) == 2, "both policies")
    endpoint.until("Available", "False", "Starting")
    before = policies(endpoint)
    workers = endpoint.child("Deployment", "-workers")
    assert first.stop() == 0

    operate(namespace, additional_ingress=json.dumps(RULES)).until_leading()
    expected = [[*rules, *STORED] for rules in before]
    until(lambda: policies(endpoint) == expected, lambda: policies(endpoint))
    assert (
        endpoint.child("Deployment", "-workers")["metadata"]["generation"]
        == (workers["metadata"]["generation"])
    )
    assert not endpoint.get()["status"]["revision"]["upgradeAvailable"]

    # The stored policy equals the applied one: it is not applied again, and an edit is reverted.
    offset = api.audit_offset()
    policy = endpoint.child("NetworkPolicy", "-workers")
    policy["spec"]["ingress"] = before[0]
    api.call("PUT", api.path("NetworkPolicy", namespace, policy["metadata"]["name"]), policy)
    until(lambda: policies(endpoint) == expected, lambda: policies(endpoint))
    endpoint.patch(spec={"replicas": 2})
    until(lambda: endpoint.child("Deployment", "-workers")["spec"]["replicas"] == 2, "2 replicas")
    written = [write for write in api.writes(offset, namespace=namespace) if "networkpolicies" in write]
    assert written == [f"patch networkpolicies {endpoint.name}-workers"]
