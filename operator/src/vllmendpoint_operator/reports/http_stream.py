"""The body of one HTTP/1.1 answer as it comes: GET, no redirects, no reuse.

A thousand of these stand open at a time, to servers that may mean harm: one is a protocol of asyncio's,
without a task or a buffer, and keeps nothing of the answer but the parser's state.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

__all__ = ["StreamingResponse", "get"]

_MAX_OVERHEAD_BYTES: Final = 64 * 1024
"""Bytes of the head, and of what is between two parts of the body."""


async def get(
    address: str,
    port: int,
    path: str,
    *,
    on_data: Callable[[bytes], None],
    on_end: Callable[[Exception | None], None],
    connect_timeout: float,
    read_timeout: float,
) -> "StreamingResponse":
    """Connect and send the request.

    Args:
        on_data: receives the body as it arrives. It raises ValueError to end the stream. Any other exception
            is a defect, which asyncio logs and ``on_end`` receives.
        on_end: called once, but not after :meth:`StreamingResponse.close`. Receives None if the server ended
            the response, else an OSError, TimeoutError or ValueError, which quotes no input.
        connect_timeout: seconds until the connection must be established.
        read_timeout: seconds until the next bytes must arrive.

    Raises OSError, TimeoutError or ValueError if no connection is established. ``on_end`` is not called then.
    """
    host = f"[{address}]" if ":" in address else address
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(connect_timeout):
        _, stream = await loop.create_connection(
            lambda: StreamingResponse(request.encode(), on_data, on_end, read_timeout), address, port
        )
    return stream


class StreamingResponse(asyncio.Protocol):
    """One connection, until its end or :meth:`close`."""

    __slots__ = (
        *("_answered", "_overhead_bytes", "_body", "_complete", "_on_end", "_last_data_at", "_loop"),
        *("_parser", "_on_data", "_refusal", "_request", "_read_timeout", "_timer", "_transport"),
    )

    def __init__(
        self,
        request: bytes,
        on_data: Callable[[bytes], None],
        on_end: Callable[[Exception | None], None],
        read_timeout: float,
    ) -> None:
        self._request = request
        self._on_data: Callable[[bytes], None] | None = on_data
        self._on_end = on_end
        self._read_timeout = read_timeout
        self._loop = asyncio.get_running_loop()
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_data_at = 0.0
        self._overhead_bytes = 0
        self._body: list[bytes] = []
        self._answered = self._complete = False
        self._refusal: ValueError | None = None

    def close(self) -> None:
        """End it; nothing is called any more."""
        self._on_data = None
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)
        self._last_data_at = self._loop.time()
        self._timer = self._loop.call_later(self._read_timeout, self._check_timeout)

    def data_received(self, data: bytes) -> None:
        self._last_data_at = self._loop.time()
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            if not self._complete:
                self._refusal = self._refusal or ValueError("a malformed answer of HTTP/1.1")
        body, self._body = self._body, []
        self._overhead_bytes = 0 if body else self._overhead_bytes + len(data)
        if self._refusal is None and self._overhead_bytes > _MAX_OVERHEAD_BYTES:
            self._refusal = ValueError("the head of the answer is too long")
        if body and self._refusal is None and self._on_data is not None:
            try:
                self._on_data(b"".join(body))  # once, into however many chunks it was cut
            except ValueError as refusal:
                self._refusal = refusal
        if self._refusal is not None or self._complete:
            self._end(self._refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        cut = ValueError("the answer was cut off")
        self._end(exc if exc is not None or self._answered else cut)

    # The parser's side: what is raised here would come out as an error of the parser's

    def on_headers_complete(self) -> None:
        self._answered = True
        status = self._parser.get_status_code()
        if status != 200:
            self._refusal = ValueError(f"HTTP {status}")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._complete = True

    def _check_timeout(self) -> None:
        """One timer a stream: it looks how long ago the newest bytes came."""
        left = self._last_data_at + self._read_timeout - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check_timeout)
        else:
            self._end(TimeoutError(f"nothing came for {self._read_timeout:g} s"))

    def _end(self, error: Exception | None) -> None:
        if self._on_data is not None:
            self.close()
            self._on_end(error)
