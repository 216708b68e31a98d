"""A stub of the API server with the requests that kopf needs to watch VLLMEndpoints."""

import asyncio
import json
from typing import Any

from aiohttp import web

from vllmendpoint_api import names

CRDS = "apiextensions.k8s.io"


class ApiStub:
    """``watches``: the lines of each watch. Each watch stays open after its last line."""

    def __init__(self, *watches: list[bytes]) -> None:
        self.watches = list(watches)

    async def __aenter__(self) -> "ApiStub":
        app = web.Application()
        app.router.add_get("/{path:.*}", self._respond)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            return await self._watch(request)
        found: dict[str, Any] = {
            "/api": {"versions": ["v1"]},
            "/api/v1": {"resources": [_resource("namespaces", "Namespace")]},
            "/apis": {"groups": [_group(CRDS, "v1"), _group(names.GROUP, names.VERSION)]},
            f"/apis/{CRDS}/v1": {
                "resources": [_resource("customresourcedefinitions", "CustomResourceDefinition")]
            },
            f"/apis/{names.GROUP}/{names.VERSION}": {
                "resources": [_resource(names.PLURAL, names.KIND, namespaced=True)]
            },
        }
        return web.json_response(found.get(request.path, {"items": [], "metadata": {"resourceVersion": "1"}}))

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for line in self.watches.pop(0) if self.watches else []:
            await response.write(line + b"\n")
        await asyncio.Event().wait()
        return response


def _group(name: str, version: str) -> dict[str, Any]:
    preferred = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [preferred], "preferredVersion": preferred}


def _resource(plural: str, kind: str, *, namespaced: bool = False) -> dict[str, Any]:
    verbs = ["get", "list", "watch", "patch"]
    return {
        "name": plural,
        "singularName": kind.lower(),
        "kind": kind,
        "namespaced": namespaced,
        "verbs": verbs,
    }


def added(name: str, version: int) -> bytes:
    metadata = {"namespace": "ns", "name": name, "uid": name, "resourceVersion": str(version)}
    return json.dumps({"type": "ADDED", "object": {"metadata": metadata}}).encode()


def failed(code: int) -> bytes:
    return json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": code}}).encode()
