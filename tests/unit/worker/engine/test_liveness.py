"""The exit of a worker over a dead engine."""

import asyncio
from dataclasses import replace

import pytest

from tests.unit.worker.probed_engine import FakeEngine, settings
from tests.unit.worker.virtual_time import LoopClock, on_virtual_time
from vllmendpoint_api import Stage, Verdict
from vllmendpoint_worker.engine import liveness
from vllmendpoint_worker.probing.prober import Prober
from vllmendpoint_worker.probing.publisher import HealthPublisher
from vllmendpoint_worker.serving.state import WorkerState

pytestmark = pytest.mark.timeout(30)


class Exit(BaseException):
    """In the place of the end of the process."""


def make_liveness(
    monkeypatch: pytest.MonkeyPatch, stage: Stage, events: list[str]
) -> tuple[liveness.Liveness, HealthPublisher]:
    def exit_process(code: int, message: str) -> None:
        events.append(message)
        raise Exit

    async def move_requests() -> None:
        await asyncio.sleep(0.5)
        events.append("moved")

    monkeypatch.setattr(liveness, "terminate", exit_process)
    clock = LoopClock()
    state = WorkerState(worker_version="1", clock=clock)
    state.enter_stage(stage)
    publisher = HealthPublisher(state, clock)
    checked = liveness.Liveness(state, publisher, lambda: 0.0, clock)
    checked.move_requests = move_requests
    return checked, publisher


@on_virtual_time
async def test_requests_move_before_the_worker_exits_over_a_dead_engine() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        events: list[str] = []
        checked, publisher = make_liveness(monkeypatch, Stage.SERVING, events)
        engine = FakeEngine()
        prober = Prober(engine, settings(), progress=engine.progress, publish=lambda: None, clock=LoopClock())
        prober.state = replace(prober.state, verdict=Verdict.DEAD)
        publisher.prober = prober
        with pytest.raises(Exit):
            await checked.run()
        assert [event[:18] for event in events] == ["moved", "The engine is dead"]


@on_virtual_time
async def test_requests_move_when_upstream_finds_the_dead_engine_during_the_drain() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        events: list[str] = []
        checked, _ = make_liveness(monkeypatch, Stage.STOPPING, events)
        checked.on_engine_died()
        assert events == []
        with pytest.raises(Exit):
            await checked.run()
        assert [event[:18] for event in events] == ["moved", "The engine is dead"]


@on_virtual_time
async def test_a_worker_without_requests_exits_immediately_over_a_dead_engine() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        events: list[str] = []
        checked, _ = make_liveness(monkeypatch, Stage.WARMING, events)
        with pytest.raises(Exit):
            checked.on_engine_died()
        assert [event[:18] for event in events] == ["The engine is dead"]
