"""The drain waits for requests in flight, unless the engine cannot answer them; the first cause of an exit
counts.
"""

import subprocess
import sys

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


WATCHED_CHILD = """
import multiprocessing, subprocess, threading, time
from vllmendpoint_worker.process.shutdown import PROCESS_GROUPS, terminate

child = subprocess.Popen(["sleep", "60"], start_new_session=True)
PROCESS_GROUPS.add(child.pid)

def watch():
    child.wait()
    PROCESS_GROUPS.discard(child.pid)
    terminate(1, "the child has ended")

threading.Thread(target=watch, daemon=True).start()
multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)).start()  # terminate() waits for it
terminate(0)
"""


def test_the_first_cause_of_the_exit_counts() -> None:
    """The exit ends the children, and a thread that watches one of them notices."""
    command = [sys.executable, "-c", WATCHED_CHILD]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        assert process.communicate(timeout=60)[1] == b""
    assert {process.returncode for process in running} == {0}
