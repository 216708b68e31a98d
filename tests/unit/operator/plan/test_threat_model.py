"""The ports in SECURITY.md are those of the NetworkPolicies."""

from pathlib import Path

SECURITY = Path(__file__).parents[4] / "SECURITY.md"


def documented():
    rows = SECURITY.read_text().split("<!-- ports:", 1)[1].split("<!-- /ports -->", 1)[0].splitlines()[3:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    return {(pod, ports, clients.removesuffix(" (*policy*)")) for pod, ports, _, clients in cells if ports}


def opened(policy, pod):
    """(pod, ports, clients) of each rule."""
    for rule in policy["spec"]["ingress"]:
        match rule.get("from"):
            case None:
                clients = "all"
            case [{"namespaceSelector": _, "podSelector": _}]:
                clients = "operator, kubelet"
            case [{"podSelector": _}]:
                clients = "the endpoint's pods"
        for port in rule["ports"]:
            last = f"-{port['endPort']}" if "endPort" in port else ""
            yield pod, f"{port['port']}{last}", clients


def test_the_threat_model_has_every_rule_of_the_network_policies(make_endpoint, make_plan, child):
    planned = make_plan(make_endpoint())
    rules = {
        *opened(child(planned, "NetworkPolicy", "smollm-workers"), "worker"),
        *opened(child(planned, "NetworkPolicy", "smollm-frontend"), "frontend"),
    }
    assert rules == documented()
