"""The worker's own ports answer over IPv4 and IPv6, and Dynamo's hosts follow the pod's address."""

import asyncio
import errno
import json
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import uvicorn

from tests.network_namespace import POD, ipv6_only, network_namespace
from vllmendpoint_worker.process.listening import Network, dynamo_hosts, frontend_hosts, listeners, loopback

REPORT_SERVER = """
import json, socket, sys
from vllmendpoint_worker.serving.state import WorkerState
from vllmendpoint_worker.process.listening import network
from vllmendpoint_worker.serving.report_server import ReportServer
server = ReportServer(WorkerState(worker_version="1", pod_uid=""), sys.argv[1], 0)
server.start()
answered = []
for address in sys.argv[2:]:
    try:
        with socket.create_connection((address, server.port), timeout=5) as connection:
            connection.sendall(b"GET /live HTTP/1.1\\r\\nHost: worker\\r\\nConnection: close\\r\\n\\r\\n")
            if connection.recv(100).startswith(b"HTTP/1.1 200"):
                answered.append(address)
    except OSError:
        pass
server.stop()
found = network()
print(json.dumps([answered, found.dual_stack, found.global_ipv6]))
"""
ALL = ("127.0.0.1", "::1", "10.0.0.5", POD)


@pytest.mark.parametrize(
    ("namespace", "host", "answered", "global_ipv6"),
    [
        (ipv6_only, "", ["127.0.0.1", "::1", POD], True),
        (lambda: ipv6_only(loopback_ipv4=False), "", ["::1", POD], True),
        (ipv6_only, "::", ["127.0.0.1", "::1", POD], True),
        (ipv6_only, "[::]", ["127.0.0.1", "::1", POD], True),
        (ipv6_only, "0.0.0.0", ["127.0.0.1"], True),
        (ipv6_only, POD, [POD], True),
        (lambda: network_namespace("10.0.0.5/24", f"{POD}/64"), "", [*ALL], True),
        (lambda: network_namespace("10.0.0.5/24"), "", ["127.0.0.1", "::1", "10.0.0.5"], False),
        (lambda: network_namespace("10.0.0.5/24", ipv6=False), "", ["127.0.0.1", "10.0.0.5"], False),
    ],
    ids=["ipv6", "no-ipv4-at-all", "::", "[::]", "0.0.0.0", "one", "both", "ipv4", "ipv6-disabled"],
)
def test_the_report_port_answers_over_each_available_family(namespace, host, answered, global_ipv6):
    with namespace() as inside:
        found = json.loads(inside.run(sys.executable, "-c", REPORT_SERVER, host, *ALL))
    assert found[0] == answered
    assert found[2] is global_ipv6
    assert found[1]


FRONTEND_CLIENT = """
import socket
from vllmendpoint_worker.process.listening import frontend_hosts, loopback, network
host = frontend_hosts({}, network())["DYN_HTTP_HOST"]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
with socket.create_server((host, 0), family=family, dualstack_ipv6=":" in host) as server:
    own = loopback(host, network())
    socket.create_connection((own, server.getsockname()[1]), timeout=5).close()
print(host, own)
"""


@pytest.mark.parametrize(
    ("namespace", "expected"),
    [
        (ipv6_only, ":: 127.0.0.1"),
        (lambda: ipv6_only(loopback_ipv4=False), ":: ::1"),
        (lambda: network_namespace("10.0.0.5/24", f"{POD}/64"), ":: 127.0.0.1"),
        (lambda: network_namespace("10.0.0.5/24", ipv6=False), ":: 127.0.0.1"),
    ],
    ids=["ipv6", "no-ipv4-at-all", "both", "ipv6-disabled"],
)
def test_a_frontend_reaches_its_own_http_server(namespace, expected):
    with namespace() as inside:
        assert inside.run(sys.executable, "-c", FRONTEND_CLIENT).strip() == expected


@pytest.mark.parametrize(
    ("environ", "dual_stack", "http_host"),
    [
        ({}, True, "::"),
        ({}, False, "0.0.0.0"),
        ({"POD_IP": "10.0.0.5"}, True, "::"),
        ({"POD_IP": POD}, False, "::"),
        ({"DYN_HTTP_HOST": "127.0.0.1"}, True, None),
    ],
)
def test_the_frontends_http_server_listens_on_each_family(environ, dual_stack, http_host):
    hosts = frontend_hosts(environ, Network(dual_stack, global_ipv6=False))
    assert hosts.pop("DYN_HTTP_HOST", None) == http_host
    assert hosts == dynamo_hosts(environ, Network(dual_stack, global_ipv6=False))


@pytest.mark.parametrize(
    ("host", "dual_stack", "own"),
    [
        ("0.0.0.0", True, "127.0.0.1"),
        ("", True, "127.0.0.1"),
        ("::", False, "::1"),
        ("[::]", True, "127.0.0.1"),
        ("10.0.0.5", True, "10.0.0.5"),
        (f"[{POD}]", True, POD),
    ],
)
def test_the_own_address_follows_the_listening_address(host, dual_stack, own):
    assert loopback(host, Network(dual_stack, global_ipv6=False)) == own


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def bound(opened: ExitStack, host: str, port: int = 0) -> list[tuple[str, int]]:
    found = [opened.enter_context(each).getsockname()[:2] for each in listeners(host, port)]
    assert len({port for _, port in found}) == 1
    return found


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("", ["0.0.0.0", "::"]),
        ("::", ["0.0.0.0", "::"]),
        ("[::]", ["0.0.0.0", "::"]),
        (" ", ["0.0.0.0", "::"]),
        ("0.0.0.0", ["0.0.0.0"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("[::1]", ["::1"]),
    ],
)
def test_a_host_resolves_to_addresses(opened, host, addresses):
    assert [address for address, _ in bound(opened, host)] == addresses


def test_a_name_resolves_to_all_its_addresses(opened):
    assert {address for address, _ in bound(opened, "localhost")} <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_a_family_that_the_kernel_lacks_is_skipped(opened, monkeypatch, code):
    class Ipv4Socket(socket.socket):
        def bind(self, address):
            if ":" in address[0]:
                raise OSError(code, "not here")
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Ipv4Socket)
    assert [address for address, _ in bound(opened, "")] == ["0.0.0.0"]
    with pytest.raises(OSError, match="not here"):
        listeners("::1", 0)


@pytest.mark.parametrize(("taken", "host"), [("0.0.0.0", ""), ("::", ""), ("::1", "::")])
def test_a_port_in_use_in_one_family_is_an_error(opened, taken, host):
    with socket.socket(socket.AF_INET6 if ":" in taken else socket.AF_INET) as other:
        if ":" in taken:
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind((taken, 0))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            listeners(host, other.getsockname()[1])


async def test_a_client_over_ipv4_keeps_its_plain_address():
    """Handlers see the client's address, and uvicorn trusts the headers of a proxy on 127.0.0.1."""
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["client"][0])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    sockets = listeners("", 0)
    port = sockets[0].getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve(sockets=sockets))
    for address in ("127.0.0.1", "::1"):
        while True:
            try:
                reader, writer = await asyncio.open_connection(address, port)
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()
    server.should_exit = True
    await serving
    assert seen == ["127.0.0.1", "::1"]


DUAL, IPV4_ONLY, NO_IPV6 = Network(True, True), Network(True, False), Network(False, False)


@pytest.mark.parametrize(
    ("environ", "network", "system"),
    [
        ({}, DUAL, "::"),
        ({}, IPV4_ONLY, "::"),
        ({}, NO_IPV6, "0.0.0.0"),
        ({"POD_IP": "10.0.0.5"}, IPV4_ONLY, "::"),
        ({"POD_IP": "10.0.0.5"}, NO_IPV6, "0.0.0.0"),
        # Dynamo would publish the IPv6 address, which frontends without IPv6 cannot reach.
        ({"POD_IP": "10.0.0.5"}, DUAL, "0.0.0.0"),
        ({"POD_IP": "10.0.0.5"}, Network(False, True), "0.0.0.0"),
        ({"DYN_SYSTEM_HOST": ""}, DUAL, "::"),
    ],
)
def test_dynamos_hosts_in_a_pod_with_an_ipv4_address(environ, network, system):
    assert dynamo_hosts(environ, network) == {"DYN_SYSTEM_HOST": system}


@pytest.mark.parametrize("network", [DUAL, Network(False, True)])
def test_dynamos_hosts_in_a_pod_with_an_ipv6_address(network):
    planes = ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST")
    expected = {"DYN_SYSTEM_HOST": "::", **dict.fromkeys(planes, POD)}
    assert dynamo_hosts({"POD_IP": POD}, network) == expected


def test_variables_that_are_set_are_not_changed():
    own = {"DYN_SYSTEM_HOST": "127.0.0.1", "DYN_TCP_RPC_HOST": "eth1", "POD_IP": POD}
    assert dynamo_hosts(own, DUAL).keys() == {"DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST"}
