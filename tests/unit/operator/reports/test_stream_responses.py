"""Report streams to workers that do not answer, or answer what the operator does not accept."""

import asyncio
import contextlib
import json

import pytest

import vllmendpoint_operator.reports.streams as reports_module
from tests.unit.operator.reports.stream_worker import OWNER, TARGET, WIRE, changed, until
from vllmendpoint_operator.reports.streams import MAX_REPORT_BYTES, ReportStreams

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@contextlib.asynccontextmanager
async def server_sending(response, *, close=True):
    """(streams, received requests, port) of a server that sends ``response`` to each request."""
    received = []

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            received.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(response)
            await writer.drain()
            if not close:
                await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with ReportStreams(lambda *_: None, port=port) as streams:
            streams.sync_targets(OWNER, [TARGET])
            yield streams, received, port


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"x" * (MAX_REPORT_BYTES + 1), "larger than"),
        (b"x" * (MAX_REPORT_BYTES + 1) + b"\n", "larger than"),
        (b"nonsense\n", "malformed report"),
        (changed("podUid", "v"), "of another pod"),
    ],
)
async def test_a_malformed_stream_is_closed_and_reported(worker, streams, line, message):
    worker.greeting = line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
    await until(lambda: message in streams.state(OWNER, "u").error)
    assert streams.state(OWNER, "u").report is None
    await until(lambda: streams.state(OWNER, "u").grace_expired)
    assert streams.changes == [(OWNER, True)]


async def test_too_many_reports_close_the_stream(worker, streams):
    lines = b"".join(
        json.dumps(changed("verdict.message", str(number))).encode() + b"\n" for number in range(500)
    )
    await worker.lines.put(lines)
    await until(lambda: "reports per second" in streams.state(OWNER, "u").error)
    assert len(streams.changes) < 100


async def test_a_request_is_for_one_uncompressed_stream():
    async with server_sending(HEAD + b"\r\n") as (_, received, port):
        await until(lambda: received)
    request, *headers = received[0].decode().strip().split("\r\n")
    assert request == "GET /status?watch=true HTTP/1.1"
    assert {f"Host: 127.0.0.1:{port}", "Connection: close", "Accept-Encoding: identity"} <= set(headers)


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (b"", "incomplete"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n", "incomplete"),
        (b"x" * 100_000, "malformed"),
        (HEAD + b"A: " + b"x" * 100_000, "malformed"),
        (HEAD + b"A: b\r\n" * 100_000, "malformed"),
        (b"secret\r\n\r\n", "malformed"),
        (b"HTTP/2 200\r\n\r\n", "malformed"),
        (b"HTTP/1.1 101 \r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx", "HTTP 101"),
        (b"HTTP/1.1 302 secret\r\nLocation: http://secret/\r\n\r\n", "HTTP 302"),
        (b"HTTP/1.1 204 \r\n\r\n", "HTTP 204"),
        (CHUNKED + b"3\r\nabcd\r\n", "malformed"),
        (CHUNKED + b"secret\r\n", "malformed"),
        (CHUNKED + b"-1\r\n", "malformed"),
        (CHUNKED + b"1" * 100_000, "malformed"),
        (HEAD + b"Content-Encoding: gzip\r\n\r\nsecret\n", "malformed report"),
    ],
    ids=lambda value: value[:40].decode() if isinstance(value, bytes) else value,
)
async def test_an_invalid_response_is_an_error_that_does_not_quote_it(response, error):
    async with server_sending(response) as (streams, _, _):
        await until(lambda: streams.state(OWNER, "u").error)
        found = streams.state(OWNER, "u").error
    assert error in found
    assert "secret" not in found


@pytest.mark.parametrize(
    "response",
    [b"", b"HTTP/1.1 200 OK\r\n", HEAD + b"\r\nx", CHUNKED, CHUNKED + b"5\r\nab", HEAD + b"\r\n\n\n"],
)
async def test_a_stream_without_a_report_is_closed_after_the_timeout(monkeypatch, response):
    monkeypatch.setattr(reports_module, "REPORT_TIMEOUT_SECONDS", 0.1)
    async with server_sending(response, close=False) as (streams, _, _):
        await until(lambda: streams.state(OWNER, "u").error)
        assert streams.state(OWNER, "u").error == "TimeoutError: no report within 0.1 s"


async def test_bytes_without_a_report_do_not_extend_the_timeout(worker, monkeypatch):
    monkeypatch.setattr(reports_module, "REPORT_TIMEOUT_SECONDS", 0.3)
    async with ReportStreams(lambda *_: None, port=worker.port) as streams:
        streams.sync_targets(OWNER, [TARGET])

        async def trickle():
            while True:
                await worker.lines.put(b"x")
                await asyncio.sleep(0.02)

        task = asyncio.create_task(trickle())
        await until(lambda: streams.state(OWNER, "u").error, seconds=2)
        task.cancel()
        assert streams.state(OWNER, "u").error == "TimeoutError: no report within 0.3 s"


async def test_a_worker_that_does_not_listen_is_reported():
    async with ReportStreams(lambda *_: None, port=1) as streams:
        streams.sync_targets(OWNER, [TARGET])
        await until(lambda: streams.state(OWNER, "u").error)
        assert streams.state(OWNER, "u").error.startswith("ConnectionRefusedError: ")


async def test_a_defect_of_the_operator_is_logged_and_not_quoted(worker, monkeypatch, caplog):
    def defect(*_):
        raise KeyError("secret")

    monkeypatch.setattr(reports_module, "parse", defect)
    worker.greeting = json.dumps(WIRE).encode() + b"\n"
    async with ReportStreams(lambda *_: None, port=worker.port) as streams:
        streams.sync_targets(OWNER, [TARGET])
        await until(lambda: streams.state(OWNER, "u").error)
        assert "secret" not in streams.state(OWNER, "u").error
        await until(lambda: worker.connections == 2)
    assert "KeyError" in caplog.text
