"""The clients' connections to Dynamo's HTTP server, which runs in this process.

Dynamo cannot close a kept connection after a response, so that its client would send the next request on it
during the shutdown and get 503. This module closes the connections between two requests.
"""

import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

__all__ = ["close_idle_connections"]

_ESTABLISHED: Final = 1
_LAST_DATA_SENT: Final = 44
_LAST_DATA_RECEIVED: Final = 52
"""Offsets in ``struct tcp_info`` of Linux; both are milliseconds that have passed."""
_TCP_INFO_BYTES: Final = 104


def close_idle_connections(port: int) -> int:
    """Close the clients' connections to ``port``, if all of them are between two requests.

    The caller knows that no request is in flight. Returns the number of connections that have data of a
    client which is not answered yet; then none is closed. Connections from this machine are ignored.
    """
    connections = list(_connections(port))
    try:
        busy = sum(_has_unanswered_data(connection) for connection in connections)
        if not busy:
            for connection in connections:
                with suppress(OSError):  # the client has closed it
                    connection.shutdown(socket.SHUT_RDWR)
        return busy
    finally:
        for connection in connections:
            connection.close()


def _connections(port: int) -> Iterator[socket.socket]:
    """Duplicates of this process's established sockets at the local ``port``."""
    for number in _sockets().values():
        with suppress(OSError):  # closed meanwhile
            connection = socket.socket(fileno=os.dup(number))
            if _is_client(connection, port):
                yield connection
            else:
                connection.close()


def _sockets() -> dict[str, int]:
    """This process's sockets: inode -> file descriptor."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            if (target := str(entry.readlink())).startswith("socket:"):
                found[target] = int(entry.name)
    return found


def _is_client(connection: socket.socket, port: int) -> bool:
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
        return False
    try:
        local, peer = connection.getsockname(), connection.getpeername()
    except OSError:  # it listens
        return False
    return local[1] == port and _is_remote(peer[0])


def _is_remote(address: str) -> bool:
    return not ip_address(address.removeprefix("::ffff:")).is_loopback


def _has_unanswered_data(connection: socket.socket) -> bool:
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        unread = struct.unpack("i", fcntl.ioctl(connection, termios.FIONREAD, bytes(4)))[0]
    except OSError:  # closed meanwhile
        return False
    if info[0] != _ESTABLISHED:
        return False
    sent, received = (
        struct.unpack_from("I", info, offset)[0] for offset in (_LAST_DATA_SENT, _LAST_DATA_RECEIVED)
    )
    return bool(unread) or received < sent
