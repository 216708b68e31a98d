"""Additional ingress rules for the NetworkPolicies of all endpoints."""

import json

import pytest
from pydantic import ValidationError

from vllmendpoint_operator.settings import Settings

MESH = {"ports": [{"port": 15008, "protocol": "TCP"}]}
PROBES = {"from": [{"ipBlock": {"cidr": "169.254.7.127/32"}}]}


def settings(*rules):
    return Settings(
        _cli_parse_args=[
            "--worker-image=x",
            "--frontend-image=y",
            f"--additional-ingress={json.dumps(rules)}",
        ]
    )


def policies(planned):
    return {c["metadata"]["name"]: c["spec"] for c in planned.children if c["kind"] == "NetworkPolicy"}


def test_rules_are_appended_to_every_policy_and_change_no_pod_template(
    make_endpoint, make_plan, make_observed
):
    before = make_plan(make_endpoint())
    after = make_plan(make_endpoint(), make_observed(before), additional_ingress=(MESH, PROBES))
    assert policies(after).keys() == {"smollm-workers", "smollm-frontend"}
    for name, spec in policies(after).items():
        assert spec["ingress"] == [*policies(before)[name]["ingress"], MESH, PROBES]
        assert spec["policyTypes"] == ["Ingress"]
    assert after.revision == before.revision
    assert not after.revision.upgrade_available


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"ports": [{"port": 15008}]}, MESH),
        # The API server rejects a policy with a string of digits.
        ({"ports": [{"port": "15008"}]}, MESH),
        ({"ports": [{"port": "report"}]}, {"ports": [{"port": "report", "protocol": "TCP"}]}),
        (
            {"ports": [{"port": 1, "endPort": 9, "protocol": "UDP"}]},
            {"ports": [{"port": 1, "endPort": 9, "protocol": "UDP"}]},
        ),
        (PROBES, PROBES),
        (
            {"from": [{"ipBlock": {"cidr": "fd00::/8", "except": []}}], "ports": []},
            {"from": [{"ipBlock": {"cidr": "fd00::/8"}}]},
        ),
        ({"from": [{"namespaceSelector": {}}]}, {"from": [{"namespaceSelector": {}}]}),
        (
            {"from": [{"podSelector": {"matchLabels": {}, "matchExpressions": []}}]},
            {"from": [{"podSelector": {}}]},
        ),
        (
            {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}]},
            {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}]},
        ),
    ],
)
def test_rules_equal_what_the_api_server_stores(given, stored):
    """Otherwise every reconcile would apply them again."""
    assert settings(given).options.additional_ingress == (stored,)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "a rule needs from or ports"),
        ({"from": [], "ports": []}, "a rule needs from or ports"),
        ({"from": [{}]}, "a peer needs either ipBlock"),
        ({"from": [{"ipBlock": {"cidr": "1.2.3.4/40"}}]}, "cidr"),
        ({"from": [{"ipBlock": {"cidr": "1.2.3.4"}}]}, "must be a CIDR"),
        ({"from": [{"ipBlock": {"cidr": "1.2.3.0/24"}, "podSelector": {}}]}, "a peer needs either ipBlock"),
        ({"ports": [{"port": 0}]}, "ports.0.port"),
        ({"ports": [{"port": 70000}]}, "ports.0.port"),
        ({"ports": [{"port": 9, "endPort": 8}]}, "endPort"),
        ({"ports": [{"endPort": 8}]}, "endPort"),
        ({"ports": [{"port": 1, "protocol": "HTTP"}]}, "protocol"),
        ({"ports": [{"port": "1-2"}]}, "must contain a letter"),
        ({"ports": [{"port": "a--b"}]}, "must not contain '--'"),
        ({"to": []}, "to"),
        ({"from": [{"podSelector": {"matchLabels": {"a": 1}}}]}, "matchLabels"),
    ],
    ids=str,
)
def test_an_invalid_rule_is_an_error_at_the_start(rule, message):
    with pytest.raises(ValidationError) as caught:
        settings(rule)
    assert message in str(caught.value)


def test_rules_are_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("VLLMENDPOINT_ADDITIONAL_INGRESS", json.dumps([MESH]))
    assert Settings(
        _cli_parse_args=["--worker-image=x", "--frontend-image=y"]
    ).options.additional_ingress == (MESH,)
