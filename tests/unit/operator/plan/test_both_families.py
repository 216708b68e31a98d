"""The ports of the operator respond over IPv4 and IPv6."""

import json
import sys

import pytest

from tests.network_namespace import POD, ipv6_only, network_namespace

OPERATOR = """
import asyncio, json, sys
from vllmendpoint_operator.http_server import serve
from vllmendpoint_operator.metrics import Metrics

async def responds(address, port, path):
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 5)
    except OSError:
        return False
    writer.write(f"GET {path} HTTP/1.1\\r\\nHost: operator\\r\\nConnection: close\\r\\n\\r\\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.startswith(b"HTTP/1.1 200")

async def main():
    ports = (8080, "/metrics"), (8081, "/healthz"), (8081, "/readyz")
    async with serve(
        Metrics(), lambda: True, address=sys.argv[1], metrics_port=8080, health_port=8081
    ):
        found = [
            address for address in sys.argv[2:] if all([await responds(address, *port) for port in ports])
        ]
    print(json.dumps(found))

asyncio.run(main())
"""
ALL = ("127.0.0.1", "::1", "10.0.0.5", POD)


@pytest.mark.parametrize(
    ("namespace", "address", "answered"),
    [
        (ipv6_only, "", ["127.0.0.1", "::1", POD]),
        (lambda: ipv6_only(loopback_ipv4=False), "", ["::1", POD]),
        (ipv6_only, "::", ["127.0.0.1", "::1", POD]),
        (ipv6_only, "[::1]", ["::1"]),
        (ipv6_only, "0.0.0.0", ["127.0.0.1"]),
        (lambda: network_namespace("10.0.0.5/24", f"{POD}/64"), "", [*ALL]),
        (lambda: network_namespace("10.0.0.5/24", ipv6=False), "", ["127.0.0.1", "10.0.0.5"]),
    ],
    ids=["ipv6", "no-ipv4-at-all", "::", "one", "0.0.0.0", "both", "ipv6-disabled"],
)
def test_the_operators_ports_respond_on_each_ip_family(namespace, address, answered):
    with namespace() as inside:
        assert json.loads(inside.run(sys.executable, "-c", OPERATOR, address, *ALL)) == answered


def test_no_host_is_pinned_in_the_pod_templates(make_endpoint, make_plan, child):
    """Nodes may differ in IPv6, so the pod detects it."""
    planned = make_plan(make_endpoint())
    for part in ("workers", "frontend"):
        pod = child(planned, "Deployment", f"smollm-{part}")["spec"]["template"]["spec"]
        for container in pod["containers"]:
            assert not [item for item in container["env"] if item["name"].endswith("_HOST")]
