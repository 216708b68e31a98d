"""A key waits at most once, runs at most once at a time, and has a backoff of its own."""

import asyncio

import pytest

import vllmendpoint_operator.controller.queue as queue_module
from vllmendpoint_operator.controller.queue import WorkQueue


@pytest.fixture
async def queue():
    created = WorkQueue()
    yield created
    created.close()


async def get_key(queue):
    async with asyncio.timeout(2):
        key, _ = await queue.get()
    return key


async def assert_nothing_due(queue):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await queue.get()


async def test_a_key_waits_at_most_once(queue):
    for key in "aabab":
        queue.add(key)
    assert [await get_key(queue), await get_key(queue)] == ["a", "b"]
    await assert_nothing_due(queue)


async def test_a_key_added_while_it_runs_runs_once_more(queue):
    queue.add("a")
    assert await get_key(queue) == "a"
    queue.add("a")
    queue.add("a", urgent=True)
    await assert_nothing_due(queue)
    queue.done("a")
    assert await get_key(queue) == "a"
    queue.done("a")
    await assert_nothing_due(queue)


async def test_an_urgent_key_goes_first_and_replaces_its_normal_entry(queue):
    for key in "abc":
        queue.add(key)
    queue.add("c", urgent=True)
    queue.add("c")
    assert [await get_key(queue) for _ in range(3)] == ["c", "a", "b"]
    await assert_nothing_due(queue)


async def test_a_key_added_urgently_while_it_runs_stays_urgent(queue):
    queue.add("a")
    await get_key(queue)
    queue.add("b")
    queue.add("a", urgent=True)
    queue.done("a")
    assert [await get_key(queue), await get_key(queue)] == ["a", "b"]


async def test_adding_a_key_wakes_a_waiting_consumer(queue):
    waiting = asyncio.create_task(get_key(queue))
    await asyncio.sleep(0)
    queue.add("a")
    assert await waiting == "a"


async def test_get_returns_the_time_in_the_queue(queue):
    queue.add("a")
    await asyncio.sleep(0.05)
    _, waited = await queue.get()
    assert 0.04 < waited < 1


async def test_add_after_sets_no_timer_for_a_waiting_key(queue):
    queue.add("a")
    queue.add("b", urgent=True)
    for key in "ab":
        queue.add_after(key, 0.01)
    assert not queue._timers
    assert [await get_key(queue), await get_key(queue)] == ["b", "a"]
    await assert_nothing_due(queue)


async def test_the_earliest_of_several_delays_applies(queue):
    queue.add_after("a", 30)
    queue.add_after("a", 0.02)
    queue.add_after("a", 40)
    assert await get_key(queue) == "a"
    queue.done("a")
    await assert_nothing_due(queue)


async def test_the_backoff_grows_with_jitter_to_a_minute_and_can_be_reset(queue):
    delays = [queue.add_rate_limited("a") for _ in range(12)]
    for number, delay in enumerate(delays):
        ceiling = min(60, 0.5 * 2**number)
        assert ceiling / 2 <= delay <= ceiling
    assert 0.25 <= queue.add_rate_limited("b") <= 0.5, "each key has its own backoff"
    queue.reset_backoff("a")
    assert queue.add_rate_limited("a") <= 0.5
    for _ in range(5000):
        queue.add_rate_limited("a")
    assert queue.add_rate_limited("a") <= queue_module.BACKOFF_MAX_SECONDS


async def test_a_key_does_not_run_during_its_cooldown(queue):
    queue.add("a")
    await get_key(queue)
    queue.add("a")
    queue.done("a", cooldown=0.2)
    queue.add("a", urgent=True)
    queue.add("b")
    assert await get_key(queue) == "b", "the cooldown of a does not delay b"
    await assert_nothing_due(queue)
    assert await get_key(queue) == "a"
    queue.done("a")
    queue.add("a")
    assert await get_key(queue) == "a", "the cooldown has ended"
    queue.done("a", cooldown=0.05)
    await assert_nothing_due(queue)
    await assert_nothing_due(queue)


async def test_close_cancels_all_timers(queue):
    queue.add_after("a", 0.02)
    queue.add("b")
    await get_key(queue)
    queue.add("b")
    queue.done("b", cooldown=0.02)
    queue.close()
    await assert_nothing_due(queue)


async def test_concurrent_consumers_never_run_a_key_twice_at_a_time(queue):
    running, finished = set(), []

    async def consume():
        while True:
            key, _ = await queue.get()
            assert key not in running
            running.add(key)
            await asyncio.sleep(0.001)
            running.discard(key)
            finished.append(key)
            queue.done(key)

    tasks = [asyncio.create_task(consume()) for _ in range(4)]
    for number in range(200):
        queue.add(number % 7, urgent=number % 3 == 0)
        if number % 10 == 0:
            await asyncio.sleep(0.001)
    async with asyncio.timeout(5):
        while len(queue) or running:
            await asyncio.sleep(0.01)
    for task in tasks:
        assert not task.done()
        task.cancel()
    assert set(finished) == set(range(7))


async def test_a_run_cancels_the_timer_of_its_key(queue):
    queue.add_after("a", 0.05)
    queue.add("a")
    await queue.get()
    queue.add_after("b", 0.1)
    queue.done("a")
    key, _ = await queue.get()
    assert key == "b"
