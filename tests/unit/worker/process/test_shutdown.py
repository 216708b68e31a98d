"""Requests in flight are waited for, unless nobody will ever answer them."""

import pytest

from vllmendpoint_worker.process import shutdown
from vllmendpoint_worker.process.clock import Clock


class Fast(Clock):
    """An hour passes with each look."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 3600.0
        return self.now


async def test_drained_when_nobody_waits_any_more() -> None:
    left = [2, 2, 1, 0]
    await shutdown.wait_for_drain(lambda: left.pop(0), lambda: False, Clock())
    assert not left


async def test_nobody_is_waited_for_in_vain(caplog: pytest.LogCaptureFixture) -> None:
    vain = [False, True]
    await shutdown.wait_for_drain(lambda: 3, lambda: vain.pop(0), Clock())
    assert not vain
    assert "cut off: 3" in caplog.text


async def test_waiting_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    await shutdown.wait_for_drain(lambda: 1, lambda: False, Fast())
    assert "cut off: 1" in caplog.text
