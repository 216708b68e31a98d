"""The addresses that the worker listens on, and those that Dynamo uses: IPv4 and IPv6.

Dynamo listens on one address per port and publishes an address of the same family. Its addresses therefore
depend on the pod: see :func:`dynamo_hosts`.
"""

import contextlib
import errno
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Network", "dynamo_hosts", "frontend_hosts", "listeners", "loopback", "network"]

ANY_IPV4: Final = "0.0.0.0"
ANY_IPV6: Final = "::"
_LOOPBACK_IPV4: Final = "127.0.0.1"
_LOOPBACK_IPV6: Final = "::1"

_NO_SUCH_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL})
_ATTEMPTS: Final = 10
_INTERFACES: Final = Path("/proc/net/if_inet6")
_GLOBAL: Final = "00"
"""Scope in that file of addresses that other machines can reach, including private ones (fc00::/7)."""

_ADVERTISED_HOSTS: Final = ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST")
"""Addresses that Dynamo's request, response and event planes publish."""

_HTTP_HOST: Final = "DYN_HTTP_HOST"


@dataclass(frozen=True, slots=True)
class Network:
    """Properties of the pod's network."""

    dual_stack: bool
    """A socket on ``::`` also accepts IPv4 without a socket option, because Dynamo sets none."""
    global_ipv6: bool
    """An interface has an IPv6 address that other machines can reach."""
    loopback_ipv4: bool = True
    """127.0.0.1 exists. A pod without IPv4 may not have it."""

    @property
    def loopback(self) -> str:
        """An address that only this pod can reach."""
        return _LOOPBACK_IPV4 if self.loopback_ipv4 else _LOOPBACK_IPV6


def network() -> Network:
    """Detect the properties with a socket and ``/proc``."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind((ANY_IPV6, 0))
            dual_stack = not probe.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    except OSError:
        dual_stack = False
    try:
        lines = [line.split() for line in _INTERFACES.read_text().splitlines()]
    except OSError:  # a kernel without IPv6
        lines = []
    global_ipv6 = any(len(line) == 6 and line[3] == _GLOBAL for line in lines)
    return Network(dual_stack, global_ipv6, _is_local(_LOOPBACK_IPV4))


def _is_local(address: str) -> bool:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def dynamo_hosts(environ: Mapping[str, str], network: Network) -> dict[str, str]:
    """The variables to add so that Dynamo serves the pod's address. Pure. Variables that are set are kept.

    In a pod with an IPv6 address, Dynamo would prefer an IPv4 address, which may be valid only on the node
    (as on Amazon EKS). In a pod with an IPv4 address, the system port listens on ``::`` unless the pod also
    has an IPv6 address: Dynamo would publish that one, and other pods may have no IPv6.
    """
    address = environ.get("POD_IP", "").strip()
    hosts: dict[str, str] = {}
    if ":" in address:
        hosts = {"DYN_SYSTEM_HOST": ANY_IPV6, **dict.fromkeys(_ADVERTISED_HOSTS, address)}
    elif not network.dual_stack or (address and network.global_ipv6):
        hosts = {"DYN_SYSTEM_HOST": ANY_IPV4}
    else:
        hosts = {"DYN_SYSTEM_HOST": ANY_IPV6}
    return {name: host for name, host in hosts.items() if not environ.get(name, "").strip()}


def frontend_hosts(environ: Mapping[str, str], network: Network) -> dict[str, str]:
    """As :func:`dynamo_hosts`, for a frontend. Its HTTP server listens on all addresses of both families."""
    both = network.dual_stack or ":" in environ.get("POD_IP", "")
    hosts = {} if environ.get(_HTTP_HOST, "").strip() else {_HTTP_HOST: ANY_IPV6 if both else ANY_IPV4}
    return dynamo_hosts(environ, network) | hosts


def loopback(host: str, network: Network) -> str:
    """The address by which a process on this machine reaches a server that listens on ``host``."""
    bare = host.strip().removeprefix("[").removesuffix("]")
    if bare == ANY_IPV6:
        return _LOOPBACK_IPV4 if network.dual_stack and network.loopback_ipv4 else _LOOPBACK_IPV6
    return _LOOPBACK_IPV4 if bare in ("", ANY_IPV4) else bare


def listeners(host: str, port: int) -> list[socket.socket]:
    """Bound sockets that do not listen yet: all addresses of both families if ``host`` is empty or ``::``.

    There is one socket per family instead of one for both, through which an IPv4 client would have the
    address ``::ffff:10.0.0.1`` in handlers and for uvicorn's trusted proxies. A family that the kernel lacks
    is skipped. Port 0: one free port for all sockets. Raises OSError.
    """
    bare = host.strip().removeprefix("[").removesuffix("]")
    addresses = [ANY_IPV4, ANY_IPV6] if bare in ("", ANY_IPV6) else _resolve(bare)
    for attempt in range(_ATTEMPTS):
        try:
            return _bind_all(addresses, port)
        except OSError as error:
            in_use = not port and len(addresses) > 1 and error.errno == errno.EADDRINUSE
            if not in_use or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _resolve(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _bind_all(addresses: list[str], port: int) -> list[socket.socket]:
    missing: OSError | None = None
    with contextlib.ExitStack() as opened:
        sockets: list[socket.socket] = []
        for address in addresses:
            try:
                listener = _bind(address, port)
            except OSError as error:
                if error.errno not in _NO_SUCH_FAMILY:
                    raise
                missing = error
                continue
            sockets.append(opened.enter_context(listener))
            port = listener.getsockname()[1]
        if not sockets and missing is not None:
            raise missing
        opened.pop_all()
    return sockets


def _bind(address: str, port: int) -> socket.socket:
    ipv6 = ":" in address
    listener = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ipv6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
    except OSError:
        listener.close()
        raise
    return listener
