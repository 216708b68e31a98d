"""Dynamo's HTTP server for tests, without a network: discovered workers, and how each of them answers."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllmendpoint_api import names
from vllmendpoint_worker.frontend.http_client import HttpResponse
from vllmendpoint_worker.frontend.probing.probe import WORKER_HEADER, RequestForm

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
    turn: int = 0

    async def get(self, path: str, timeout: float) -> HttpResponse:
        if not self.up:
            await asyncio.sleep(timeout)
            raise TimeoutError
        return HttpResponse(200, self._page(path).encode())

    def _page(self, path: str) -> str:
        if path == "/health":
            rows = [
                {"namespace": worker.namespace, "endpoint": "generate", "instance_id": number}
                for number, worker in self.workers.items()
            ]
            return json.dumps({"instances": rows})
        if path == "/v1/models":
            return json.dumps({"data": [{"id": "m"}] if self.workers else []})
        if path == "/metrics":
            return f'dynamo_frontend_active_requests{{model="m"}} {self.in_flight}\n'
        assert path == "/v1/models/m/ready"
        counts: dict[str, int] = {}
        for worker in self.workers.values():
            counts[worker.namespace] = counts.get(worker.namespace, 0) + worker.accepted
        spaces = {name: {"worker_types": {"aggregated": {"workers": n}}} for name, n in counts.items()}
        return json.dumps({"namespaces": spaces})

    async def post(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str], timeout: float
    ) -> HttpResponse:
        self.posts.append((path, headers.get(WORKER_HEADER, "")))
        assert headers[names.PROBE_HEADER] == "1"
        assert body["model"] == "m"
        if RequestForm(path) not in self.forms:
            return HttpResponse(404, b"")
        number = int(headers[WORKER_HEADER]) if WORKER_HEADER in headers else self._next()
        drawn = self.sets.pop(0) if self.sets else True
        worker = self.workers.get(number)
        if worker is None or not drawn or worker.behaviour == "unknown":
            return HttpResponse(400, b'{"message": "Invalid request"}')
        if worker.behaviour == "hang":
            await asyncio.sleep(timeout)
            raise TimeoutError
        await asyncio.sleep(worker.seconds)
        return _response(worker, number, RequestForm(path))

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
