"""Background tasks are cancelled and awaited, and one that ends early ends the process."""

import asyncio

import pytest

from vllmendpoint_worker.process import task_supervisor
from vllmendpoint_worker.process.task_supervisor import TaskSupervisor


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    exits: list[tuple[int, str]] = []
    monkeypatch.setattr(task_supervisor, "terminate", lambda code, message: exits.append((code, message)))
    return exits


async def test_stop_cancels_all_tasks_and_waits_for_them(exits: list[tuple[int, str]]) -> None:
    tasks = TaskSupervisor()
    closed: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            closed.append(name)

    for name in ("one", "two"):
        tasks.start(name, work(name))
    await asyncio.sleep(0)
    await tasks.stop()
    await tasks.stop()
    assert (sorted(closed), exits) == (["one", "two"], [])


async def test_a_task_that_ends_early_ends_the_process(exits: list[tuple[int, str]]) -> None:
    tasks = TaskSupervisor()

    async def fail() -> None:
        raise ValueError("hunter2")

    async def end() -> None:
        return

    tasks.start("prober", fail())
    await asyncio.sleep(0.01)
    tasks.start("ping", end())
    await asyncio.sleep(0.01)
    assert exits == [
        (1, "The worker's task prober failed: ValueError."),
        (1, "The worker's task ping ended."),
    ]
    await tasks.stop()
