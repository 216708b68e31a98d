"""Active handlers: changed under traffic, monitored, and isolated from other requests."""

import asyncio
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from tests.unit.worker.handlers_served import Served
from vllmendpoint_api import (
    PingReport,
    PingState,
)
from vllmendpoint_worker.config.handler_config import Route
from vllmendpoint_worker.handlers import PingProber
from vllmendpoint_worker.process.clock import Clock


async def test_requests_in_flight_end_on_the_old_handlers(served: Served) -> None:
    code = """
import asyncio
started = asyncio.Event()
go = asyncio.Event()
async def custom_sagemaker_invocation_handler(request):
    request.app.state.gates.append((started, go))
    started.set()
    await go.wait()
    return "VERSION"
"""
    gates: list[tuple[asyncio.Event, asyncio.Event]] = []
    served.manager._vllm_app.state.gates = gates  # type: ignore[union-attr]
    served.script(code.replace("VERSION", "one"))
    await served.start()
    first = served.manager.report().script_digest
    under_way = asyncio.create_task(served.request("/invocations", {}))
    while not gates:
        await asyncio.sleep(0.01)
    served.script(code.replace("VERSION", "two"))
    await served.start()
    assert served.manager.report().script_digest != first
    second = asyncio.create_task(served.request("/invocations", {}))
    while len(gates) < 2:
        await asyncio.sleep(0.01)
    for _, go in gates:
        go.set()
    assert ((await under_way).json(), (await second).json()) == ("one", "two")


async def test_an_unchanged_script_keeps_its_state(served: Served) -> None:
    served.script(
        "calls = []\ndef custom_sagemaker_ping_handler(r):\n    calls.append(1)\n    return len(calls)\n"
    )
    await served.start()
    assert (await served.request()).json() == 1
    await served.start()
    assert (await served.request()).json() == 2


# --- handlers that misbehave ---


async def test_errors_reach_the_report_without_their_text(served: Served) -> None:
    served.script("""
from fastapi import HTTPException
async def custom_sagemaker_invocation_handler(request):
    if (await request.json()).get("http"):
        raise HTTPException(418, "teapot")
    raise RuntimeError("the secret token")
""")
    await served.start()
    assert (await served.request("/invocations", {"http": True})).status_code == 418
    assert served.manager.report().last_error is None
    assert (await served.request("/invocations", {})).status_code == 500
    error = served.manager.report().last_error
    assert error is not None
    assert error.route == "/invocations"
    assert "raised RuntimeError at model.py line 6" in error.message
    assert "secret" not in error.message


async def test_hanging_threads_do_not_block_other_routes(served: Served) -> None:
    served.script("""
import threading
release = threading.Event()
def custom_sagemaker_invocation_handler(request):
    release.wait(20)
    return 1
""")
    await served.start()
    hanging = [asyncio.create_task(served.request("/invocations", {})) for _ in range(60)]
    await asyncio.sleep(0.2)
    assert (await asyncio.wait_for(served.request("/v1/models", method="GET"), 5)).status_code == 200
    endpoint = served.manager.custom_endpoint(Route.INVOCATIONS)
    assert endpoint is not None
    assert endpoint.running_for() > 0
    endpoint.handler.function.__globals__["release"].set()
    assert {(await answer).json() for answer in hanging} == {1}
    assert endpoint.running_for() == 0


class Ahead(Clock):
    """The real clock, some seconds ahead."""

    seconds = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.seconds

    def wall(self) -> datetime:
        return super().wall() + timedelta(seconds=self.seconds)


HANGING = """
import asyncio, threading, time
release = threading.Event()
def in_a_thread(request):
    release.wait(20)
async def on_the_loop(request):
    while not release.is_set():
        await asyncio.sleep(0.02)
def two_steps(request):
    return on_the_loop(request)
async def raising(request):
    raise KeyError
"""


@pytest.mark.parametrize("name", ["in_a_thread", "on_the_loop", "two_steps"])
async def test_a_handler_that_hangs_is_reported_until_it_returns(
    served: Served, watched: Callable[..., PingProber], name: str
) -> None:
    served.manager._clock = clock = Ahead()
    served.script(HANGING)
    served.environ["CUSTOM_FASTAPI_INVOCATION_HANDLER"] = f"model:{name}"
    await served.start()
    watching = asyncio.create_task(watched().run())
    asked = asyncio.create_task(served.request("/invocations", {}))
    endpoint = served.manager.custom_endpoint(Route.INVOCATIONS)
    assert endpoint is not None
    async with asyncio.timeout(10):
        while not endpoint.running_for():
            await asyncio.sleep(0.01)
    clock.seconds = 590
    served.manager.check_hanging()
    assert served.manager.report().last_error is None, "a long generation is none"
    clock.seconds = 601
    changes, until = served.changes, time.monotonic() + 10
    while served.manager.report().last_error is None:
        assert time.monotonic() < until, "the hanging call is not reported"
        await asyncio.sleep(0.05)
    assert served.changes == changes + 1
    error = served.manager.report().last_error
    assert error is not None
    assert error.route == "/invocations"
    assert error.message == (
        f"model:{name} has not returned from a request for more than 600 s. "
        "The server and the probes continue."
    )
    served.manager.check_hanging()
    assert served.changes == changes + 1, "reported once"
    next(m for n, m in sys.modules.items() if n.startswith("vllmendpoint_handlers")).release.set()
    await asked
    served.manager.check_hanging()
    assert served.manager.report().last_error is None
    assert served.changes == changes + 2
    watching.cancel()


async def test_the_newest_of_hangs_and_errors_is_reported(served: Served) -> None:
    served.manager._clock = clock = Ahead()
    served.script(
        HANGING
        + "custom_sagemaker_ping_handler = raising\ncustom_sagemaker_invocation_handler = on_the_loop\n"
    )

    def reported_route() -> str:
        served.manager.check_hanging()
        error = served.manager.report().last_error
        return error.route if error is not None else ""

    await served.start()
    asked = [asyncio.create_task(served.request("/invocations", {}))]
    await asyncio.sleep(0.1)
    clock.seconds = 605
    assert reported_route() == "/invocations"
    await served.request()
    assert reported_route() == "/ping"
    clock.seconds = 610
    asked.append(asyncio.create_task(served.request("/invocations", {})))
    await asyncio.sleep(0.1)
    clock.seconds = 1300
    assert reported_route() == "/invocations", "another request hangs"
    module = next(m for n, m in sys.modules.items() if n.startswith("vllmendpoint_handlers"))
    served.script("def custom_sagemaker_invocation_handler(request):\n    return 1\n")
    await served.start()
    assert reported_route() == "", "former handlers are not reported"
    module.release.set()
    await asyncio.gather(*asked)


@pytest.fixture
def watched(served: Served) -> Callable[..., PingProber]:
    def make(timeout: Callable[[], float] = lambda: 5.0) -> PingProber:
        def changed(report: PingReport | None) -> None:
            pass

        return PingProber(
            served.manager,
            address=lambda: ("0.0.0.0", 8080),
            timeout=timeout,
            thresholds=lambda: (2, 1),
            on_change=changed,
        )

    return make


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("from fastapi import Response\n    return Response(status_code=503)", "answers 503 instead of 200"),
        ("raise KeyError('x')", "answers 500"),
        ("import time\n    time.sleep(1)", "did not answer within 0.2 s"),
    ],
)
async def test_a_failing_ping_is_reported_after_the_failure_threshold(
    served: Served, watched: Callable[..., PingProber], body: str, expected: str
) -> None:
    served.script("def custom_sagemaker_ping_handler(request):\n    return 'fine'\n")
    seconds = 5.0
    watch = watched(lambda: seconds)
    await served.start()
    await watch.run_probe()
    assert watch.report is not None
    assert watch.report.state == PingState.PASSING
    served.script(f"def custom_sagemaker_ping_handler(request):\n    {body}\n")
    await served.start()
    seconds = 0.2 if "sleep" in body else 5.0
    await watch.run_probe()
    assert watch.report.state == PingState.PASSING, "one failure is below the threshold"
    await watch.run_probe()
    assert watch.report.state == PingState.FAILING
    assert expected in watch.report.message or "does not return" in watch.report.message
    seconds = 5.0
    served.script("def custom_sagemaker_ping_handler(request):\n    return 'fine'\n")
    await served.start()
    await watch.run_probe()
    assert watch.report.state == PingState.PASSING
    served.script("x = 1\n")
    await served.start()
    await watch.run_probe()
    assert watch.report is None, "vLLM's own ping is the verdict's to answer"


async def test_a_ping_that_never_returns_is_not_called_again(
    served: Served, watched: Callable[..., PingProber]
) -> None:
    served.script("""
import threading
release = threading.Event()
calls = []
def custom_sagemaker_ping_handler(request):
    calls.append(1)
    release.wait(20)
""")
    await served.start()
    watch = watched(lambda: 0.2)
    for _ in range(5):
        await watch.run_probe()
        await asyncio.sleep(0.1)
    module = next(m for name, m in sys.modules.items() if name.startswith("vllmendpoint_handlers"))
    assert len(module.calls) <= 2
    assert watch.report is not None
    assert watch.report.state == PingState.FAILING
    assert "does not return" in watch.report.message
    module.release.set()


async def test_a_ping_may_stream_its_response(served: Served, watched: Callable[..., PingProber]) -> None:
    """The framework listens for the end of the client meanwhile."""
    served.script("""
from fastapi.responses import StreamingResponse
async def custom_sagemaker_ping_handler(request):
    async def words():
        yield "fine"
    return StreamingResponse(words())
""")
    await served.start()
    watch, began = watched(), time.monotonic()
    await asyncio.wait_for(watch.run_probe(), 10)
    assert time.monotonic() - began < 10, "the loop is not held up"
    assert watch.report is not None
    assert watch.report.state == PingState.PASSING


DEAF = """while not released.is_set():
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            pass"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise SystemExit(3)", "answers 500"),
        ("raise KeyboardInterrupt", "answers 500"),
        ("raise asyncio.CancelledError", "answers 500"),
        (DEAF, "did not answer within 0.2 s"),
    ],
    ids=["sys.exit", "interrupt", "cancels itself", "ignores cancellation"],
)
async def test_a_ping_cannot_end_its_prober(
    served: Served, watched: Callable[..., PingProber], body: str, expected: str
) -> None:
    served.script(
        "import asyncio, threading\nreleased = threading.Event()\n"
        f"async def custom_sagemaker_ping_handler(request):\n    {body}\n"
    )
    await served.start()
    watch = watched(lambda: 0.2 if "sleep" in body else 5.0)
    await asyncio.wait_for(watch.run_probe(), 10)
    assert watch.report is not None
    assert watch.report.state == PingState.FAILING
    assert expected in watch.report.message or "raised" in watch.report.message
    next(m for name, m in sys.modules.items() if name.startswith("vllmendpoint_handlers")).released.set()
