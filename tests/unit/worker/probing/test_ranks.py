"""Data parallelism: each rank has its own progress, probes and verdict."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.unit.worker.probed_engine import FakeEngine, now, settings, until
from tests.unit.worker.virtual_time import LoopClock, on_virtual_time
from vllmendpoint_api import Outcome, Stage, Verdict
from vllmendpoint_worker.probing.probe import ProbeTarget
from vllmendpoint_worker.probing.prober import ProbeSettings
from vllmendpoint_worker.probing.progress import EngineProgress
from vllmendpoint_worker.probing.publisher import HealthPublisher
from vllmendpoint_worker.probing.ranks import RankProbers
from vllmendpoint_worker.probing.trial import warm_up
from vllmendpoint_worker.serving.state import WorkerState

pytestmark = pytest.mark.timeout(30)


class Engines:
    """One fake engine for each rank. ``requested``: the ranks that were requested."""

    def __init__(self, *ranks: int) -> None:
        self.progress = EngineProgress(now)
        self.requested: list[int | None] = []
        self.of: dict[int, FakeEngine] = {}
        for rank in ranks:
            self.progress.add_rank(rank)
            self.of[rank] = FakeEngine(self.progress.rank(rank))

    def rank(self, rank: int | None) -> ProbeTarget:
        self.requested.append(rank)
        return self.of[rank] if rank is not None else next(iter(self.of.values()))


@asynccontextmanager
async def probing(
    engines: Engines, given: ProbeSettings, publish: Any = lambda: None
) -> AsyncIterator[RankProbers]:
    ranks = RankProbers(
        engines,
        given,
        progress=engines.progress,
        publish=publish,
        on_result=lambda result: None,
        clock=LoopClock(),
    )
    task = asyncio.create_task(ranks.run())
    try:
        yield ranks
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=5)


@on_virtual_time
async def test_a_stalled_rank_is_named_while_another_makes_progress() -> None:
    engines = Engines(0, 1)
    async with probing(engines, settings(period=0.5, timeout=0.3)) as ranks:
        await until(lambda: ranks.state.verdict is Verdict.GENERATING)
        engines.of[1].behaviour = "hang"
        busy = asyncio.create_task(keep_busy(engines, 0))
        await until(lambda: ranks.state.verdict is Verdict.STALLED)
        assert ranks.state.reason == "EngineStalled"
        assert ranks.state.message.startswith("Data-parallel rank 1 is stalled (1 of 2 ranks): The probe got")
        assert [(one.rank, one.state) for one in ranks.report()] == [
            (0, Verdict.GENERATING),
            (1, Verdict.STALLED),
        ]
        engines.of[1].behaviour = "answer"
        await until(lambda: ranks.state.verdict is Verdict.GENERATING)
        assert ranks.state.message == ""
        busy.cancel()


async def keep_busy(engines: Engines, rank: int) -> None:
    """One rank answers user requests."""
    while True:
        engines.progress.rank(rank).record_step(1, 0.01)
        engines.progress.rank(rank).record_finished([("cmpl-1", True)])
        await asyncio.sleep(0.05)


@on_virtual_time
async def test_finished_user_requests_postpone_only_the_probe_of_their_rank() -> None:
    engines = Engines(0, 1)
    async with probing(engines, settings(period=0.4)) as ranks:
        await until(lambda: ranks.state.verdict is Verdict.GENERATING)
        busy = asyncio.create_task(keep_busy(engines, 0))
        before = len(engines.of[0].request_times), len(engines.of[1].request_times)
        await asyncio.sleep(2.0)
        assert len(engines.of[0].request_times) <= before[0] + 1
        assert len(engines.of[1].request_times) >= before[1] + 3
        busy.cancel()


@on_virtual_time
async def test_the_most_severe_verdict_is_published_with_the_number_of_ranks() -> None:
    engines = Engines(2, 3, 4)
    async with probing(engines, settings(period=0.3, timeout=0.2)) as ranks:
        await until(lambda: ranks.state.verdict is Verdict.GENERATING)
        engines.of[3].behaviour = engines.of[4].behaviour = "hang"
        engines.of[2].behaviour = "raise"
        await until(lambda: [one.state for one in ranks.report()].count(Verdict.STALLED) == 2)
        assert ranks.state.message.startswith("Data-parallel rank 3 is stalled (2 of 3 ranks): ")


@on_virtual_time
async def test_a_single_rank_is_not_named() -> None:
    engines = Engines(0)
    async with probing(engines, settings(period=0.3, timeout=0.2)) as ranks:
        await until(lambda: ranks.state.verdict is Verdict.GENERATING)
        engines.of[0].behaviour = "hang"
        await until(lambda: ranks.state.verdict is Verdict.STALLED)
        assert ranks.state.message.startswith("The probe got no answer")
        assert engines.requested == [None]
        assert ranks.report() == ()


@on_virtual_time
async def test_a_probe_on_demand_probes_every_rank_and_returns_the_most_severe_result() -> None:
    engines = Engines(0, 1)
    async with probing(engines, settings(period=60.0)) as ranks:
        await until(lambda: ranks.state.verdict is Verdict.GENERATING)
        assert (await ranks.probe_now()).outcome is Outcome.COMPLETE
        engines.of[1].behaviour = "hang"
        before = len(engines.of[0].request_times), len(engines.of[1].request_times)
        assert (await ranks.probe_now()).outcome is Outcome.TIMEOUT
        assert (len(engines.of[0].request_times), len(engines.of[1].request_times)) == (
            before[0] + 1,
            before[1] + 1,
        )


@on_virtual_time
async def test_a_trial_uses_a_healthy_rank() -> None:
    engines = Engines(0, 1)
    async with probing(engines, settings(period=0.3, timeout=0.2)) as ranks:
        await until(lambda: ranks.state.verdict is Verdict.GENERATING)
        engines.of[0].behaviour = "hang"
        await until(lambda: ranks.state.verdict is Verdict.STALLED)
        assert (await ranks.run_trial({"token_ids": [9]}, 1.0)).outcome is Outcome.COMPLETE
        assert engines.of[1].requests[-1] == {"token_ids": [9]}


@on_virtual_time
async def test_new_settings_reach_every_rank() -> None:
    engines = Engines(0, 1)
    async with probing(engines, settings(period=60.0)) as ranks:
        await until(lambda: ranks.state.verdict is Verdict.GENERATING)
        ranks.configure(settings(period=60.0, token_ids=[9]))
        await until(lambda: all(one.requests[-1] == {"token_ids": [9]} for one in engines.of.values()))
        assert ranks.probes_with(settings(token_ids=[9]))


@on_virtual_time
async def test_the_proof_of_life_is_the_oldest_of_all_ranks() -> None:
    engines = Engines(0, 1)
    async with probing(engines, settings(period=0.4, timeout=0.3)) as ranks:
        await until(lambda: ranks.last_proof is not None)
        engines.of[1].behaviour = "hang"
        await asyncio.sleep(3.0)
        assert ranks.last_proof is not None
        assert now() - ranks.last_proof > 2.0


@on_virtual_time
async def test_the_report_names_the_rank_and_the_worker_is_not_ready() -> None:
    engines = Engines(0, 1)
    state = WorkerState(worker_version="test", clock=LoopClock())
    publisher = HealthPublisher(state, LoopClock())
    state.enter_stage(Stage.SERVING)
    async with probing(engines, settings(period=0.4, timeout=0.3), publisher.publish) as ranks:
        publisher.prober = ranks
        await until(lambda: state.snapshot.ready)
        engines.of[1].behaviour = "hang"
        await until(lambda: not state.snapshot.ready)
        report = state.report()
        assert report.verdict.state == Verdict.STALLED
        assert "rank 1" in report.verdict.message
        assert [(one.rank, one.state, one.reason) for one in report.ranks] == [
            (0, Verdict.GENERATING, ""),
            (1, Verdict.STALLED, "EngineStalled"),
        ]
        assert not publisher.is_healthy()


async def test_every_rank_is_warmed_up() -> None:
    engines = Engines(0, 1)
    first, other = {"token_ids": [1]}, {"token_ids": [2]}

    async def minimal() -> Mapping[str, Any]:
        raise AssertionError("not needed")

    both = [engines.of[0], engines.of[1]]
    rejected = await warm_up(
        both, first, other, minimal=minimal, read_rejection=lambda error: None, clock=LoopClock()
    )
    assert rejected is None
    assert [engine.requests for engine in both] == [[first, other], [first, other]]


def test_each_rank_has_its_own_progress() -> None:
    progress = EngineProgress(lambda: 5.0)
    progress.add_rank(1)
    assert progress.request_ranks == [None]
    progress.add_rank(0)
    progress.rank(1).record_step(3, 0.5)
    assert (progress.ranks, progress.request_ranks) == ([0, 1], [0, 1])
    assert progress.rank(0).snapshot().last_scheduled is None
    assert progress.rank(1).snapshot().last_scheduled == 5.0
    progress.forget_steps()
    assert progress.rank(1).snapshot().longest_step == 0.0
