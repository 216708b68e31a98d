"""A key waits at most once, runs at most once at a time, and backs off alone."""

import asyncio

import pytest

import vllmendpoint_operator.controller.queue as queue_module
from vllmendpoint_operator.controller.queue import WorkQueue


@pytest.fixture
async def queue():
    made = WorkQueue()
    yield made
    made.close()


async def take(queue):
    async with asyncio.timeout(2):
        key, _ = await queue.get()
    return key


async def nothing(queue):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await queue.get()


async def test_a_key_waits_once(queue):
    for key in "aabab":
        queue.add(key)
    assert [await take(queue), await take(queue)] == ["a", "b"]
    await nothing(queue)


async def test_a_key_added_while_it_runs_runs_once_more_afterwards(queue):
    queue.add("a")
    assert await take(queue) == "a"
    queue.add("a")
    queue.add("a", urgent=True)
    await nothing(queue)
    queue.done("a")
    assert await take(queue) == "a"
    queue.done("a")
    await nothing(queue)


async def test_urgent_goes_first_and_takes_its_waiting_twin_along(queue):
    for key in "abc":
        queue.add(key)
    queue.add("c", urgent=True)
    queue.add("c")
    assert [await take(queue) for _ in range(3)] == ["c", "a", "b"]
    await nothing(queue)


async def test_urgency_while_running_is_kept(queue):
    queue.add("a")
    await take(queue)
    queue.add("b")
    queue.add("a", urgent=True)
    queue.done("a")
    assert [await take(queue), await take(queue)] == ["a", "b"]


async def test_a_waiting_consumer_is_woken(queue):
    waiting = asyncio.create_task(take(queue))
    await asyncio.sleep(0)
    queue.add("a")
    assert await waiting == "a"


async def test_the_wait_is_told(queue):
    queue.add("a")
    await asyncio.sleep(0.05)
    _, waited = await queue.get()
    assert 0.04 < waited < 1


async def test_a_key_that_waits_needs_no_timer(queue):
    queue.add("a")
    queue.add("b", urgent=True)
    for key in "ab":
        queue.add_after(key, 0.01)
    assert not queue._timers
    assert [await take(queue), await take(queue)] == ["b", "a"]
    await nothing(queue)


async def test_of_several_delays_the_earliest_holds(queue):
    queue.add_after("a", 30)
    queue.add_after("a", 0.02)
    queue.add_after("a", 40)
    assert await take(queue) == "a"
    queue.done("a")
    await nothing(queue)


async def test_backoff_grows_with_jitter_up_to_a_minute_and_is_forgotten(queue, monkeypatch):
    delays = [queue.add_rate_limited("a") for _ in range(12)]
    for number, delay in enumerate(delays):
        ceiling = min(60, 0.5 * 2**number)
        assert ceiling / 2 <= delay <= ceiling
    assert 0.25 <= queue.add_rate_limited("b") <= 0.5, "keys back off alone"
    queue.reset_backoff("a")
    assert queue.add_rate_limited("a") <= 0.5
    for _ in range(5000):
        queue._failures["a"] = 5000
    assert queue.add_rate_limited("a") <= queue_module.BACKOFF_MAX_SECONDS


async def test_a_key_that_rests_does_not_run_whatever_is_added(queue):
    queue.add("a")
    await take(queue)
    queue.add("a")
    queue.done("a", cooldown=0.2)
    queue.add("a", urgent=True)
    queue.add("b")
    assert await take(queue) == "b", "others do not wait for it"
    await nothing(queue)
    assert await take(queue) == "a"
    queue.done("a")
    queue.add("a")
    assert await take(queue) == "a", "it has rested"
    queue.done("a", cooldown=0.05)
    await nothing(queue)
    await nothing(queue)


async def test_forget_drops_all(queue):
    queue.add("a")
    queue.add_rate_limited("a")
    queue.add_after("a", 0.01)
    queue.forget("a")
    await nothing(queue)
    assert len(queue) == 0


async def test_close_ends_the_timers(queue):
    queue.add_after("a", 0.02)
    queue.add("b")
    await take(queue)
    queue.add("b")
    queue.done("b", cooldown=0.02)
    queue.close()
    await nothing(queue)


async def test_many_consumers_never_run_a_key_twice_at_a_time(queue):
    running, seen = set(), []

    async def consume():
        while True:
            key, _ = await queue.get()
            assert key not in running
            running.add(key)
            await asyncio.sleep(0.001)
            running.discard(key)
            seen.append(key)
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
    assert set(seen) == set(range(7))


async def test_a_run_covers_what_was_due_later():
    queue = WorkQueue()
    queue.add_after("a", 0.05)
    queue.add("a")
    await queue.get()
    queue.add_after("b", 0.1)
    queue.done("a")
    key, _ = await queue.get()
    assert key == "b", "nothing more of a"
