"""The body of one HTTP/1.1 answer as it comes: GET, no redirects, no reuse.

A thousand of these stand open at a time, to servers that may mean harm: one is a protocol of asyncio's,
without a task or a buffer, and keeps nothing of the answer but the parser's state.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

__all__ = ["BodyStream", "get"]

_MOST_BESIDE_THE_BODY: Final = 64 * 1024
"""Bytes of the head, and of what is between two parts of the body."""


async def get(
    address: str,
    port: int,
    path: str,
    *,
    part: Callable[[bytes], None],
    ended: Callable[[Exception | None], None],
    connect: float,
    silence: float,
) -> "BodyStream":
    """Connected, and asked. ``part`` gets the body as it comes; raises ValueError to end it.

    ``ended`` is called once, but not after :meth:`BodyStream.close`: with None where the server ended it;
    else with an OSError, a TimeoutError or a ValueError, which quotes nothing of what came. What else
    ``part`` raises is a defect: asyncio logs it, and ``ended`` gets it. ``connect`` and ``silence``: seconds
    for the connection, and for the next bytes to come. Raises OSError, TimeoutError or ValueError where no
    connection is made; then ``ended`` is not called.
    """
    host = f"[{address}]" if ":" in address else address
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(connect):
        _, stream = await loop.create_connection(
            lambda: BodyStream(request.encode(), part, ended, silence), address, port
        )
    return stream


class BodyStream(asyncio.Protocol):
    """One connection, until its end or :meth:`close`."""

    __slots__ = (
        *("_answered", "_beside", "_body", "_complete", "_ended", "_heard", "_loop"),
        *("_parser", "_part", "_refusal", "_request", "_silence", "_timer", "_transport"),
    )

    def __init__(
        self,
        request: bytes,
        part: Callable[[bytes], None],
        ended: Callable[[Exception | None], None],
        silence: float,
    ) -> None:
        self._request = request
        self._part: Callable[[bytes], None] | None = part
        self._ended = ended
        self._silence = silence
        self._loop = asyncio.get_running_loop()
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = 0.0
        self._beside = 0
        self._body: list[bytes] = []
        self._answered = self._complete = False
        self._refusal: ValueError | None = None

    def close(self) -> None:
        """End it; nothing is called any more."""
        self._part = None
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)
        self._heard = self._loop.time()
        self._timer = self._loop.call_later(self._silence, self._listen)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            if not self._complete:
                self._refusal = self._refusal or ValueError("a malformed answer of HTTP/1.1")
        body, self._body = self._body, []
        self._beside = 0 if body else self._beside + len(data)
        if self._refusal is None and self._beside > _MOST_BESIDE_THE_BODY:
            self._refusal = ValueError("the head of the answer is too long")
        if body and self._refusal is None and self._part is not None:
            try:
                self._part(b"".join(body))  # once, into however many chunks it was cut
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

    def _listen(self) -> None:
        """One timer a stream: it looks how long ago the newest bytes came."""
        left = self._heard + self._silence - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._listen)
        else:
            self._end(TimeoutError(f"nothing came for {self._silence:g} s"))

    def _end(self, error: Exception | None) -> None:
        if self._part is not None:
            self.close()
            self._ended(error)
