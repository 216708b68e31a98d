"""The ports of the operator and of Dynamo's frontend respond over IPv4 and IPv6."""

import json
import os
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
HOSTS = ("DYN_HTTP_HOST", "DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST")
FRONTEND = f"""
import json, os, sys
print(json.dumps([sys.argv[1:], [os.environ.get(name) for name in {HOSTS!r}]]))
"""
NO_IPV6 = (
    "AF_INET6 = 10\ndef socket(family):\n    raise OSError(97, 'Address family not supported by protocol')\n"
)
"""Python's socket module as on a kernel that was started with ipv6.disable=1."""


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


@pytest.fixture
def started(make_endpoint, make_plan, child, tmp_path):
    """Runs the frontend's rendered command; returns the environment of Dynamo's frontend."""
    planned = make_plan(make_endpoint())
    (main,) = child(planned, "Deployment", "smollm-frontend")["spec"]["template"]["spec"]["containers"]
    assert "POD_IP" in [item["name"] for item in main["env"]]
    package = tmp_path / "path" / "dynamo"
    package.mkdir(parents=True)
    (package / "frontend.py").write_text(FRONTEND)
    command = [sys.executable, *main["command"][1:], *main["args"]]

    def run(inside, directory, **environ):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_", "POD_"))}
        found = kept | {"PYTHONPATH": str(package.parent)} | environ
        arguments, hosts = json.loads(inside.run("env", "-C", str(directory), *command, environ=found))
        assert arguments == ["--http-port", "8000"]
        return hosts

    return run


@pytest.mark.parametrize(
    ("environ", "hosts"),
    [
        ({"POD_IP": POD}, ["::", POD, POD, POD]),
        ({"POD_IP": "10.0.0.5"}, ["::", None, None, None]),
        ({}, ["::", None, None, None]),
        ({"POD_IP": POD, "DYN_HTTP_HOST": "::1", "DYN_TCP_RPC_HOST": "eth1"}, ["::1", "eth1", POD, POD]),
        ({"DYN_HTTP_HOST": ""}, ["::", None, None, None]),
    ],
)
def test_the_frontend_listens_on_both_ip_families(started, tmp_path, environ, hosts):
    with ipv6_only() as inside:
        assert started(inside, tmp_path, **environ) == hosts


def test_the_frontend_starts_without_ipv6_in_the_kernel(started, tmp_path):
    (tmp_path / "socket.py").write_text(NO_IPV6)
    with network_namespace("10.0.0.5/24", ipv6=False) as inside:
        assert started(inside, tmp_path, POD_IP="10.0.0.5") == ["0.0.0.0", None, None, None]


def test_no_host_is_pinned_in_the_pod_templates(make_endpoint, make_plan, child):
    """Nodes may differ in IPv6, so the pod detects it."""
    planned = make_plan(make_endpoint())
    for part in ("workers", "frontend"):
        pod = child(planned, "Deployment", f"smollm-{part}")["spec"]["template"]["spec"]
        for container in pod["containers"]:
            assert not [item for item in container["env"] if item["name"].endswith("_HOST")]
