"""A ping handler cannot tell the worker's own ping from one over the network."""

import asyncio
import socket
from typing import Any

import httpx
import pytest
import uvicorn

from tests.unit.worker.handlers_served import Served
from vllmendpoint_api import PingState
from vllmendpoint_worker.handlers import PingProber

SCRIPT = """
import asyncio, json
from fastapi.responses import JSONResponse
from starlette.background import BackgroundTask

seen = []

async def custom_sagemaker_ping_handler(request):
    scope = {name: value for name, value in request.scope.items()}
    shown = {
        "url": str(request.url),
        "base_url": str(request.base_url),
        "url_for": str(request.url_for("custom_sagemaker_ping_handler")),
        "method": request.method,
        "body": (await request.body()).decode(),
        "query": dict(request.query_params),
        "cookies": request.cookies,
        "state": dict(request.state._state),
        "keys": sorted(scope),
        "types": {name: type(value).__name__ for name, value in scope.items() if name != "endpoint"},
        "headers": {name: value for name, value in request.headers.items() if name != "user-agent"},
        "header_types": sorted({type(part).__name__ for header in scope["headers"] for part in header}),
        "server": scope["server"],
        "client": [request.client.host, 1024 < request.client.port < 65536],
        "versions": [scope["asgi"], scope["http_version"], scope["scheme"], scope["root_path"]],
        "paths": [scope["path"], scope["raw_path"].decode(), scope["query_string"].decode()],
        "disconnected": await request.is_disconnected(),
    }
    async def after():
        shown["after"] = (await request.receive())["type"]
        seen.append(shown)
    return JSONResponse({}, background=BackgroundTask(after))
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_the_internal_ping_equals_one_over_the_network(served: Served, host: str, http: Any) -> None:
    served.script(SCRIPT)
    await served.start()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.bind((host, 0))
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(served.manager, lifespan="off", log_config=None, http=http))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            address = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
            async with httpx.AsyncClient(trust_env=False) as client:
                del client.headers["accept-encoding"], client.headers["connection"]
                assert (await client.get(f"http://{address}:{port}/ping")).status_code == 200
            watch = PingProber(
                served.manager,
                address=lambda: listener.getsockname()[:2],
                timeout=lambda: 5.0,
                thresholds=lambda: (1, 1),
                on_change=lambda report: None,
            )
            await watch.run_probe()
        finally:
            server.should_exit = True
            await serving
    assert watch.report is not None
    assert watch.report.state == PingState.PASSING, watch.report.message
    loaded = served.manager.current
    assert loaded is not None
    seen = loaded.loaded.handlers["/ping"].function.__globals__["seen"]  # type: ignore[index]
    assert len(seen) == 2
    real, internal = seen
    assert internal == real
    assert internal["url"] == f"http://{address}:{port}/ping"
