"""Custom handlers without an engine: the resolver of SageMaker, our loading and replacement, and FastAPI."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from vllmendpoint_api import HandlerError, HandlerSettings, Problem, script_digest
from vllmendpoint_worker.config.handler_config import read_handler_config
from vllmendpoint_worker.errors import ConfigurationRejectedError
from vllmendpoint_worker.handlers import HandlerManager

GUIDE = Path(__file__).parents[2] / "guide"
PING = "CUSTOM_FASTAPI_PING_HANDLER"
INVOCATIONS = "CUSTOM_FASTAPI_INVOCATION_HANDLER"
INVOCATION_HEAD = "async def custom_sagemaker_invocation_handler(request):\n"
MIDDLEWARE = """
from fastapi import Response
from fastapi.responses import JSONResponse
import model_hosting_container_standards.sagemaker as standards
from model_hosting_container_standards.common.fastapi.middleware import (
    custom_middleware, input_formatter, output_formatter,
)

async def custom_sagemaker_invocation_handler(request):
    return {"seen": request.headers.get("x-seen", ""), "body": await request.json()}

async def pre(request):
    request.scope["headers"].append((b"x-seen", b"pre"))
    return request

async def post(response):
    response.headers["x-post"] = "post"
    return response

async def throttle(request, call_next):
    if request.headers.get("x-slow"):
        return JSONResponse({"error": "slow down"}, status_code=429)
    return await call_next(request)
"""


async def blame_the_client(request: Request, error: Exception) -> Response:
    """Answers exceptions of Python in the way of vLLM."""
    return JSONResponse({"error": {"message": str(error), "code": 400}}, status_code=400)


class Served:
    """Two routes in place of the app of vLLM, with our handlers in front of them."""

    def __init__(self, folder: Path, environ: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.settings_dir = folder.parent / "settings"
        self.settings_dir.mkdir(exist_ok=True)
        self.environ = {"SAGEMAKER_MODEL_PATH": str(folder)} | (environ or {})
        self.settings = HandlerSettings()
        self.changes = 0
        self.manager = HandlerManager(self._changed)
        core = FastAPI()
        core.state.engine_client = "the engine"
        for kind in (ValueError, TypeError, OverflowError, NotImplementedError):
            core.add_exception_handler(kind, blame_the_client)

        async def ping(request: Request) -> Response:
            return Response("vLLM's ping")

        async def invocations(request: Request) -> Response:
            return Response("vLLM's invocations")

        core.add_api_route("/ping", ping, methods=["GET", "POST"])
        core.add_api_route("/invocations", invocations, methods=["POST"])
        core.add_api_route("/v1/models", lambda: "vLLM's models", methods=["GET"])  # on a thread of FastAPI
        self.manager.attach(core)

    def _changed(self) -> None:
        self.changes += 1

    def script(self, text: str, name: str = "model.py") -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def spec(
        self, script: str | None = None, ping: str | None = None, invocations: str | None = None
    ) -> None:
        digest = None
        if script is not None:
            (self.settings_dir / "model.py").write_text(script)
            digest = script_digest(script.encode())
        self.settings = HandlerSettings(script_digest=digest, ping=ping, invocations=invocations)

    def problems(self) -> tuple[Problem, ...]:
        return read_handler_config(self.settings, self.settings_dir, self.environ)[1]

    async def start(self) -> None:
        config, problems = read_handler_config(self.settings, self.settings_dir, self.environ)
        if problems:
            raise ConfigurationRejectedError(problems)
        self.manager.activate(self.manager.bind(await self.manager.load(config)))

    async def rejection(self) -> Problem:
        with pytest.raises(ConfigurationRejectedError) as caught:
            await self.start()
        return caught.value.problems[0]

    def newest_error(self) -> HandlerError:
        error = self.manager.report().last_error
        assert error is not None
        return error

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.manager, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://worker")

    async def request(self, path: str = "/ping", body: Any = None, method: str = "") -> httpx.Response:
        async with self.client() as client:
            return await client.request(method or ("GET" if path == "/ping" else "POST"), path, json=body)
