"""A body as it comes, from a server that may mean harm."""

import asyncio
import contextlib

import pytest

from vllmendpoint_operator.http_stream import get

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
CHUNKED = HEAD + b"transfer-encoding:  Chunked\r\n\r\n"


async def asked(answer, *, silence=5.0, end=True):
    """What comes of an answer; and what was asked."""
    heard = []

    async def serve(reader, writer):
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        with contextlib.suppress(ConnectionError):
            writer.write(answer)
            await writer.drain()
            if not end:
                await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        stream = get("127.0.0.1", port, "/x?y=1", connect=5, silence=silence)
        return b"".join([part async for part in stream]), heard[0], port
    finally:
        server.close()


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (HEAD + b"\r\n", b""),
        (HEAD + b"\r\na\r\n\r\nb", b"a\r\n\r\nb"),
        (b"HTTP/1.0 200\r\n\r\nx", b"x"),
        (HEAD + b"\r\n" + b"z" * 300_000, b"z" * 300_000),
        (CHUNKED + b"0\r\n\r\n", b""),
        (CHUNKED + b"3\r\nabc\r\nA;ext=1\r\n0123456789\r\n0\r\n\r\nrest", b"abc0123456789"),
        (CHUNKED + b"30d40\r\n" + b"z" * 200_000 + b"\r\n0\r\n\r\n", b"z" * 200_000),
    ],
)
async def test_the_body_comes_as_it_is(answer, body):
    assert (await asked(answer))[0] == body


async def test_what_is_asked():
    _, heard, port = await asked(HEAD + b"\r\n")
    lines = heard.decode().split("\r\n")
    assert lines == ["GET /x?y=1 HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close", "", ""]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", "cut off"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n", "cut off"),
        (b"x" * 100_000, "too long"),
        (b"secret\r\n\r\n", "not an answer"),
        (b"HTTP/2 200\r\n\r\n", "not an answer"),
        (b"HTTP/1.1 302 secret\r\nLocation: http://secret/\r\n\r\n", "HTTP 302"),
        (b"HTTP/1.1 204 \r\n\r\n", "HTTP 204"),
        (CHUNKED + b"3\r\nab", "cut off"),
        (CHUNKED + b"3\r\nabcd\r\n", "malformed chunk"),
        (CHUNKED + b"secret\r\n", "malformed chunk"),
        (CHUNKED + b"-1\r\n", "malformed chunk"),
        (CHUNKED + b"fffffffff\r\n", "malformed chunk"),
        (CHUNKED + b"1" * 100_000, "too long"),
    ],
)
async def test_what_is_no_answer_is_refused_and_never_quoted(answer, told):
    with pytest.raises(ValueError, match=told) as refused:
        await asked(answer)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\n", HEAD + b"\r\nx", CHUNKED, CHUNKED + b"5\r\nab"]
)
async def test_silence_ends_it(answer):
    with pytest.raises(TimeoutError):
        await asked(answer, silence=0.1, end=False)


async def test_nobody_listens():
    with pytest.raises(ConnectionRefusedError):
        await anext(get("127.0.0.1", 1, "/", connect=5, silence=5))


async def test_whoever_stops_reading_closes():
    closed = asyncio.Event()

    async def serve(reader, writer):
        writer.write(HEAD + b"\r\nx")
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await reader.read()
        closed.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with contextlib.aclosing(get("127.0.0.1", port, "/", connect=5, silence=5)) as parts:
        assert await anext(parts) == b"x"
    async with asyncio.timeout(5):
        await closed.wait()
    server.close()
