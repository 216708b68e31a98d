"""ScriptLoader that load upstream, on the main thread under the running loop, load here too."""

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from aiohttp import web

from tests.unit.worker.handlers_served import Served
from vllmendpoint_api import Reason
from vllmendpoint_worker.config.handler_config import read_handler_config
from vllmendpoint_worker.handlers.loading import _script_loop

PING = "\nasync def custom_sagemaker_ping_handler(request):\n    return 1\n"
Scenario = Callable[[], Coroutine[Any, Any, None]]


async def under(loop: str, scenario: Scenario) -> None:
    """On pytest's own loop, which is asyncio's, or on one like the worker's."""
    if loop == "asyncio":
        await scenario()
    else:
        await asyncio.to_thread(uvloop.run, scenario())


def script_module() -> Any:
    return next(m for n, m in reversed(sys.modules.items()) if n.startswith("vllmendpoint_handlers"))


LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@LOOPS
async def test_a_script_creates_an_aiohttp_session(served: Served, loop: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"by": "the other service"})

    async def scenario() -> None:
        app = web.Application()
        app.router.add_get("/", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        served.script(f"""
import aiohttp
session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
async def custom_sagemaker_ping_handler(request):
    async with session.get("http://127.0.0.1:{port}/") as answer:
        return await answer.json()
""")
        try:
            await served.start()
            for _ in range(2):  # the connection is kept
                response = await served.request()
                assert response.json() == {"by": "the other service"}, served.manager.report().last_error
            await script_module().session.close()
        finally:
            await runner.cleanup()

    await under(loop, scenario)


@LOOPS
async def test_a_script_uses_the_running_loop(served: Served, loop: str) -> None:
    async def scenario() -> None:
        served.script("""
import asyncio
policy = asyncio.get_event_loop_policy()
loops = [asyncio.get_event_loop(), asyncio.get_running_loop(), policy.get_event_loop()]
future, lock, queue = loops[0].create_future(), asyncio.Lock(), asyncio.Queue()
order = []
loops[0].call_soon(order.append, "soon")
loops[0].call_later(0.01, future.set_result, "later")
async def custom_sagemaker_ping_handler(request):
    async with lock:
        await queue.put(await asyncio.wait_for(future, 5))
        aside = await loops[0].run_in_executor(None, lambda: "aside")
        same = [loop is asyncio.get_running_loop() for loop in loops]
        return [*order, await queue.get(), aside, *same]
""")
        await served.start()
        assert (await served.request()).json() == ["soon", "later", "aside", True, True, True]
        running: Any = asyncio.get_running_loop()
        assert not {"call_soon", "create_task", "stop"} & vars(running).keys(), "it is as it was"

    await under(loop, scenario)


TASK = """
import asyncio
seen = []
async def poll():
    seen.append(DEFINED_LATER)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise
task = asyncio.create_task(poll(), name="poll")
import time
time.sleep(0.2)
DEFINED_LATER = "whole"
"""


@LOOPS
async def test_a_task_begins_after_the_import_of_the_script(served: Served, loop: str) -> None:
    async def scenario() -> None:
        handler = "async def custom_sagemaker_ping_handler(request):\n    return [seen, task.get_name()]\n"
        served.script(TASK + handler)
        await served.start()
        await asyncio.sleep(0.01)
        assert (await served.request()).json() == [["whole"], "poll"]
        script_module().task.cancel()
        await asyncio.sleep(0.01)

    await under(loop, scenario)


async def test_tasks_of_a_former_script_are_cancelled_after_its_last_request(served: Served) -> None:
    served.script(
        TASK + "go = asyncio.Event()\n"
        "async def custom_sagemaker_invocation_handler(request):\n    await go.wait()\n    return 1\n"
    )
    await served.start()
    old = script_module()
    asked = asyncio.create_task(served.request("/invocations", {}))
    await asyncio.sleep(0.05)
    served.script(PING)
    await served.start()
    await asyncio.sleep(0.01)
    assert old.seen == ["whole"], "a request of the old handlers is under way"
    old.go.set()
    assert (await asked).json() == 1
    await asyncio.sleep(0.01)
    assert old.seen == ["whole", "cancelled"]


async def test_tasks_of_a_former_script_without_requests_are_cancelled_immediately(served: Served) -> None:
    served.script(TASK + PING)
    await served.start()
    old = script_module()
    await asyncio.sleep(0.01)
    served.script(PING)
    await served.start()
    await asyncio.sleep(0.01)
    assert old.seen == ["whole", "cancelled"]


async def test_a_rejected_script_leaves_no_task(served: Served) -> None:
    before = asyncio.all_tasks()
    served.script(TASK + "raise KeyError\n")
    await served.rejection()
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == before
    gc.collect()  # no warning of a coroutine that was never awaited


async def test_a_script_that_is_never_activated_leaves_no_task(served: Served) -> None:
    before = asyncio.all_tasks()
    served.script(TASK + PING)
    await served.manager.load(read_handler_config(served.settings, served.settings_dir, served.environ)[0])
    old = script_module()
    served.script(PING)
    await served.start()
    await asyncio.sleep(0.01)
    assert old.seen == []
    assert asyncio.all_tasks() == before


async def test_a_task_that_fails_is_reported(served: Served) -> None:
    served.script(
        f"import asyncio\nasync def poll():\n    raise KeyError\ntask = asyncio.create_task(poll()){PING}"
    )
    await served.start()
    await asyncio.sleep(0.05)
    error = served.manager.report().last_error
    assert error is not None
    assert error.message == "A task of the handlers raised KeyError at model.py line 3."


async def test_a_script_sets_signal_handlers(served: Served) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    code = """
import asyncio, signal
got = []
old = signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
"""
    for generation in ("one", "two"):
        served.script(f"{code}{PING}# {generation}\n")
        await served.start()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert script_module().got == [signal.SIGUSR1]
        assert script_module().old is before
        served.script(code + "raise KeyError\n")
        await served.rejection()
        assert signal.getsignal(signal.SIGUSR1) is not before
    served.script(PING)
    await served.start()
    assert signal.getsignal(signal.SIGUSR1) is before
    assert signal.signal.__module__ == "signal"


async def test_signal_functions_imported_by_name_work_after_the_import(served: Served) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    served.script("""
import asyncio
from signal import SIGUSR1, getsignal, signal
async def custom_sagemaker_ping_handler(request):
    return signal(SIGUSR1, getsignal(SIGUSR1)) is getsignal(SIGUSR1)
def custom_sagemaker_invocation_handler(request):
    signal(SIGUSR1, getsignal(SIGUSR1))
""")
    await served.start()
    assert (await served.request()).json() is True
    assert (await served.request("/invocations", {})).status_code == 500  # on a thread, as upstream
    assert "raised ValueError at model.py line 7" in str(served.manager.report().last_error)
    assert signal.getsignal(signal.SIGUSR1) is before


async def test_create_task_rejects_an_object_that_is_not_a_coroutine(served: Served) -> None:
    served.script(f"import asyncio\nasync def work():\n    pass\nasyncio.create_task(work){PING}")
    problem = await served.rejection()
    assert "failed at model.py line 4: TypeError: a coroutine was expected" in problem.message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("signal.signal(signal.SIGTERM, print)", "signal=SIGTERM location=model.py line 3"),
        ("asyncio.get_event_loop().add_signal_handler(signal.SIGINT, print)", "signal=SIGINT"),
        ("asyncio.get_event_loop().set_default_executor(ThreadPoolExecutor(1))",
         "method=set_default_executor location=model.py line 3"),
        ("asyncio.get_event_loop().set_exception_handler(print)", "method=set_exception_handler"),
        ("asyncio.get_event_loop().stop()", "method=stop "),
    ],
)  # fmt: skip
async def test_a_script_cannot_replace_the_workers_own_signal_handlers_or_loop_settings(
    served: Served,
    line: str,
    expected: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("vllmendpoint_worker"), "propagate", True)
    before = [signal.getsignal(it) for it in (signal.SIGTERM, signal.SIGINT)]
    served.script(f"import asyncio, signal\nfrom concurrent.futures import ThreadPoolExecutor\n{line}{PING}")
    await served.start()
    assert (await served.request()).json() == 1
    assert [signal.getsignal(it) for it in (signal.SIGTERM, signal.SIGINT)] == before
    assert expected in caplog.text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "asyncio.run(work())",
            "runs an event loop while the worker's is running (model.py line 4). Use asyncio.",
        ),
        ("asyncio.get_event_loop().run_until_complete(work())", "runs an event loop while the worker's is"),
        ("asyncio.new_event_loop().run_until_complete(work())", "runs an event loop while the worker's is"),
        (
            "signal.set_wakeup_fd(-1)",
            "calls a function that needs the main thread, but is imported on another thread",
        ),
    ],
)
@LOOPS
@pytest.mark.filterwarnings("ignore:coroutine 'work' was never awaited", "ignore:unclosed event loop")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_unsupported_calls_at_import_are_rejected_with_a_remedy(
    served: Served, line: str, expected: str, loop: str
) -> None:
    async def scenario() -> None:
        served.script(f"import asyncio, signal\nasync def work():\n    pass\n{line}{PING}")
        problem = await served.rejection()
        assert problem.reason == Reason.HANDLER_IMPORT_FAILED
        assert expected in problem.message
        assert "model.py line 4" in problem.message

    await under(loop, scenario)
    gc.collect()


async def test_a_slow_import_does_not_block_requests(served: Served) -> None:
    served.script(f"import asyncio, time\nloop = asyncio.get_event_loop()\ntime.sleep(1.5){PING}")
    loading = asyncio.create_task(served.start())
    longest = 0.0
    while not loading.done():
        began = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - began)
    await loading
    assert longest < 1.0


async def test_a_call_on_a_blocked_loop_times_out(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_script_loop, "CALL_SECONDS", 0.2)
    served.script(f"import asyncio, time\ntime.sleep(0.1)\nasyncio.get_event_loop().call_soon(print){PING}")
    loading = asyncio.create_task(served.rejection())
    await asyncio.sleep(0.05)
    time.sleep(0.6)
    problem = await loading
    assert "failed at model.py line 3: RuntimeError" in problem.message


async def test_an_abandoned_import_cannot_use_the_loop(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.manager._loader, "_seconds", 1.0)
    served.script("""
import asyncio, threading, time
result = []
try:
    time.sleep(3)
except BaseException:
    pass
try:
    asyncio.get_event_loop().call_soon(result.append, "called")
except RuntimeError as error:
    result.append(str(error))
""")
    assert "not imported within" in (await served.rejection()).message
    thread = next(it for it in threading.enumerate() if it.name == "handlers")
    frame = sys._current_frames()[thread.ident or 0]
    while frame.f_code.co_filename != str(served.folder / "model.py"):
        assert frame.f_back is not None
        frame = frame.f_back
    namespace = frame.f_globals
    thread.join(10)
    assert namespace["result"] == ["the import of this script was given up"]
    served.script(PING)
    monkeypatch.setattr(served.manager._loader, "_seconds", 30.0)
    await served.start()
    running: Any = asyncio.get_running_loop()
    assert "call_soon" not in vars(running)
