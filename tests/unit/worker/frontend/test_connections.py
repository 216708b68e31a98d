"""Connections to the HTTP server are closed between two requests only."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from vllmendpoint_worker.frontend import connections
from vllmendpoint_worker.frontend.connections import close_idle_connections


class Pair(NamedTuple):
    server: socket.socket
    client: socket.socket
    port: int


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """A connection of a client, over loopback, which counts as another machine here."""
    monkeypatch.setattr(connections, "_is_remote", lambda address: True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0] as server:
            client.settimeout(5)
            yield Pair(server, client, port)


def exchange(pair: Pair) -> None:
    pair.client.sendall(b"request")
    assert pair.server.recv(100) == b"request"
    time.sleep(0.02)
    pair.server.sendall(b"response")
    assert pair.client.recv(100) == b"response"


def test_a_connection_between_two_requests_is_closed(pair: Pair) -> None:
    exchange(pair)
    assert close_idle_connections(pair.port) == 0
    assert pair.client.recv(100) == b""


def test_a_connection_with_a_request_that_is_not_read_stays_open(pair: Pair) -> None:
    exchange(pair)
    time.sleep(0.02)
    pair.client.sendall(b"next")
    assert close_idle_connections(pair.port) == 1
    assert pair.server.recv(100) == b"next"
    pair.server.sendall(b"response")
    assert pair.client.recv(100) == b"response"


def test_a_connection_with_a_request_that_is_not_answered_stays_open(pair: Pair) -> None:
    exchange(pair)
    time.sleep(0.02)
    pair.client.sendall(b"next")
    assert pair.server.recv(100) == b"next"
    assert close_idle_connections(pair.port) == 1
    pair.server.sendall(b"response")
    assert pair.client.recv(100) == b"response"


def test_sockets_of_other_families_are_ignored(pair: Pair) -> None:
    exchange(pair)
    one, other = socket.socketpair()
    with one, other, socket.create_server(("::1", 0), family=socket.AF_INET6):
        assert close_idle_connections(pair.port) == 0
    assert pair.client.recv(100) == b""


def test_other_ports_and_connections_of_this_machine_are_ignored(pair: Pair) -> None:
    exchange(pair)
    assert close_idle_connections(pair.port + 1) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "_is_remote", is_remote)
        assert close_idle_connections(pair.port) == 0
    threading.Timer(0.1, pair.server.sendall, (b"still open",)).start()
    assert pair.client.recv(100) == b"still open"


is_remote = connections._is_remote
