"""A proxy in front of the API server that injects faults: errors, lost responses, delays, cut watches."""

import asyncio
import json
import re
import ssl
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final

import aiohttp
import yaml
from aiohttp import web
from yarl import URL

from tests.integration.api_server import Api

_HOP: Final = {"connection", "content-length", "date", "host", "server", "transfer-encoding", "authorization"}


def stream_error(code: int) -> bytes:
    """One line of a watch stream with an ERROR event."""
    return json.dumps(
        {"type": "ERROR", "object": {"kind": "Status", "code": code, "message": "injected"}}
    ).encode()


@dataclass
class Fault:
    times: int = 1
    """Requests that it still matches."""
    method: str = ".*"
    path: str = ""
    """A regular expression that is searched in path and query."""
    seconds: float = 0.0
    """Delay in seconds before the request is handled."""
    status: int = 0
    """Status of the response that replaces the API server's; 0 forwards the request."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b'{"kind": "Status", "message": "injected"}'
    lost: bool = False
    """Forward the request, and drop the response."""

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and bool(re.fullmatch(self.method, method) and re.search(self.path, path))


@dataclass(frozen=True)
class Passed:
    """One request that the proxy received."""

    time: float
    method: str
    path: str


class FaultProxy:
    """``kubeconfig`` points at the proxy. The first matching fault applies; other requests pass unchanged."""

    def __init__(self, api: Api, folder: Path) -> None:
        config = yaml.safe_load(api.kubeconfig.read_text())
        self._server = config["clusters"][0]["cluster"]["server"]
        files = {
            name: str(api.kubeconfig.parent / f"test-{name}-data")
            for name in ("certificate-authority", "client-certificate", "client-key")
        }
        self._ssl = ssl.create_default_context(cafile=files["certificate-authority"])
        self._ssl.load_cert_chain(files["client-certificate"], files["client-key"])
        self.passed: list[Passed] = []
        self._faults: list[Fault] = []
        self._watches: dict[asyncio.Task[Any], web.StreamResponse] = {}
        self._flows = True
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        port = self._call(self._open()).result(10)
        config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{port}"}
        config["users"][0]["user"] = {"token": "the proxy authenticates with a client certificate"}
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def close(self) -> None:
        self._call(self._close()).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def inject(self, **fault: Any) -> Fault:
        """Add a fault and return it. Its ``times`` counts down with every request that fails."""
        self._faults.append(Fault(**fault))
        return self._faults[-1]

    def clear(self) -> None:
        self._faults.clear()

    def freeze_watches(self) -> None:
        """Drop all watch events until :meth:`end_watches`."""
        self._flows = False

    def end_watches(self, line: bytes | None = None) -> None:
        """End every watch: regularly after ``line``, or by closing the connection. New watches work again."""
        self._call(self._end_watches(line)).result(10)

    def _call(self, coroutine: Any) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _open(self) -> int:
        self._connector = aiohttp.TCPConnector(ssl=self._ssl, limit=0)
        self._session = aiohttp.ClientSession(
            connector=self._connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self._connector.close(abort_ssl=True)
        await self._session.close()
        await asyncio.sleep(0.1)  # aiohttp closes the transports in later loop iterations

    async def _end_watches(self, line: bytes | None) -> None:
        for task, response in list(self._watches.items()):
            if line is not None:
                await response.write(line + b"\n")
                await response.write_eof()
            task.cancel()
        self._flows = True

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        path = str(request.rel_url)
        self.passed.append(Passed(monotonic(), request.method, path))
        fault = next((f for f in self._faults if f.matches(request.method, path)), Fault())
        fault.times -= 1
        await asyncio.sleep(fault.seconds)
        if fault.status:
            return web.Response(
                status=fault.status,
                headers=fault.headers,
                body=fault.body,
                content_type="application/json",
            )
        url = URL(self._server + path, encoded=True)
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        async with self._session.request(request.method, url, data=body or None, headers=headers) as upstream:
            if fault.lost:
                await upstream.read()
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            kept = {name: value for name, value in upstream.headers.items() if name.lower() not in _HOP}
            response = web.StreamResponse(status=upstream.status, headers=kept)
            await response.prepare(request)
            await self._stream(request, upstream, response)
            return response

    async def _stream(
        self, request: web.Request, upstream: aiohttp.ClientResponse, response: web.StreamResponse
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        if request.query.get("watch") == "true":
            self._watches[task] = response
        try:
            async for chunk in upstream.content.iter_any():
                if self._flows or task not in self._watches:
                    await response.write(chunk)
        finally:
            self._watches.pop(task, None)
        await response.write_eof()
