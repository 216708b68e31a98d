"""A body as it comes, from a server that may mean harm."""

import asyncio
import contextlib

import pytest

from vllmendpoint_operator.reports.http_stream import get

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
CHUNKED = HEAD + b"transfer-encoding:  Chunked\r\n\r\n"


async def asked(answer, *, read_timeout=5.0, end=True, joined=True):
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
    parts, ended = [], asyncio.get_running_loop().create_future()
    try:
        await get(
            "127.0.0.1",
            port,
            "/x?y=1",
            on_data=parts.append,
            on_end=ended.set_result,
            connect_timeout=5,
            read_timeout=read_timeout,
        )
        async with asyncio.timeout(5):
            if failure := await ended:
                raise failure
        return b"".join(parts) if joined else parts, heard[0], port
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
        (b"x" * 100_000, "malformed"),
        (HEAD + b"A: " + b"x" * 100_000, "too long"),
        (b"secret\r\n\r\n", "malformed"),
        (b"HTTP/2 200\r\n\r\n", "malformed"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"\r\nx", "HTTP 100"),
        (b"HTTP/1.1 101 \r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx", "HTTP 101"),
        (b"HTTP/1.1 302 secret\r\nLocation: http://secret/\r\n\r\n", "HTTP 302"),
        (b"HTTP/1.1 204 \r\n\r\n", "HTTP 204"),
        (CHUNKED + b"3\r\nabcd\r\n", "malformed"),
        (CHUNKED + b"secret\r\n", "malformed"),
        (CHUNKED + b"-1\r\n", "malformed"),
        (CHUNKED + b"1" * 100_000, "malformed"),
        (CHUNKED + b"1;" + b"x" * 100_000, "too long"),
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
    with pytest.raises(TimeoutError, match=r"nothing came for 0\.1 s"):
        await asked(answer, read_timeout=0.1, end=False)


async def refused(*_):
    raise AssertionError("it was never connected")


async def test_nobody_listens():
    with pytest.raises(ConnectionRefusedError):
        await get("127.0.0.1", 1, "/", on_data=refused, on_end=refused, connect_timeout=5, read_timeout=5)


@contextlib.asynccontextmanager
async def serving_x():
    """A server that sends one byte and waits for the end; its port, and what is set at that end."""
    closed = asyncio.Event()

    async def serve(reader, writer):
        writer.write(HEAD + b"\r\nx")
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await reader.read()
        writer.close()
        closed.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], closed


@pytest.mark.parametrize("by", ["close", "a refusal"])
async def test_whoever_has_enough_closes(by):
    came, ended = asyncio.Event(), []

    def part(data):
        assert data == b"x"
        came.set()
        if by == "a refusal":
            raise ValueError("enough")

    async with serving_x() as (port, closed), asyncio.timeout(5):
        stream = await get(
            "127.0.0.1", port, "/", on_data=part, on_end=ended.append, connect_timeout=5, read_timeout=5
        )
        await came.wait()
        if by == "close":
            stream.close()
        await closed.wait()
    assert [str(failure) for failure in ended] == ([] if by == "close" else ["enough"])


async def test_a_defect_is_not_taken_for_an_answer_that_is_malformed(caplog):
    def broken(data):
        raise KeyError(data)

    ended = asyncio.get_running_loop().create_future()
    async with serving_x() as (port, closed), asyncio.timeout(5):
        await get(
            "127.0.0.1", port, "/", on_data=broken, on_end=ended.set_result, connect_timeout=5, read_timeout=5
        )
        assert isinstance(await ended, KeyError)
        await closed.wait()
    assert "data_received() call failed" in caplog.text


async def test_a_body_in_many_chunks_is_handed_on_at_once():
    """Else each of a hundred thousand chunks would cost a look at the line so far."""
    parts, _, _ = await asked(CHUNKED + b"1\r\nz\r\n" * 10_000 + b"0\r\n\r\n", joined=False)
    assert b"".join(parts) == b"z" * 10_000
    assert len(parts) < 100
