"""Ends requests on the SageMaker port while the engine is stalled. No frontend moves them to another worker.

The application receives a disconnect of its client, so that vLLM aborts the request in the engine, and the
client receives 503, or an error event if its event stream has started.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, MutableMapping
from contextlib import suppress
from typing import Any, Final

from vllmendpoint_api import Verdict

__all__ = ["StallMiddleware"]

Message = MutableMapping[str, Any]
App = Callable[[Message, Any, Any], Coroutine[Any, Any, None]]

ABORT_SECONDS: Final = 2.0
"""Longest wait for a slow client to read the error, and for the application after its client's disconnect."""

_DISCONNECT: Final = {"type": "http.disconnect"}


class StallMiddleware:
    """``verdict``: the current verdict. ``needs_engine``: whether the route of a request needs the engine."""

    def __init__(
        self, app: App, *, verdict: Callable[[], Verdict], needs_engine: Callable[[Message], bool]
    ) -> None:
        self._app = app
        self._verdict = verdict
        self._needs_engine = needs_engine
        self._exchanges: set[_Exchange] = set()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        # Information is read with GET. Routes are matched only while the engine is stopped.
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        if self._verdict() is Verdict.STALLED and self._needs_engine(scope):
            await exchange.fail(self._message())
            return
        task = asyncio.create_task(self._app(scope, exchange.receive, exchange.send))
        self._exchanges.add(exchange)
        try:
            await asyncio.wait({task, exchange.ended}, return_when=asyncio.FIRST_COMPLETED)
            if exchange.ended.done():
                with suppress(TimeoutError):
                    async with asyncio.timeout(ABORT_SECONDS):
                        await exchange.fail(self._message())
                await asyncio.wait({task}, timeout=ABORT_SECONDS)
        finally:
            self._exchanges.discard(exchange)
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=ABORT_SECONDS)
        if not exchange.ended.done():
            task.result()
        elif not task.cancelled():
            task.exception()  # retrieved: the application lost its client

    def end_requests(self) -> None:
        """End the requests in flight that need the engine."""
        for exchange in self._exchanges:
            if not exchange.ended.done() and self._needs_engine(exchange.scope):
                exchange.ended.set_result(None)

    def _message(self) -> str:
        return (
            f"The engine of this worker does not generate tokens (verdict {self._verdict().value}). "
            "Send the request to another replica."
        )


class _Exchange:
    """One request and its response. ``ended`` is resolved when the worker ends the request."""

    def __init__(self, scope: Message, receive: Any, send: Any) -> None:
        self.scope = scope
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._receive = receive
        self._send = send
        self._is_started = False
        self._is_complete = False
        self._is_event_stream = False

    async def receive(self) -> Message:
        message = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait({message, self.ended}, return_when=asyncio.FIRST_COMPLETED)
            return dict(_DISCONNECT) if self.ended.done() else message.result()
        finally:
            message.cancel()

    async def send(self, message: Message) -> None:
        if self.ended.done():
            return
        if message["type"] == "http.response.start":
            self._is_started = True
            self._is_event_stream = _is_event_stream(message)
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            self._is_complete = True
        await self._send(message)

    async def fail(self, message: str) -> None:
        """Send the error in OpenAI's form, unless the response is complete.

        A response that has started stays incomplete, so that the server closes the connection and the client
        detects it.
        """
        error = {"message": message, "type": "ServiceUnavailableError", "param": None, "code": 503}
        body = json.dumps({"error": error}).encode()
        if not self._is_started:
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await self._send({"type": "http.response.start", "status": 503, "headers": headers})
            await self._send({"type": "http.response.body", "body": body})
        elif self._is_event_stream and not self._is_complete:
            event = b"data: " + body + b"\n\n"
            await self._send({"type": "http.response.body", "body": event, "more_body": True})


def _is_event_stream(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start.get("headers", ())
    )
