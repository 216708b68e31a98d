"""The drain waits for requests in flight, unless the engine cannot answer them."""

import pytest

from vllmendpoint_worker.process import shutdown
from vllmendpoint_worker.process.clock import Clock


class FastClock(Clock):
    """One hour passes with each call."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 3600.0
        return self.now


async def test_the_drain_ends_with_the_last_request() -> None:
    left = [2, 2, 1, 0]
    await shutdown.wait_for_drain(lambda: left.pop(0), lambda: False, Clock())
    assert not left


async def test_the_drain_gives_up_on_an_engine_that_cannot_answer(caplog: pytest.LogCaptureFixture) -> None:
    give_up = [False, True]
    await shutdown.wait_for_drain(lambda: 3, lambda: give_up.pop(0), Clock())
    assert not give_up
    assert "not complete: count=3" in caplog.text


async def test_the_drain_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    await shutdown.wait_for_drain(lambda: 1, lambda: False, FastClock())
    assert "not complete: count=1" in caplog.text
