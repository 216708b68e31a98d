"""Handlers that block the event loop: the report names them, and a changed script interrupts them."""

import asyncio
import re
import signal
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from tests.unit.worker.handlers_served import Served
from vllmendpoint_api import PingState, Stage, Verdict, VerdictReport
from vllmendpoint_worker.config.handler_config import HandlerConfig, read_handler_config
from vllmendpoint_worker.handlers import HandlerInterrupter, PingProber, _interrupter
from vllmendpoint_worker.handlers.loading import _loader
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.serving.state import WorkerState

PING = "async def custom_sagemaker_ping_handler(request):\n"
CORRECTED = f"{PING}    return 1\n"
BLOCKS = {
    "sleep": "    import time\n    time.sleep(60)\n",
    "loop": "    while True:\n        pass\n",
    "retries": "    import time\n    while True:\n        try:\n            time.sleep(60)\n"
    "        except Exception:\n            pass\n",
    "lock": "    import threading\n    threading.Event().wait(60)\n",
    "socket": "    import socket\n    a, b = socket.socketpair()\n    with a, b:\n        a.recv(1)\n",
}


class ManualClock(Clock):
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Blocked:
    """The event loop as the worker's state observes it, ten times as fast."""

    def __init__(self, served: Served, *, serving: bool = False) -> None:
        self.served = served
        self.beat = time.monotonic()
        self.interrupter = HandlerInterrupter(
            served.manager,
            blocked_for=self.seconds,
            is_serving=lambda: serving,
            pending_config=self.pending_config,
        )

    def seconds(self) -> float:
        silent = time.monotonic() - self.beat
        return silent * 10 if silent > 0.3 else 0.0

    def pending_config(self) -> HandlerConfig | None:
        wanted, problems = read_handler_config(
            self.served.settings, self.served.settings_dir, self.served.environ
        )
        return None if problems else wanted

    async def run(self) -> None:
        while True:
            self.beat = time.monotonic()
            await asyncio.sleep(0.05)


@pytest.fixture
async def blocked(served: Served, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Blocked]:
    monkeypatch.setattr(_interrupter, "_POLL_SECONDS", 0.05)
    before = signal.getsignal(signal.SIGURG)
    state = Blocked(served)
    beating = asyncio.create_task(state.run())
    state.interrupter.start()
    yield state
    state.interrupter.stop()
    state.interrupter._thread.join(5)
    beating.cancel()
    signal.signal(signal.SIGURG, before)


def watch_of(served: Served) -> PingProber:
    return PingProber(
        served.manager,
        address=lambda: ("127.0.0.1", 8080),
        timeout=lambda: 5.0,
        thresholds=lambda: (1, 1),
        on_change=lambda report: None,
    )


def later(served: Served, script: str, seconds: float = 0.6) -> threading.Timer:
    timer = threading.Timer(seconds, served.script, [script])
    timer.start()
    return timer


@pytest.mark.parametrize("name", BLOCKS)
async def test_a_ping_that_blocks_the_loop_is_interrupted_when_the_script_changes(
    served: Served, blocked: Blocked, name: str
) -> None:
    served.script(PING + BLOCKS[name])
    await served.start()
    watch = watch_of(served)
    timer = later(served, CORRECTED)
    began = time.monotonic()
    await watch.run_probe()
    timer.join()
    assert 0.6 <= time.monotonic() - began < 10
    assert watch.report is not None
    assert watch.report.state == PingState.FAILING
    error = served.manager.report().last_error
    assert error is not None
    assert "blocked the worker's event loop at model.py line" in error.message
    assert "interrupted to be replaced" in error.message
    began = time.monotonic()
    await watch.run_probe()  # the old handler is not asked again
    assert time.monotonic() - began < 0.3
    assert watch.report.message.endswith("blocked the worker's event loop and was interrupted")
    await served.start()
    await watch.run_probe()
    assert watch.report.state == PingState.PASSING


async def test_a_task_that_blocks_the_loop_is_interrupted(served: Served, blocked: Blocked) -> None:
    served.script(
        "import asyncio, time\nasync def poll():\n    time.sleep(60)\n"
        f"asyncio.create_task(poll())\n{CORRECTED}"
    )
    await served.start()
    timer = later(served, CORRECTED)
    began = time.monotonic()
    await asyncio.sleep(0.1)
    timer.join()
    assert time.monotonic() - began < 10
    assert "raised HandlerAbortedError at model.py line 3" in str(served.manager.report().last_error)


async def test_a_middleware_that_blocks_the_loop_in_its_constructor_is_interrupted(
    served: Served, blocked: Blocked
) -> None:
    served.script("""
import time
from model_hosting_container_standards.common.fastapi.middleware import custom_middleware
@custom_middleware("throttle")
class Throttle:
    def __init__(self, app):
        time.sleep(60)
""")
    timer = later(served, CORRECTED)
    problem = await served.rejection()
    timer.join()
    assert "at model.py line 7" in problem.message
    await served.start()
    assert (await served.request()).json() == 1


async def test_an_import_that_hangs_is_abandoned_when_the_script_changes(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_loader, "CHANGE_SECONDS", 0.1)
    served.script("import time\nwhile True:\n    time.sleep(0.1)\n")
    timer = later(served, CORRECTED)
    began = time.monotonic()
    problem = await served.rejection()
    timer.join()
    assert 0.6 <= time.monotonic() - began < 10
    assert re.search(r"were not imported within \d s \(model.py line 3\)", problem.message)
    await served.start()
    assert (await served.request()).json() == 1


async def test_unchanged_handlers_are_not_interrupted(served: Served, blocked: Blocked) -> None:
    served.script(f"{PING}    import time\n    time.sleep(1)\n    return 1\n")
    await served.start()
    watch = watch_of(served)
    await watch.run_probe()
    assert watch.report is not None
    assert watch.report.state == PingState.PASSING


async def test_a_handler_of_a_serving_worker_is_interrupted_only_after_the_patience(
    served: Served, blocked: Blocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked.interrupter, "_is_serving", lambda: True)
    served.script(f"{PING}    import time\n    time.sleep(1.5)\n    return 1\n")
    await served.start()
    timer = later(served, CORRECTED, 0.2)
    assert (await served.request()).json() == 1
    timer.join()
    monkeypatch.setattr(_interrupter, "PATIENCE_SECONDS", 5.0)
    timer = later(served, CORRECTED + "# again\n", 0.2)
    assert (await served.request()).status_code == 500
    timer.join()


async def test_code_that_is_not_the_customers_is_not_interrupted(served: Served, blocked: Blocked) -> None:
    served.script(CORRECTED)
    await served.start()
    served.manager.mark_interrupted()
    timer = threading.Timer(0.2, signal.pthread_kill, [threading.main_thread().ident, signal.SIGURG])
    timer.start()
    time.sleep(0.4)
    timer.join()


# --- the report of a blocked event loop ---


def starting() -> tuple[WorkerState, ManualClock]:
    clock = ManualClock()
    state = WorkerState(worker_version="1", clock=clock)
    state.enter_stage(Stage.WARMING)
    state.update(verdict=VerdictReport(state=Verdict.STARTING, since=datetime.now(UTC)))
    state.heartbeat(starting=True)
    return state, clock


def test_the_report_names_a_handler_that_blocks_the_start() -> None:
    state, clock = starting()
    state.blocking_frame = lambda: "model.py line 3"
    clock.now += 7.9
    assert state.report().verdict.state == Verdict.STARTING
    clock.now += 0.2
    report = state.report()
    assert (report.ready, report.started, report.verdict.state) == (False, False, Verdict.STALLED)
    assert "blocked by a custom handler, model.py line 3" in report.verdict.message
    assert (report.stage.name, report.stage.detail) == (
        Stage.WARMING,
        "a custom handler blocks the worker, model.py line 3",
    )
    state.heartbeat(starting=True)
    assert state.report().stage.detail == ""


def test_a_start_that_blocks_the_loop_is_not_a_stall() -> None:
    state, clock = starting()
    clock.now += 1000.0
    assert state.blocked_for() == 0.0
    assert state.report().verdict.state == Verdict.STARTING
    state.heartbeat()
    clock.now += 1000.0
    assert state.blocked_for() == 1000.0
