"""Free ports for the servers of tests."""

import contextlib
import random
import socket

_used: set[int] = set()


def free_port() -> int:
    """A free port of 127.0.0.1, different in each call.

    It is below the kernel's ephemeral ports, so no other process gets it meanwhile, and below 32768, because
    Dynamo reads its system port as a signed 16-bit number.
    """
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            if port not in _used:
                _used.add(port)
                return port
