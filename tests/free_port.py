"""Ports for what the tests start."""

import contextlib
import random
import socket

_given: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, never the same twice.

    Below those that the kernel hands out: what asks it for any port cannot take one in between. Also below
    32768: Dynamo reads its system port as a signed 16-bit number.
    """
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
