"""A report as a worker sends it, and a worker's report port for the tests of the streams."""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Self

from aiohttp import web

from vllmendpoint_operator.reports.state import ReportTarget

OWNER = ("ns", "e")
TARGET = ReportTarget("u", "127.0.0.1", OWNER)
SINCE = "2026-01-01T11:50:00+00:00"
WIRE: dict[str, Any] = {
    "workerVersion": "1",
    "podUid": "u",
    "time": SINCE,
    "stage": {"name": "Serving", "since": SINCE},
    "configuration": {},
    "healthCheck": {
        "source": "Spec",
        "payload": {"prompt": "1"},
        "payloadDigest": "d",
        "periodSeconds": 30,
        "timeoutSeconds": 5,
        "failureThreshold": 2,
        "successThreshold": 1,
        "restartAfterSeconds": 600,
    },
    "verdict": {"state": "Generating", "since": SINCE},
    "lastProbe": {"time": SINCE, "latencyMilliseconds": 1.5, "tokens": 1, "outcome": "Complete"},
}


def changed(path: str, value: object, wire: dict[str, Any] = WIRE) -> dict[str, Any]:
    """A copy of ``wire`` with ``value`` at ``path``, for instance ``verdict.state``."""
    wire = json.loads(json.dumps(wire))
    *parents, last = path.split(".")
    at = wire
    for parent in parents:
        at = at[parent]
    at[last] = value
    return wire


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class Worker:
    """A worker's report port: sends ``greeting``, then what is put into ``lines``; None ends the stream."""

    def __init__(self) -> None:
        self.greeting = b""
        self.lines: asyncio.Queue[bytes | dict[str, Any] | None] = asyncio.Queue()
        self.connections = self.disconnections = 0

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes([web.get("/status", self.stream)])
        self.runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.port = self.runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.cleanup()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        self.connections += 1
        try:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(self.greeting)
            while (line := await self.lines.get()) is not None:
                await response.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
        finally:
            self.disconnections += 1
        return response
