"""How requests on the SageMaker port end when the engine stalls."""

import asyncio
import json
from typing import Any

import pytest

from vllmendpoint_api import Verdict
from vllmendpoint_worker.engine.stall_middleware import StallMiddleware

pytestmark = pytest.mark.timeout(30)

EVENT = {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}
END = {"type": "http.response.body", "body": b""}


def start(content_type: str) -> dict[str, Any]:
    headers = [(b"Content-Type", content_type.encode())]
    return {"type": "http.response.start", "status": 200, "headers": headers}


class App:
    """Sends ``messages``, then waits for ``go`` or for the client's disconnect, then sends ``rest``."""

    def __init__(self, messages: list[dict[str, Any]], rest: list[dict[str, Any]]) -> None:
        self._messages = messages
        self._rest = rest
        self.go = asyncio.Event()
        self.received: list[str] = []
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        for message in self._messages:
            await send(message)
        going = asyncio.create_task(self.go.wait())
        received = asyncio.create_task(receive())
        await asyncio.wait({going, received}, return_when=asyncio.FIRST_COMPLETED)
        if received.done():
            self.received.append(received.result()["type"])
        going.cancel()
        received.cancel()
        for message in self._rest:
            await send(message)


class Exchange:
    """A request through the middleware, as a server sends it."""

    def __init__(self, app: App, path: str = "/v1/completions", method: str = "POST") -> None:
        self.verdict = Verdict.GENERATING
        self.middleware = StallMiddleware(
            app, verdict=lambda: self.verdict, needs_engine=lambda scope: scope["path"] != "/tokenize"
        )
        self.sent: list[dict[str, Any]] = []
        self._scope = {"type": "http", "method": method, "path": path}

    async def _receive(self) -> Any:
        await asyncio.Event().wait()

    async def _send(self, message: Any) -> None:
        self.sent.append(dict(message))

    def start(self) -> "asyncio.Task[None]":
        return asyncio.create_task(self.middleware(self._scope, self._receive, self._send))

    def stall(self) -> None:
        self.verdict = Verdict.STALLED
        self.middleware.end_requests()
        self.middleware.end_requests()

    def error(self, body: bytes) -> None:
        error = json.loads(body.removeprefix(b"data: "))["error"]
        assert (error["code"], error["type"]) == (503, "ServiceUnavailableError")
        assert "verdict Stalled" in error["message"]


async def in_flight(app: App, **request: str) -> tuple[Exchange, "asyncio.Task[None]"]:
    exchange = Exchange(app, **request)
    task = exchange.start()
    await asyncio.sleep(0.02)
    return exchange, task


async def test_a_request_without_a_response_ends_with_503() -> None:
    app = App([], [start("application/json"), END])
    exchange, task = await in_flight(app)
    exchange.stall()
    await asyncio.wait_for(task, 1.0)
    begin, body = exchange.sent
    assert begin["status"] == 503
    assert not body.get("more_body")
    exchange.error(body["body"])
    assert app.received == ["http.disconnect"], "vLLM aborts the request"


async def test_an_event_stream_ends_with_an_error_event_and_stays_incomplete() -> None:
    app = App([start("text/event-stream; charset=utf-8"), EVENT], [EVENT, END])
    exchange, task = await in_flight(app)
    exchange.stall()
    await asyncio.wait_for(task, 1.0)
    assert exchange.sent[1] == EVENT
    (last,) = exchange.sent[2:]
    assert last["more_body"]
    assert last["body"].endswith(b"\n\n")
    exchange.error(last["body"])


async def test_another_response_that_has_started_stays_incomplete() -> None:
    messages = [start("application/json"), EVENT]
    exchange, task = await in_flight(App(messages, [END]))
    exchange.stall()
    await asyncio.wait_for(task, 1.0)
    assert exchange.sent == messages


async def test_a_complete_response_stays_complete() -> None:
    messages = [start("text/event-stream"), END]
    exchange, task = await in_flight(App(messages, []))
    exchange.stall()
    await asyncio.wait_for(task, 1.0)
    assert exchange.sent == messages


@pytest.mark.parametrize(("path", "method"), [("/v1/models", "GET"), ("/tokenize", "POST")])
async def test_routes_without_the_engine_still_answer(path: str, method: str) -> None:
    answer = [start("application/json"), END]
    app = App([], answer)
    exchange, task = await in_flight(app, path=path, method=method)
    exchange.stall()
    later = exchange.start()
    await asyncio.sleep(0.02)
    app.go.set()
    await asyncio.wait_for(asyncio.gather(task, later), 1.0)
    assert exchange.sent == answer * 2
    assert app.received == []


async def test_new_requests_get_503_immediately_while_the_engine_is_stalled() -> None:
    app = App([], [start("application/json"), END])
    exchange = Exchange(app)
    exchange.stall()
    await asyncio.wait_for(exchange.start(), 1.0)
    assert [message.get("status") for message in exchange.sent] == [503, None]
    assert app.calls == 0


async def test_an_application_that_ignores_the_disconnect_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vllmendpoint_worker.engine.stall_middleware.ABORT_SECONDS", 0.05)
    cancelled: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(scope["path"])
            raise

    exchange = Exchange(app)  # type: ignore[arg-type]
    task = exchange.start()
    await asyncio.sleep(0.02)
    exchange.stall()
    await asyncio.wait_for(task, 1.0)
    assert cancelled == ["/v1/completions"]
    assert exchange.sent[0]["status"] == 503


async def test_errors_of_the_application_reach_the_server() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await Exchange(app).start()  # type: ignore[arg-type]


async def test_the_servers_cancellation_reaches_the_application() -> None:
    app = App([], [])
    exchange, task = await in_flight(app)
    task.cancel()
    await asyncio.wait({task}, timeout=1.0)
    assert task.cancelled()
    assert exchange.sent == []
