"""A ping without network, with the scope and the messages that the HTTP server would create.

A handler cannot distinguish it from a request over the network.
"""

import asyncio
import ipaddress
import random
from collections.abc import Mapping
from typing import Any

__all__ = ["Address", "InternalRequest"]

Address = tuple[str, int]
"""Host and port that the server listens on."""


class InternalRequest:
    """``GET /ping`` to the server that listens on ``address``. ``status`` is set when the response begins."""

    def __init__(self, address: Address) -> None:
        self.scope = _scope(*address)
        self.status: int | None = None
        self._body_is_read = False
        self._answered = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if not self._body_is_read:
            self._body_is_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._answered.wait()  # until then the client stays connected
        return {"type": "http.disconnect"}

    async def send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._answered.set()


def _scope(host: str, port: int) -> dict[str, Any]:
    """The scope that uvicorn creates for ``curl http://HOST:PORT/ping`` on the same machine."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    shown = f"[{address}]" if address.version == 6 else str(address)
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": (str(address), port),
        "client": (str(address), random.randint(32768, 60999)),
        "scheme": "http",
        "root_path": "",
        "headers": [
            (b"host", f"{shown}:{port}".encode()),
            (b"user-agent", b"vllmendpoint-worker"),
            (b"accept", b"*/*"),
        ],
        "state": {},
        "method": "GET",
        "path": "/ping",
        "raw_path": b"/ping",
        "query_string": b"",
    }
