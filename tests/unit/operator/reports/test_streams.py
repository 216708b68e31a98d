"""ReportStreams are hostile input: customer code runs in the pod that sends them."""

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


def test_a_report_of_a_later_version_is_read():
    wire = {**changed("verdict.confidence", 0.9), "version": 2, "novelty": {"a": [1]}}
    assert parse(json.dumps(wire).encode(), "u").verdict.state == "Generating"


def test_times_are_told_in_utc():
    report = parse(json.dumps(changed("stage.since", "2026-01-01T13:00:00+02:00")).encode(), "u")
    assert report.stage.since == datetime(2026, 1, 1, 11, tzinfo=UTC)
    assert report.stage.since.tzinfo is UTC


def test_control_characters_go():
    wire = changed("verdict.message", "a\x1b[31m\r\nb\u2028c\x00\x9bd")
    wire["healthCheck"]["payload"] = {"k\n": ["v\x07"]}
    report = parse(json.dumps(wire).encode(), "u")
    assert report.verdict.message == "a [31m b c d"
    assert report.health_check.payload == {"k ": ["v "]}


@pytest.mark.parametrize("character", ["\x7f", "\x80", "\x9b", "\u2028", "\u2029"])
def test_control_characters_go_where_they_need_no_escape(character):
    wire = changed("verdict.message", f"a{character}b")
    assert parse(json.dumps(wire, ensure_ascii=False).encode(), "u").verdict.message == "a b"


@pytest.mark.parametrize(
    ("line", "told"),
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
def test_what_is_malformed_is_refused_and_never_quoted(line, told):
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        parse(raw, "u")
    message = str(refused.value)
    assert told in message
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
def test_anything_at_all_is_a_value_error_at_worst(line):
    with contextlib.suppress(ValueError):
        parse(line, "u")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(PATHS), JSON, min_size=1, max_size=3))
def test_what_is_let_in_makes_a_status_that_can_be_written(make_endpoint, make_pod, noon, changes):
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
        self.asked = self.gone = 0

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
        self.asked += 1
        try:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(self.greeting)
            while (line := await self.lines.get()) is not None:
                await response.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
        finally:
            self.gone += 1
        return response


@pytest.fixture
async def worker():
    async with Worker() as running:
        yield running


@pytest.fixture
async def followed(worker, monkeypatch):
    """The reports of one pod that is followed; ``told`` is what was told: of whom, and whether
    it is urgent."""
    monkeypatch.setattr(reports_module, "CONNECTING_GRACE_SECONDS", 0.6)
    monkeypatch.setattr(reports_module, "_FIRST_RETRY_SECONDS", 0.1)
    told = []
    async with ReportStreams(lambda *what: told.append(what), port=worker.port) as reports:
        reports.told = told
        reports.sync_targets(OWNER, [TARGET])
        yield reports


async def until(holds, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


async def test_news_is_told_once_and_figures_are_none(worker, followed):
    wire = changed("verdict.lastProofOfLife", "2026-01-01T11:50:01Z")
    await worker.lines.put(wire)
    await until(lambda: followed.state(OWNER, "u").connected)
    assert len(followed.told) == 1
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
    await until(lambda: followed.state(OWNER, "u").report.verdict.last_proof_of_life == since)
    assert len(followed.told) == 1, "a probe's figures are no news"
    await worker.lines.put(changed("verdict.state", "Stalled"))
    await until(lambda: len(followed.told) == 2)


async def test_a_step_of_a_start_is_not_urgent(worker, followed):
    """A download has one a second: it would keep the queue's front for as long as it lasts."""
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
        count = len(followed.told)
        await worker.lines.put(wire)
        await until(lambda count=count: len(followed.told) > count)
    first, step, stalled, message, ready, refused = (urgent for _, urgent in followed.told)
    assert (step, message) == (False, False)
    assert (first, stalled, ready, refused) == (True, True, True, True)


async def test_a_short_cut_is_not_told_and_a_long_one_is(worker, followed):
    await worker.lines.put(WIRE)
    await until(lambda: followed.state(OWNER, "u").connected)
    await worker.lines.put(None)
    await until(lambda: not followed.state(OWNER, "u").connected)
    assert not followed.state(OWNER, "u").grace_expired, "within the grace the last report stands"
    assert followed.state(OWNER, "u").report is not None
    await worker.lines.put(WIRE)
    await until(lambda: followed.state(OWNER, "u").connected)
    assert len(followed.told) == 2
    await worker.runner.cleanup()
    await until(lambda: followed.state(OWNER, "u").grace_expired and not followed.state(OWNER, "u").connected)
    assert len(followed.told) == 3
    assert followed.state(OWNER, "u").error


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"x" * (MAX_REPORT_BYTES + 1), "larger than"),
        (b"x" * (MAX_REPORT_BYTES + 1) + b"\n", "larger than"),
        (b"nonsense\n", "malformed report"),
        (changed("podUid", "v"), "of another pod"),
    ],
)
async def test_a_bad_stream_is_not_believed(worker, followed, line, told):
    worker.greeting = line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
    await until(lambda: told in followed.state(OWNER, "u").error)
    assert followed.state(OWNER, "u").report is None
    await until(lambda: followed.state(OWNER, "u").grace_expired)
    assert followed.told == [(OWNER, True)]


async def test_a_flood_is_cut(worker, followed):
    flood = b"".join(
        json.dumps(changed("verdict.message", str(number))).encode() + b"\n" for number in range(500)
    )
    await worker.lines.put(flood)
    await until(lambda: "reports per second" in followed.state(OWNER, "u").error)
    assert len(followed.told) < 100


async def test_follow_ends_what_is_no_longer_wanted(worker, followed):
    await worker.lines.put(WIRE)
    await until(lambda: followed.state(OWNER, "u").connected)
    followed.sync_targets(("ns", "other"), [])
    assert followed.state(OWNER, "u").connected, "another endpoint's streams stay"
    assert not followed.sync_targets(OWNER, [TARGET])
    assert followed.sync_targets(OWNER, [TARGET, ReportTarget("v", "127.0.0.1", OWNER)])
    followed.sync_targets(OWNER, [])
    assert followed.state(OWNER, "u") == StreamState()
    await until(lambda: worker.gone == 1)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "report-connect"]


async def test_one_that_was_just_asked_may_answer_any_moment_and_then_no_longer(worker, followed):
    worker.greeting = b""
    assert followed.sync_targets(OWNER, [TARGET]), "asked at the fixture's start"
    await asyncio.sleep(reports_module.FIRST_REPORT_SECONDS + 0.1)
    assert not followed.sync_targets(OWNER, [TARGET])


async def test_one_that_is_heard_and_lost_again_and_again_is_waited_for_by_nobody(
    worker, followed, monkeypatch
):
    monkeypatch.setattr(reports_module, "FIRST_REPORT_SECONDS", 60)
    await worker.lines.put(WIRE)
    await until(lambda: followed.state(OWNER, "u").connected)
    await worker.lines.put(None)
    await until(lambda: not followed.state(OWNER, "u").connected)
    assert not followed.state(OWNER, "u").grace_expired, "it may come back"
    assert not followed.sync_targets(OWNER, [TARGET])


async def test_what_is_logged_of_a_stream_is_not_of_the_look_that_began_it(worker, monkeypatch, caplog):
    monkeypatch.setattr(reports_module, "_FIRST_RETRY_SECONDS", 10)
    look, seen = contextvars.ContextVar("look", default=""), []
    caplog.set_level("INFO", logger="vllmendpoint_operator.reports.streams")
    caplog.handler.addFilter(lambda record: seen.append(look.get()) or True)
    async with ReportStreams(lambda *what: None, port=worker.port) as reports:
        look.set("the one that began it")
        reports.sync_targets(OWNER, [TARGET])
        worker.greeting = json.dumps(WIRE).encode() + b"\nnonsense\n"
        await until(lambda: seen)
    assert seen == [""]


async def test_one_that_was_heard_is_asked_again_soon(worker, followed):
    """However it ended: a container that restarts is not waited for as long as one that was never there."""
    worker.greeting = json.dumps(WIRE).encode() + b"\nnonsense\n"
    await until(lambda: worker.asked >= 10)


async def test_what_moves_all_the_time_is_looked_at_when_it_is_asked_for(worker, followed):
    await worker.lines.put(WIRE)
    await until(lambda: followed.state(OWNER, "u").connected)
    await worker.lines.put(changed("time", "2026-99-99T11:50:01Z"))
    await until(lambda: followed.state(OWNER, "u").error.startswith("malformed report: time"))
    assert followed.state(OWNER, "u").report is None


async def test_of_what_moves_all_the_time_the_newest_is_told(worker, followed):
    await worker.lines.put(WIRE)
    await until(lambda: followed.state(OWNER, "u").connected)
    await worker.lines.put({**WIRE, "time": "2026-01-01T11:50:09Z"})
    await until(lambda: str(followed.state(OWNER, "u").report.time).startswith("2026-01-01 11:50:09"))
    assert len(followed.told) == 1, "no news"


async def test_given_up_while_it_is_connected_it_stays_given_up(worker, monkeypatch):
    monkeypatch.setattr(reports_module, "_FIRST_RETRY_SECONDS", 0.01)
    async with ReportStreams(lambda *what: None, port=worker.port) as reports:
        for steps in range(12):
            reports.sync_targets(OWNER, [TARGET])
            for _ in range(steps):
                await asyncio.sleep(0)
            reports.sync_targets(OWNER, [])
        await asyncio.sleep(0.2)
        await until(lambda: worker.asked == worker.gone)
