"""Network namespaces with given addresses. Each one is removed at the end of its ``with``.

They require the programs ip, unshare and nsenter, and root or user namespaces. Without one of these the test
fails, because a skipped test would prove nothing.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

POD = "fd00:1::5"
"""The address of the simulated pod of :func:`ipv6_only`."""

_USER = [] if os.geteuid() == 0 else ["--user"]
_PROGRAMS = ("ip", "unshare", "nsenter")
_CREATE = """
set -e
ip link set lo up
ip link add eth0 type veth peer name peer0
ip link set peer0 up
ip link set eth0 up
"""
_HOLD = "echo created; exec cat"
_REQUEST = """
import json, sys, urllib.error, urllib.request
url, data = json.load(sys.stdin)
headers = {"content-type": "application/json"}
request = urllib.request.Request(url, data and json.dumps(data).encode(), headers)
try:
    with urllib.request.urlopen(request, timeout=20) as answer:
        print(json.dumps([answer.status, answer.read().decode()]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, error.read().decode()]))
except OSError as error:
    print(json.dumps([0, str(error)]))
"""


class Namespace(NamedTuple):
    """``inside`` is the prefix of a command that runs in the namespace; it executes the command in place."""

    inside: list[str]

    def run(self, *command: str, text: str = "", environ: dict[str, str] | None = None) -> str:
        """Run a command that must succeed; returns its standard output."""
        done = subprocess.run(
            [*self.inside, *command],
            check=False,
            input=text,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def request(self, address: str, port: int, path: str, data: Any = None) -> tuple[int, str]:
        """Status and body of a response; status 0 without a response."""
        host = f"[{address}]" if ":" in address else address
        question = json.dumps([f"http://{host}:{port}{path}", data])
        status, body = json.loads(self.run(sys.executable, "-S", "-c", _REQUEST, text=question))
        return status, body


@contextlib.contextmanager
def network_namespace(*addresses: str, loopback_ipv4: bool = True, ipv6: bool = True) -> Iterator[Namespace]:
    """``addresses`` of eth0, with their prefix lengths. ``ipv6``: False disables IPv6."""
    if missing := [name for name in _PROGRAMS if shutil.which(name) is None]:
        pytest.fail(f"a network namespace needs {', '.join(missing)} (packages iproute2 and util-linux)")
    commands = [_CREATE]
    if not ipv6:
        commands.append("for file in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 > $file; done")
    if not loopback_ipv4:
        commands.append("ip address delete 127.0.0.1/8 dev lo")
    commands += [
        f"ip address add {address} dev eth0{' nodad' if ':' in address else ''}" for address in addresses
    ]
    mapped = ["--map-root-user"] if _USER else []
    holder = subprocess.Popen(
        ["unshare", *_USER, *mapped, "--net", "sh", "-c", "\n".join([*commands, _HOLD])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    try:
        if holder.stdout.readline() != "created\n":
            _, errors = holder.communicate(timeout=20)
            pytest.fail(f"no network namespace can be created here (root or user namespaces): {errors}")
        credentials = ["--preserve-credentials"] if _USER else []
        yield Namespace(["nsenter", f"--target={holder.pid}", *_USER, *credentials, "--net", "--"])
    finally:
        holder.kill()
        holder.communicate(timeout=20)


def ipv6_only(*, loopback_ipv4: bool = True) -> contextlib.AbstractContextManager[Namespace]:
    """As in a pod of an IPv6-only cluster, whose loopback interface usually has 127.0.0.1 as well."""
    return network_namespace(f"{POD}/64", loopback_ipv4=loopback_ipv4)
