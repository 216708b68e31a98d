"""A worker's report port, and the operator's stream to it."""

from collections.abc import AsyncIterator

import pytest

import vllmendpoint_operator.reports.streams as reports_module
from tests.unit.operator.reports.stream_worker import OWNER, TARGET, Worker
from vllmendpoint_operator.reports.streams import ReportStreams


class RecordingStreams(ReportStreams):
    """``changes`` has the arguments of each call of ``on_change``."""

    def __init__(self, *, port: int) -> None:
        self.changes: list[tuple[tuple[str, str], bool]] = []
        super().__init__(lambda owner, urgent: self.changes.append((owner, urgent)), port=port)


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    async with Worker() as running:
        yield running


@pytest.fixture
async def streams(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RecordingStreams]:
    """The stream to ``worker``."""
    monkeypatch.setattr(reports_module, "CONNECTING_GRACE_SECONDS", 0.6)
    monkeypatch.setattr(reports_module, "_FIRST_RETRY_SECONDS", 0.1)
    recording = RecordingStreams(port=worker.port)
    async with recording:
        recording.sync_targets(OWNER, [TARGET])
        yield recording
