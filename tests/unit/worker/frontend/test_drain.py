"""The drain of a frontend."""

import asyncio

import pytest

from tests.unit.worker.fake_frontend import FakeFrontend
from tests.unit.worker.virtual_time import LoopClock, on_virtual_time
from vllmendpoint_worker.frontend.drain import (
    ANNOUNCE_SECONDS,
    DEFAULT_DRAIN_SECONDS,
    drain,
    drain_seconds,
    requests_in_flight,
)


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize(
    ("metrics", "count"),
    [
        ("", 0),
        ('dynamo_frontend_active_requests{model="m"} 0\n', 0),
        ('dynamo_frontend_active_requests{model="m"} 2\ndynamo_frontend_active_requests{model="n"} 1\n', 3),
        ('dynamo_frontend_active_requests{model="m"} 1\ndynamo_frontend_inflight_requests{model="m"} 2\n', 2),
        ("other_prefix_queued_requests 4\n", 4),
        ("dynamo_frontend_requests_total 7\n# HELP x_active_requests 9\n", 0),
    ],
)
def test_requests_in_flight_are_read_from_dynamos_gauges(metrics: str, count: int) -> None:
    assert requests_in_flight(metrics) == count


@on_virtual_time
async def test_an_idle_frontend_serves_until_the_nodes_have_updated_the_service() -> None:
    began = now()
    assert await drain(FakeFrontend(), 105.0, LoopClock()) == 0
    assert ANNOUNCE_SECONDS <= now() - began < ANNOUNCE_SECONDS + 2.0


@on_virtual_time
async def test_requests_in_flight_are_completed() -> None:
    frontend = FakeFrontend(in_flight=2)
    asyncio.get_running_loop().call_later(60.01, lambda: setattr(frontend, "in_flight", 0))
    began = now()
    assert await drain(frontend, 105.0, LoopClock()) == 0
    assert 61.0 <= now() - began < 62.0


@on_virtual_time
async def test_a_request_that_does_not_end_is_aborted_at_the_limit() -> None:
    began = now()
    assert await drain(FakeFrontend(in_flight=2), 105.0, LoopClock()) == 2
    assert 104.0 <= now() - began <= 106.0


@on_virtual_time
async def test_a_server_that_does_not_respond_is_not_waited_for() -> None:
    began = now()
    await drain(FakeFrontend(up=False), 105.0, LoopClock())
    assert now() - began < ANNOUNCE_SECONDS + 3.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", DEFAULT_DRAIN_SECONDS),
        ("30", 30.0),
        ("0", 0.0),
        ("-1", DEFAULT_DRAIN_SECONDS),
        ("nan", DEFAULT_DRAIN_SECONDS),
        ("soon", DEFAULT_DRAIN_SECONDS),
    ],
)
def test_the_longest_drain_comes_from_the_environment(text: str, seconds: float) -> None:
    assert drain_seconds({"VLLMENDPOINT_DRAIN_SECONDS": text}) == seconds
