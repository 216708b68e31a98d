"""Report streams: what notifies, which streams are open, and when they are opened again."""

import asyncio
import contextvars
import json
from datetime import datetime

import vllmendpoint_operator.reports.streams as reports_module
from tests.unit.operator.reports.stream_worker import OWNER, SINCE, TARGET, WIRE, changed, until
from vllmendpoint_operator.reports.state import ReportTarget, StreamState
from vllmendpoint_operator.reports.streams import ReportStreams


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
