"""Serves ``/metrics``, ``/healthz`` and ``/readyz``."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from .metrics import Metrics

__all__ = ["serve"]


@asynccontextmanager
async def serve(
    metrics: Metrics, is_ready: Callable[[], bool], *, address: str, metrics_port: int, health_port: int
) -> AsyncIterator[tuple[int, int]]:
    """Serve the metrics on one port and the health endpoints on another, until the context ends.

    Yields both ports, because 0 selects a free port. ``is_ready`` decides the answer of ``/readyz``. Raises
    OSError if the address or a port cannot be used.
    """
    async with AsyncExitStack() as stack:

        async def listen(port: int, routes: list[web.RouteDef]) -> int:
            app = web.Application()
            app.add_routes(routes)
            runner = web.AppRunner(app, access_log=None)
            stack.push_async_callback(runner.cleanup)
            await runner.setup()
            await web.SockSite(runner, _listener(address, port)).start()
            return int(runner.addresses[0][1])

        yield (
            await listen(metrics_port, _metrics_routes(metrics)),
            await listen(health_port, _health_routes(is_ready)),
        )


def _metrics_routes(metrics: Metrics) -> list[web.RouteDef]:
    async def exposition(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE_LATEST})
        await response.prepare(request)
        for chunk in metrics.exposition():
            await response.write(chunk)
            await asyncio.sleep(0)  # rendering 1,000 endpoints without a pause would delay the lease renewal
        return response

    return [web.get("/metrics", exposition)]


def _health_routes(is_ready: Callable[[], bool]) -> list[web.RouteDef]:
    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if is_ready():
            return web.Response(text="ok\n")
        return web.Response(
            status=503, text="No watched namespace is reconciled yet. The log names the cause.\n"
        )

    return [web.get("/healthz", healthz), web.get("/readyz", readyz)]


def _listener(address: str, port: int) -> socket.socket:
    """Listen on ``address``; empty or ``::`` means all IPv4 and IPv6 addresses. Raises OSError."""
    bare = address.strip().removeprefix("[").removesuffix("]")
    if bare not in ("", "::"):
        family = socket.AF_INET6 if ":" in bare else socket.AF_INET
        return socket.create_server((bare, port), family=family)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
