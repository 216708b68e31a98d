"""Dynamo's HTTP server for tests, without a network: discovered workers, and how each of them answers."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllmendpoint_api import names
from vllmendpoint_worker.frontend.http_client import HttpResponse
from vllmendpoint_worker.frontend.probing.probe import PREFILL_HEADER, WORKER_HEADER, RequestForm

__all__ = ["FakeFrontend", "FakeWorker"]

COMPLETE = {"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]}


@dataclass
class FakeWorker:
    """``behaviour``: answer, hang, error, no-end or unknown (to the
    router), or anonymous, a worker that does not identify itself."""

    namespace: str = "ns"
    behaviour: str = "answer"
    accepted: bool = True
    seconds: float = 0.0
    prefill: bool = False


@dataclass
class FakeFrontend:
    """``sets``: results of the router's draws; a pinned request gets 400 while the next item is False."""

    workers: dict[int, FakeWorker] = field(default_factory=dict)
    forms: tuple[RequestForm, ...] = (RequestForm.COMPLETION,)
    sets: list[bool] = field(default_factory=list)
    up: bool = True
    in_flight: int = 0
    posts: list[tuple[str, str]] = field(default_factory=list)
    """Path and worker header of each request."""
    pairs: list[tuple[int, int]] = field(default_factory=list)
    """Decode and prefill worker of each request that selects both."""
    prompts: list[str] = field(default_factory=list)
    broken_pairs: set[tuple[int, int]] = field(default_factory=set)
    """Pairs between which no KV cache is transferred, so that requests hang."""
    turn: int = 0

    async def get(self, path: str, timeout: float) -> HttpResponse:
        if not self.up:
            await asyncio.sleep(timeout)
            raise TimeoutError
        return HttpResponse(200, self._page(path).encode())

    def _page(self, path: str) -> str:
        if path == "/health":
            rows = [
                {
                    "namespace": worker.namespace,
                    "component": "prefill" if worker.prefill else "backend",
                    "endpoint": "generate",
                    "instance_id": number,
                }
                for number, worker in self.workers.items()
            ]
            return json.dumps({"instances": rows})
        if path == "/v1/models":
            return json.dumps({"data": [{"id": "m"}] if self.workers else []})
        if path == "/metrics":
            return f'dynamo_frontend_active_requests{{model="m"}} {self.in_flight}\n'
        assert path == "/v1/models/m/ready"
        paired = bool(self.pairs) or any(worker.prefill for worker in self.workers.values())
        spaces: dict[str, dict[str, int]] = {}
        for worker in self.workers.values():
            role = ("prefill" if worker.prefill else "decode") if paired else "aggregated"
            types = spaces.setdefault(worker.namespace, {})
            types[role] = types.get(role, 0) + worker.accepted
        ready = {
            name: {
                "worker_types": {role: {"workers": count} for role, count in types.items()},
                "missing_worker_types": sorted({"prefill", "decode"} - types.keys()) if paired else [],
            }
            for name, types in spaces.items()
        }
        return json.dumps({"namespaces": ready})

    async def post(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str], timeout: float
    ) -> HttpResponse:
        self.posts.append((path, headers.get(WORKER_HEADER, "")))
        assert headers[names.PROBE_HEADER] == "1"
        assert body["model"] == "m"
        if RequestForm(path) not in self.forms:
            return HttpResponse(404, b"")
        number = int(headers[WORKER_HEADER]) if WORKER_HEADER in headers else self._next()
        self.prompts.append(str(body.get("prompt", "")))
        if any(worker.prefill for worker in self.workers.values()):
            return await self._pass_on(number, headers.get(PREFILL_HEADER), timeout)
        drawn = self.sets.pop(0) if self.sets else True
        worker = self.workers.get(number)
        if worker is None or not drawn or worker.behaviour == "unknown":
            return HttpResponse(400, b'{"message": "Invalid request"}')
        if worker.behaviour == "hang":
            await asyncio.sleep(timeout)
            raise TimeoutError
        await asyncio.sleep(worker.seconds)
        return _response(worker, number, RequestForm(path))

    async def _pass_on(self, number: int, prefill: str | None, timeout: float) -> HttpResponse:
        if prefill is None:
            return HttpResponse(503, b'{"message": "No prefill worker."}')
        pair = number, int(prefill)
        self.pairs.append(pair)
        chosen = [self.workers.get(one) for one in pair]
        if None in chosen:
            return HttpResponse(400, b'{"message": "Invalid request"}')
        if pair in self.broken_pairs or any(one and one.behaviour == "hang" for one in chosen):
            await asyncio.sleep(timeout)
            raise TimeoutError
        return HttpResponse(200, json.dumps(COMPLETE).encode())

    def _next(self) -> int:
        """Round robin, for forms in which the router ignores the header."""
        self.turn += 1
        return sorted(self.workers)[self.turn % len(self.workers)]


def _response(worker: FakeWorker, number: int, form: RequestForm) -> HttpResponse:
    if worker.behaviour == "error":
        return HttpResponse(503, b'{"message": "The engine is stalled."}')
    body: dict[str, Any] = COMPLETE
    if form not in (RequestForm.CHAT, RequestForm.COMPLETION):
        body = {"model": str(number), "data": [{"embedding": [0.5]}]}
    if worker.behaviour == "anonymous":
        body = {**body, "model": "m"}
    if worker.behaviour == "no-end":
        body = {"choices": [{"index": 0, "text": "x", "finish_reason": None}]}
    return HttpResponse(200, json.dumps(body).encode())
