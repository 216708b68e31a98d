"""The HTTP client against real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from vllmendpoint_worker.frontend.http_client import MAX_RESPONSE_BYTES, HttpClient

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@asynccontextmanager
async def server(response: bytes, *, stay: bool = False) -> AsyncIterator[tuple[HttpClient, list[bytes]]]:
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.read(65536))
        writer.write(response)
        if stay:
            await reader.read()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield HttpClient("127.0.0.1", listening.sockets[0].getsockname()[1]), requests
    finally:
        listening.close()


async def test_a_request_is_json_on_a_connection_of_its_own() -> None:
    async with server(OK) as (client, requests):
        response = await client.post("/v1/completions", {"model": "m"}, {"x-a": "1"}, 5.0)
        assert (response.status, response.json()) == (200, {})
        assert (await client.get("/health", 5.0)).status == 200
    first, second = requests
    assert first.startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert first.endswith(b'\r\n\r\n{"model": "m"}')
    assert b"x-a: 1" in first
    assert b"Connection: close" in second


@pytest.mark.parametrize(
    ("response", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"{}"),
    ],
)
async def test_the_whole_response_is_read(response: bytes, body: bytes) -> None:
    async with server(response) as (client, _):
        assert (await client.get("/", 5.0)).body == body


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (b"SSH-2.0\r\n\r\n", ValueError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", ValueError),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (MAX_RESPONSE_BYTES + 1), ValueError),
    ],
)
async def test_a_response_that_is_not_complete_is_an_error(response: bytes, error: type[Exception]) -> None:
    async with server(response) as (client, _):
        with pytest.raises(error):
            await client.get("/", 5.0)


async def test_the_time_is_limited() -> None:
    async with server(b"HTTP/1.1 200 OK\r\n", stay=True) as (client, _):
        with pytest.raises(TimeoutError):
            await client.get("/", 0.1)
    with pytest.raises(OSError, match=r"."):
        await client.get("/", 0.5)
