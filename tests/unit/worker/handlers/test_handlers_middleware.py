"""Errors of middleware, of pre- and post-processing, and of tasks and threads that a script starts."""

import asyncio
import threading

import pytest

from tests.unit.worker.handlers_served import INVOCATION_HEAD, Served
from vllmendpoint_worker.process.clock import Clock


@pytest.mark.parametrize("middleware", [False, True])
async def test_a_repeated_failure_of_ping_is_logged_once_a_minute(
    served: Served, log: pytest.LogCaptureFixture, middleware: bool
) -> None:
    class ManualClock(Clock):
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = served.manager._clock = ManualClock()
    handlers = (
        "async def custom_sagemaker_ping_handler(request):\n    raise RuntimeError\n"
        f"{INVOCATION_HEAD}    raise RuntimeError\n"
    )
    served.script(f"{PROCESSING}input_formatter(pre)\n" if middleware else handlers)
    await served.start()

    async def lines(path: str, times: int) -> int:
        log.clear()
        for _ in range(times):
            clock.now += 2.0
            assert (await served.request(path, {})).status_code == 500
        return log.text.count("The middleware failed" if middleware else "The custom handler failed")

    assert await lines("/ping", 10) == 1
    assert await lines("/ping", 30) == 1
    assert await lines("/invocations", 3) == 3, "each request has its own"
    assert served.newest_error().route == "/invocations"


async def test_an_error_in_a_task_of_a_script_with_only_middleware_is_reported(served: Served) -> None:
    served.script(f"""{PROCESSING}
del custom_sagemaker_invocation_handler
custom_middleware("throttle")(throttle)
import asyncio
async def poll():
    fail()
asyncio.create_task(poll())
""")
    await served.start()
    await asyncio.sleep(0.05)
    assert served.newest_error().message == "A task of the handlers raised ValueError at model.py line 6."


@pytest.mark.parametrize("where", ["import", "request"])
async def test_an_error_in_a_thread_is_reported(
    served: Served, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    printed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    served.manager.report_thread_errors()
    start = "threading.Thread(target=poll).start()"
    served.script(
        "import threading\ngo = threading.Event()\ndef poll():\n    go.wait()\n"
        "    raise KeyError('the secret token')\n"
        f"{start if where == 'import' else ''}\n"
        f"{INVOCATION_HEAD}    {start if where == 'request' else 'pass'}\n    go.set()\n"
    )
    await served.start()
    assert (await served.request("/invocations", {})).status_code == 200
    for thread in threading.enumerate():
        if "(poll)" in thread.name:
            thread.join(5)
    assert served.newest_error().message == "A thread of the handlers raised KeyError at model.py line 5."
    assert len(printed) == 1, "the log has the traceback"


PROCESSING = """
from model_hosting_container_standards.common.fastapi.middleware import (
    custom_middleware, input_formatter, output_formatter,
)
def fail():
    raise ValueError("the secret token")
async def custom_sagemaker_invocation_handler(request):
    return 1
async def pre(request):
    fail()
async def post(response):
    fail()
async def throttle(request, call_next):
    fail()
"""


@pytest.mark.parametrize(
    "decorated", ["input_formatter(pre)", "output_formatter(post)", "custom_middleware('throttle')(throttle)"]
)
async def test_errors_of_pre_and_post_processing_are_reported(
    served: Served, log: pytest.LogCaptureFixture, decorated: str
) -> None:
    served.script(f"{PROCESSING}{decorated}\n")
    await served.start()
    assert (await served.request("/invocations", {})).status_code == 500
    assert served.newest_error().message == "The middleware raised ValueError at model.py line 6."
    assert served.newest_error().message in log.text


async def test_an_error_below_the_middleware_is_not_reported_as_the_middlewares(served: Served) -> None:
    served.script("""
from model_hosting_container_standards.common.fastapi.middleware import custom_middleware
@custom_middleware("throttle")
async def throttle(request, call_next):
    return await call_next(request)
""")

    async def broken() -> None:
        raise KeyError("x")

    served.manager._vllm_app.add_api_route("/v1/broken", broken)  # type: ignore[union-attr]
    await served.start()
    assert (await served.request("/v1/broken", method="GET")).status_code == 500
    assert served.manager.report().last_error is None


async def test_a_middleware_that_cannot_be_created_is_rejected(served: Served) -> None:
    served.script("""
from model_hosting_container_standards.common.fastapi.middleware import custom_middleware
@custom_middleware("throttle")
class Throttle:
    def __init__(self, app, limit):
        self.app = app
""")
    problem = await served.rejection()
    assert problem.message.startswith("The middleware cannot be created: TypeError")
