"""Interrupting requests: the cancellation of the current task becomes an exception of the request."""

import asyncio
from typing import Any

import pytest

from tests.unit.worker.virtual_time import on_virtual_time
from vllmendpoint_worker.errors import RequestInterruptedError
from vllmendpoint_worker.serving.in_flight import InFlightRequest, InFlightRequests

pytestmark = pytest.mark.timeout(30)


async def result(task: "asyncio.Task[Any]") -> str:
    await asyncio.wait({task}, timeout=5)
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return type(error).__name__ if error is not None else task.result()


async def step(request: InFlightRequest, seconds: float) -> str:
    await request.step(asyncio.sleep(seconds))
    return "complete"


@pytest.mark.parametrize(
    ("interrupted", "cancelled", "expected"),
    [
        (False, False, "complete"),
        (True, False, "RequestInterruptedError"),
        (False, True, "cancelled"),
        (True, True, "cancelled"),
    ],
)
@on_virtual_time
async def test_only_an_interruption_becomes_an_error_of_the_request(
    interrupted: bool, cancelled: bool, expected: str
) -> None:
    request = InFlightRequest()
    task = asyncio.create_task(step(request, 1.0))
    await asyncio.sleep(0.1)
    if interrupted:
        request.interrupt()
        request.interrupt()
    if cancelled:
        task.cancel()
    assert await result(task) == expected


@on_virtual_time
async def test_a_request_that_is_interrupted_between_two_steps_ends_at_the_next() -> None:
    request = InFlightRequest()
    await request.step(asyncio.sleep(0.1))
    request.interrupt()
    await asyncio.sleep(0.1)  # the task is not cancelled
    task = asyncio.create_task(step(request, 1.0))
    assert await result(task) == "RequestInterruptedError"


@on_virtual_time
async def test_work_that_ignores_the_cancellation_leaves_none_pending() -> None:
    request = InFlightRequest()

    async def stubborn() -> str:
        try:
            await asyncio.sleep(1.0)
        except asyncio.CancelledError:
            return "done"
        return "not interrupted"

    async def run() -> tuple[str, int]:
        task = asyncio.current_task()
        assert task is not None
        return await request.step(stubborn()), task.cancelling()

    task = asyncio.create_task(run())
    await asyncio.sleep(0.1)
    request.interrupt()
    assert await task == ("done", 0)
    with pytest.raises(RequestInterruptedError):
        await step(request, 1.0)


@on_virtual_time
async def test_all_requests_in_flight_are_interrupted_once() -> None:
    requests = InFlightRequests()

    async def serve(seconds: float) -> str:
        with requests.track() as request:
            return await step(request, seconds)

    tasks = [asyncio.create_task(serve(seconds)) for seconds in (0.1, 1.0, 2.0)]
    await asyncio.sleep(0.2)
    assert len(requests) == 2
    assert not await requests.wait_until_ended(0.5)
    assert (requests.interrupt(), requests.interrupt()) == (2, 0)
    assert await requests.wait_until_ended(0.5)
    results = ["complete", *["RequestInterruptedError"] * 2]
    assert [await result(task) for task in tasks] == results
    assert requests.interrupt() == 0
