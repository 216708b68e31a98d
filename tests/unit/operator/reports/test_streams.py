"""Report streams, and reports as untrusted input."""

import asyncio
import contextlib
import contextvars
import json
from datetime import UTC, datetime

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vllmendpoint_operator.reports.streams as reports_module
from vllmendpoint_operator.observe.snapshot import Observed
from vllmendpoint_operator.reports.state import ReportTarget, StreamState
from vllmendpoint_operator.reports.streams import MAX_REPORT_BYTES, ReportStreams, parse
from vllmendpoint_operator.status import endpoint_status

OWNER = ("ns", "e")
TARGET = ReportTarget("u", "127.0.0.1", OWNER)
SINCE = "2026-01-01T11:50:00+00:00"
WIRE = {
    "workerVersion": "1",
    "podUid": "u",
    "time": SINCE,
    "stage": {"name": "Serving", "since": SINCE},
    "configuration": {},
    "healthCheck": {
        "source": "Spec",
        "payload": {"prompt": "1"},
        "payloadDigest": "d",
        "periodSeconds": 30,
        "timeoutSeconds": 5,
        "failureThreshold": 2,
        "successThreshold": 1,
        "restartAfterSeconds": 600,
    },
    "verdict": {"state": "Generating", "since": SINCE},
    "lastProbe": {"time": SINCE, "latencyMilliseconds": 1.5, "tokens": 1, "outcome": "Complete"},
}


def changed(path: str, value: object, wire: dict = WIRE) -> dict:
    wire = json.loads(json.dumps(wire))
    *parents, last = path.split(".")
    at = wire
    for parent in parents:
        at = at[parent]
    at[last] = value
    return wire


def test_unknown_fields_of_a_later_version_are_ignored():
    wire = {**changed("verdict.confidence", 0.9), "version": 2, "novelty": {"a": [1]}}
    assert parse(json.dumps(wire).encode(), "u").verdict.state == "Generating"


def test_times_are_converted_to_utc():
    report = parse(json.dumps(changed("stage.since", "2026-01-01T13:00:00+02:00")).encode(), "u")
    assert report.stage.since == datetime(2026, 1, 1, 11, tzinfo=UTC)
    assert report.stage.since.tzinfo is UTC


def test_escaped_control_characters_are_removed():
    wire = changed("verdict.message", "a\x1b[31m\r\nb\u2028c\x00\x9bd")
    wire["healthCheck"]["payload"] = {"k\n": ["v\x07"]}
    report = parse(json.dumps(wire).encode(), "u")
    assert report.verdict.message == "a [31m b c d"
    assert report.health_check.payload == {"k ": ["v "]}


@pytest.mark.parametrize("character", ["\x7f", "\x80", "\x9b", "\u2028", "\u2029"])
def test_unescaped_control_characters_are_removed(character):
    wire = changed("verdict.message", f"a{character}b")
    assert parse(json.dumps(wire, ensure_ascii=False).encode(), "u").verdict.message == "a b"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"", "malformed report"),
        (b"hello", "malformed report"),
        (b"[]", "malformed report"),
        (b"null", "malformed report"),
        (b"{}", "malformed report"),
        (b"\xff\xfe", "malformed report"),
        (b"[" * 100_000, "malformed report"),
        (b'{"a":' * 100_000, "malformed report"),
        (json.dumps(WIRE).encode()[:-1], "malformed report"),
        (changed("podUid", "another"), "the report is of another pod"),
        (changed("podUid", ""), "the report is of another pod"),
        (changed("verdict.state", "Splendid"), "verdict.state: enum"),
        (changed("lastProbe.outcome", "Good"), "lastProbe.outcome: enum"),
        (changed("stage.name", "Sleeping"), "stage.name: enum"),
        (changed("verdict.message", "x" * 2049), "verdict.message: string_too_long"),
        (changed("verdict.reason", "x" * 129), "verdict.reason: string_too_long"),
        (changed("verdict.message", "\ud800"), "malformed report"),
        (changed("time", "yesterday"), "time: "),
        (changed("time", "2026-01-01T00:00:00"), "time: timezone_aware"),
        (changed("lastProbe.time", "0001-01-01T00:00:00Z"), "lastProbe.time: value_error"),
        (changed("lastProbe.time", "9999-12-31T23:59:59-12:00"), "lastProbe.time: value_error"),
        (changed("lastProbe.latencyMilliseconds", float("nan")), "lastProbe.latencyMilliseconds"),
        (changed("lastProbe.latencyMilliseconds", 1e300), "lastProbe.latencyMilliseconds"),
        (changed("lastProbe.latencyMilliseconds", -1), "lastProbe.latencyMilliseconds"),
        (changed("lastProbe.tokens", 10**30), "lastProbe.tokens"),
        (changed("healthCheck.payload", {"a": float("inf")}), "healthCheck.payload"),
        (changed("healthCheck.payload", {"a": [10**30]}), "healthCheck.payload"),
        (changed("healthCheck.payload", json.loads('{"a":' * 70 + "1" + "}" * 70)), "healthCheck.payload"),
        (changed("configuration.problems", [{}] * 17), "configuration.problems"),
    ],
)
def test_a_malformed_report_is_an_error_that_does_not_quote_it(line, expected):
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse(raw, "u")
    message = str(caught.value)
    assert expected in message
    assert "Splendid" not in message
    assert len(message) < 300


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.datetimes().map(str)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
PATHS = [
    *WIRE,
    *(f"{key}.{inner}" for key, value in WIRE.items() if isinstance(value, dict) for inner in value),
]


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_input_is_a_report_or_a_value_error(line):
    with contextlib.suppress(ValueError):
        parse(line, "u")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(PATHS), JSON, min_size=1, max_size=3))
def test_every_accepted_report_results_in_a_valid_status(make_endpoint, make_pod, noon, changes):
    wire = json.loads(json.dumps(WIRE))
    for path, value in changes.items():
        outer, _, inner = path.partition(".")
        if not inner:
            wire[outer] = value
        elif isinstance(wire.get(outer), dict):
            wire[outer][inner] = value
    try:
        report = parse(json.dumps(wire).encode(), "u")
    except ValueError:
        return
    for ready in (True, False):
        pod = make_pod("w-1", StreamState(report, True, True), ready=ready)
        found = endpoint_status(make_endpoint(), Observed(now=noon, workers=(pod,)), None, None).wire()
        assert len(json.dumps(found, allow_nan=False)) < 200_000


class Worker:
    """A worker's report port: sends ``greeting``, then what is put into ``lines``; None ends the stream."""

    def __init__(self):
        self.greeting = b""
        self.lines = asyncio.Queue()
        self.connections = self.disconnections = 0

    async def __aenter__(self):
        app = web.Application()
        app.add_routes([web.get("/status", self.stream)])
        self.runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        await self.runner.cleanup()

    async def stream(self, request):
        self.connections += 1
        try:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(self.greeting)
            while (line := await self.lines.get()) is not None:
                await response.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
        finally:
            self.disconnections += 1
        return response


@pytest.fixture
async def worker():
    async with Worker() as running:
        yield running


@pytest.fixture
async def streams(worker, monkeypatch):
    """The stream to one pod; ``changes`` has the arguments of each call of ``on_change``."""
    monkeypatch.setattr(reports_module, "CONNECTING_GRACE_SECONDS", 0.6)
    monkeypatch.setattr(reports_module, "_FIRST_RETRY_SECONDS", 0.1)
    changes = []
    async with ReportStreams(lambda *change: changes.append(change), port=worker.port) as reports:
        reports.changes = changes
        reports.sync_targets(OWNER, [TARGET])
        yield reports


async def until(condition, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_changes_notify_once_and_volatile_fields_do_not(worker, streams):
    wire = changed("verdict.lastProofOfLife", "2026-01-01T11:50:01Z")
    await worker.lines.put(wire)
    await until(lambda: streams.state(OWNER, "u").connected)
    assert len(streams.changes) == 1
    for path, value in (
        ("lastProbe.latencyMilliseconds", 99),
        ("lastProbe.tokens", 7),
        ("lastProbe.time", "2026-01-01T11:50:02.5+00:00"),
        ("time", "2026-01-01T11:50:03.123456Z"),
        ("verdict.lastProofOfLife", SINCE),
    ):
        wire = changed(path, value, wire)
        await worker.lines.put(wire)
    since = datetime.fromisoformat(SINCE)
    await until(lambda: streams.state(OWNER, "u").report.verdict.last_proof_of_life == since)
    assert len(streams.changes) == 1, "figures of probes are volatile"
    await worker.lines.put(changed("verdict.state", "Stalled"))
    await until(lambda: len(streams.changes) == 2)


async def test_progress_of_a_start_is_not_urgent(worker, streams):
    """A download reports its progress every second, which would delay urgent changes of others."""
    for change in (
        {"stage.detail": "1 of 9 bytes"},
        {"stage.detail": "2 of 9 bytes"},
        {"verdict.state": "Stalled"},
        {"verdict.state": "Stalled", "verdict.message": "as before"},
        {"ready": True},
        {"configuration.state": "Refused"},
    ):
        wire = WIRE
        for path, value in change.items():
            wire = changed(path, value, wire)
        count = len(streams.changes)
        await worker.lines.put(wire)
        await until(lambda count=count: len(streams.changes) > count)
    first, progress, stalled, text, ready, rejected = (urgent for _, urgent in streams.changes)
    assert (progress, text) == (False, False)
    assert (first, stalled, ready, rejected) == (True, True, True, True)


async def test_only_a_disconnection_longer_than_the_grace_period_notifies(worker, streams):
    await worker.lines.put(WIRE)
    await until(lambda: streams.state(OWNER, "u").connected)
    await worker.lines.put(None)
    await until(lambda: not streams.state(OWNER, "u").connected)
    assert not streams.state(OWNER, "u").grace_expired, "within the grace period"
    assert streams.state(OWNER, "u").report is not None
    await worker.lines.put(WIRE)
    await until(lambda: streams.state(OWNER, "u").connected)
    assert len(streams.changes) == 2
    await worker.runner.cleanup()
    await until(lambda: streams.state(OWNER, "u").grace_expired and not streams.state(OWNER, "u").connected)
    assert len(streams.changes) == 3
    assert streams.state(OWNER, "u").error


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


async def test_sync_targets_closes_streams_of_removed_targets(worker, streams):
    await worker.lines.put(WIRE)
    await until(lambda: streams.state(OWNER, "u").connected)
    streams.sync_targets(("ns", "other"), [])
    assert streams.state(OWNER, "u").connected, "the streams of other endpoints stay"
    assert not streams.sync_targets(OWNER, [TARGET])
    assert streams.sync_targets(OWNER, [TARGET, ReportTarget("v", "127.0.0.1", OWNER)])
    streams.sync_targets(OWNER, [])
    assert streams.state(OWNER, "u") == StreamState()
    await until(lambda: worker.disconnections == 1)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "report-stream"]


async def test_sync_targets_waits_briefly_for_a_first_report(worker, streams):
    worker.greeting = b""
    assert streams.sync_targets(OWNER, [TARGET]), "the fixture has just added the target"
    await asyncio.sleep(reports_module.FIRST_REPORT_SECONDS + 0.1)
    assert not streams.sync_targets(OWNER, [TARGET])


async def test_sync_targets_does_not_wait_for_a_worker_that_disconnected(worker, streams, monkeypatch):
    monkeypatch.setattr(reports_module, "FIRST_REPORT_SECONDS", 60)
    await worker.lines.put(WIRE)
    await until(lambda: streams.state(OWNER, "u").connected)
    await worker.lines.put(None)
    await until(lambda: not streams.state(OWNER, "u").connected)
    assert not streams.state(OWNER, "u").grace_expired, "within the grace period"
    assert not streams.sync_targets(OWNER, [TARGET])


async def test_log_lines_of_a_stream_do_not_carry_the_context_of_its_reconcile(worker, monkeypatch, caplog):
    monkeypatch.setattr(reports_module, "_FIRST_RETRY_SECONDS", 10)
    context, contexts = contextvars.ContextVar("context", default=""), []
    caplog.set_level("INFO", logger="vllmendpoint_operator.reports.streams")
    caplog.handler.addFilter(lambda record: contexts.append(context.get()) or True)
    async with ReportStreams(lambda *what: None, port=worker.port) as reports:
        context.set("the reconcile that opened the stream")
        reports.sync_targets(OWNER, [TARGET])
        worker.greeting = json.dumps(WIRE).encode() + b"\nnonsense\n"
        await until(lambda: contexts)
    assert contexts == [""]


async def test_a_worker_that_reported_is_reconnected_without_backoff(worker, streams):
    """A container that restarts is reconnected sooner than one that never reported."""
    worker.greeting = json.dumps(WIRE).encode() + b"\nnonsense\n"
    await until(lambda: worker.connections >= 10)


async def test_an_invalid_volatile_field_is_an_error_when_the_state_is_read(worker, streams):
    await worker.lines.put(WIRE)
    await until(lambda: streams.state(OWNER, "u").connected)
    await worker.lines.put(changed("time", "2026-99-99T11:50:01Z"))
    await until(lambda: streams.state(OWNER, "u").error.startswith("malformed report: time"))
    assert streams.state(OWNER, "u").report is None


async def test_the_state_has_the_newest_volatile_fields(worker, streams):
    await worker.lines.put(WIRE)
    await until(lambda: streams.state(OWNER, "u").connected)
    await worker.lines.put({**WIRE, "time": "2026-01-01T11:50:09Z"})
    await until(lambda: str(streams.state(OWNER, "u").report.time).startswith("2026-01-01 11:50:09"))
    assert len(streams.changes) == 1, "a volatile field is not a change"


async def test_a_target_removed_while_it_connects_is_closed(worker, monkeypatch):
    monkeypatch.setattr(reports_module, "_FIRST_RETRY_SECONDS", 0.01)
    async with ReportStreams(lambda *what: None, port=worker.port) as reports:
        for steps in range(12):
            reports.sync_targets(OWNER, [TARGET])
            for _ in range(steps):
                await asyncio.sleep(0)
            reports.sync_targets(OWNER, [])
        await asyncio.sleep(0.2)
        await until(lambda: worker.connections == worker.disconnections)


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
