"""The prober with a fake engine: when it probes, what it aborts, which verdict follows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.worker.probed_engine import FakeEngine, letters, now, probing, settings, until
from tests.unit.worker.virtual_time import LoopClock, on_virtual_time
from vllmendpoint_api import Mode, Outcome, Stage, Verdict
from vllmendpoint_worker.engine import liveness
from vllmendpoint_worker.errors import ProbeUnavailableError
from vllmendpoint_worker.payload.expect import Expectation
from vllmendpoint_worker.probing.probe import ProbeResult
from vllmendpoint_worker.probing.prober import Prober, ProbeSettings, next_probe_at
from vllmendpoint_worker.probing.progress import PROBE_PREFIX, RankProgress
from vllmendpoint_worker.probing.publisher import HealthPublisher
from vllmendpoint_worker.probing.verdict import VerdictRules, VerdictState
from vllmendpoint_worker.serving.state import WorkerState

pytestmark = pytest.mark.timeout(30)


@on_virtual_time
async def test_finished_user_requests_do_not_postpone_a_probe_with_an_expected_text() -> None:
    engine = FakeEngine()
    given = replace(settings(period=0.4), expect=Expectation("ef", letters))
    async with probing(engine, given) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        began = now()
        while len(engine.request_times) < 4:
            engine.progress.record_finished([("cmpl-1-0", True)])
            assert now() - began < 5.0
            await asyncio.sleep(0.05)


@on_virtual_time
async def test_a_new_expression_is_probed_immediately() -> None:
    engine = FakeEngine()
    given = settings(period=60.0)
    async with probing(engine, replace(given, expect=Expectation("x", letters))) as prober:
        await until(lambda: prober.state.verdict is Verdict.FAILING)
        assert prober.state.reason == "UnexpectedAnswer"
        asked = len(engine.request_times)
        prober.configure(replace(given, expect=Expectation("e", letters)))
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        assert len(engine.request_times) == asked + 1


@on_virtual_time
async def test_a_result_for_old_settings_does_not_change_the_verdict() -> None:
    engine = FakeEngine()
    engine.behaviour = "wait"
    given = replace(settings(period=60.0, timeout=20.0), rules=VerdictRules(20.0, failure_threshold=1))
    async with probing(engine, replace(given, expect=Expectation("x", letters))) as prober:
        await until(lambda: engine.running == 1)
        prober.configure(replace(given, expect=Expectation("e", letters)))
        verdicts = set()
        engine.go.set()
        await until(lambda: verdicts.add(prober.state.verdict) or prober.last_result is not None)
        assert verdicts == {Verdict.STARTING, Verdict.GENERATING}
        assert len(engine.request_times) == 2


@on_virtual_time
async def test_every_result_is_counted_once() -> None:
    engine = FakeEngine()
    ended: list[Any] = []
    prober = Prober(
        engine,
        settings(period=60.0),
        progress=engine.progress,
        publish=lambda: None,
        on_result=ended.append,
        clock=LoopClock(),
    )
    task = asyncio.create_task(prober.run())
    await until(lambda: len(ended) == 1)
    engine.behaviour = "hang"
    probe = asyncio.create_task(prober.probe_now())
    await until(lambda: engine.running == 1)
    prober.configure(
        settings(period=60.0, token_ids=[9])
    )  # while the probe with the old request is in flight
    engine.behaviour = "answer"
    await until(lambda: len(ended) == 2)
    assert [result.outcome for result in ended] == [Outcome.COMPLETE, Outcome.COMPLETE]
    assert (len(engine.request_times), engine.aborted) == (3, 1), "the probe with the old request is aborted"
    assert (await probe).outcome is Outcome.COMPLETE
    task.cancel()
    await asyncio.wait({task}, timeout=5)


@on_virtual_time
async def test_an_idle_engine_is_probed_once_per_period_by_one_probe_at_a_time() -> None:
    engine = FakeEngine()
    async with probing(engine, settings(period=0.4)) as prober:
        await until(lambda: len(engine.request_times) >= 4)
        gaps = [
            after - before
            for before, after in zip(engine.request_times, engine.request_times[1:], strict=False)
        ]
        assert all(0.35 <= gap <= 0.8 for gap in gaps), gaps
        assert engine.most_running == 1
        assert prober.state.verdict is Verdict.GENERATING


@on_virtual_time
async def test_a_stall_is_detected_within_period_and_timeout_by_one_probe_at_a_time() -> None:
    engine = FakeEngine()
    async with probing(engine, settings(period=0.5, timeout=0.3)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        engine.behaviour = "hang"
        assert await until(lambda: prober.state.verdict is Verdict.STALLED) <= 0.5 + 0.3 + 1.0
        await asyncio.sleep(1.5)
        assert engine.most_running == 1
        engine.behaviour = "answer"
        assert await until(lambda: prober.state.verdict is Verdict.GENERATING) <= 1.6


@on_virtual_time
async def test_stopped_progress_under_traffic_starts_a_probe_immediately() -> None:
    engine = FakeEngine()
    async with probing(engine, settings(period=60.0, timeout=0.3)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        engine.users = 3
        for _ in range(10):  # the engine serves them
            engine.progress.record_step(3, 0.01)
            await asyncio.sleep(0.1)
        assert len(engine.request_times) == 1
        engine.behaviour = "hang"
        assert await until(lambda: prober.state.verdict is Verdict.STALLED) <= 0.3 + 1.0


@on_virtual_time
async def test_finished_user_requests_postpone_the_probe() -> None:
    engine = FakeEngine()
    async with probing(engine, settings(period=0.4)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        for _ in range(15):
            engine.progress.record_finished([("cmpl-1-0", True)])
            await asyncio.sleep(0.1)
        assert len(engine.request_times) == 1
        assert prober.last_proof == pytest.approx(now(), abs=0.3)
        assert await until(lambda: len(engine.request_times) == 2) <= 0.8


@on_virtual_time
async def test_probes_and_failed_requests_are_not_finished_user_requests() -> None:
    progress = RankProgress()
    progress.record_finished([(f"{PROBE_PREFIX}1", True), ("user", False)])
    assert (progress.user_requests_finished, progress.last_user_request_finished) == (0, None)


@on_virtual_time
async def test_an_engine_is_busy_while_it_schedules_tokens_and_stalled_when_it_stops() -> None:
    engine = FakeEngine()
    async with probing(engine, settings(period=0.4, timeout=0.4)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        engine.behaviour, engine.users = "hang", 8
        seen = set()
        for _ in range(30):
            engine.progress.record_step(8, 0.02)
            await asyncio.sleep(0.05)
            seen.add(prober.state.verdict)
        assert seen <= {Verdict.GENERATING, Verdict.BUSY}
        assert Verdict.BUSY in seen
        assert await until(lambda: prober.state.verdict is Verdict.STALLED) <= 0.4 + 1.0


@on_virtual_time
async def test_busy_turns_into_stalled_without_another_probe() -> None:
    engine = FakeEngine()
    async with probing(engine, settings(period=60.0, timeout=2.0)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        engine.behaviour, engine.users = "hang", 8
        probe = asyncio.create_task(prober.probe_now())
        began = now()
        while not probe.done():
            if now() - began < 1.5:  # the last tokens are scheduled before the probe ends
                engine.progress.record_step(8, 0.02)
            await asyncio.sleep(0.02)
        assert prober.state.verdict is Verdict.BUSY
        assert await until(lambda: prober.state.verdict is Verdict.STALLED) < 1.9
        assert all(asked >= prober.state.since for asked in engine.request_times[2:])


@pytest.mark.parametrize("stay", [True, False], ids=["users-wait", "users-hang-up"])
@on_virtual_time
async def test_a_busy_engine_without_user_requests_is_probed_before_it_counts_as_stalled(stay: bool) -> None:
    engine = FakeEngine()
    async with probing(engine, settings(period=60.0, timeout=1.0)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        engine.behaviour, engine.users = "hang", 8
        probe = asyncio.create_task(prober.probe_now())
        while not probe.done():
            engine.progress.record_step(8, 0.02)
            await asyncio.sleep(0.02)
        assert prober.state.verdict is Verdict.BUSY
        engine.behaviour, engine.users = ("hang", 8) if stay else ("wait", 0)
        asyncio.get_running_loop().call_later(1.5, engine.go.set)
        seen = set()
        end = Verdict.STALLED if stay else Verdict.GENERATING
        assert await until(lambda: seen.add(prober.state.verdict) or prober.state.verdict is end) <= 2.0
        assert seen == {Verdict.BUSY, end}


@on_virtual_time
async def test_a_changed_request_is_probed_immediately() -> None:
    engine = FakeEngine()
    async with probing(engine, settings(period=60.0)) as prober:
        await until(lambda: len(engine.requests) == 1)
        prober.configure(settings(period=60.0, token_ids=[9]))
        await until(lambda: len(engine.requests) == 2)
        assert engine.requests[1] == {"token_ids": [9]}


@on_virtual_time
async def test_a_stream_that_the_engine_cancels_is_an_error() -> None:
    engine = FakeEngine()
    engine.behaviour = "cancelled"
    async with probing(engine, settings(period=5.0)) as prober:
        await until(lambda: prober.state.verdict is Verdict.FAILING)
        engine.behaviour = "answer"
        await until(lambda: prober.state.verdict is Verdict.GENERATING)


@asynccontextmanager
async def hanging() -> AsyncIterator[tuple[FakeEngine, Prober, "asyncio.Task[ProbeResult]"]]:
    """A probe on demand that hangs, with a timeout of five minutes."""
    engine = FakeEngine()
    async with probing(engine, settings(period=60.0, timeout=300.0)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        engine.behaviour = "hang"
        asked = asyncio.create_task(prober.probe_now())
        await until(lambda: engine.running == 1)
        yield engine, prober, asked


@on_virtual_time
@pytest.mark.parametrize(
    "changed",
    [settings(period=60.0, timeout=300.0, token_ids=[9]), settings(period=60.0, timeout=1.0)],
    ids=["another request", "a shorter timeout"],
)
async def test_a_hanging_probe_does_not_delay_new_settings(changed: ProbeSettings) -> None:
    async with hanging() as (engine, prober, asked):
        engine.behaviour = "answer"
        prober.configure(changed)
        assert await until(asked.done) < 3.0
        assert (await asked).outcome is Outcome.COMPLETE, "the caller gets a result of the new settings"
        assert engine.aborted == 1


@on_virtual_time
async def test_a_hanging_probe_is_aborted_when_probing_is_turned_off() -> None:
    async with hanging() as (engine, prober, asked):
        prober.configure(settings(mode=Mode.DISABLED))
        with pytest.raises(ProbeUnavailableError):
            await asyncio.wait_for(asked, 3.0)
        assert (engine.aborted, engine.running) == (1, 0)


@on_virtual_time
async def test_no_probe_is_sent_while_probing_is_off() -> None:
    engine = FakeEngine()
    async with probing(engine, settings(mode=Mode.DISABLED)) as prober:
        with pytest.raises(ProbeUnavailableError):
            await prober.probe_now()
        await asyncio.sleep(0.3)
        assert engine.request_times == []
        prober.configure(settings(mode=Mode.OBSERVE))
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        prober.configure(settings(mode=Mode.DISABLED))


@asynccontextmanager
async def checked(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[HealthPublisher, WorkerState, list[str]]]:
    """A serving worker with a liveness check, and the messages with which it would exit."""
    exits: list[str] = []
    monkeypatch.setattr(liveness, "terminate", lambda code, message: exits.append(message))
    state = WorkerState(worker_version="1.2.3", clock=LoopClock())
    publisher = HealthPublisher(state, LoopClock())
    state.enter_stage(Stage.SERVING)
    check = asyncio.create_task(liveness.Liveness(state, publisher, lambda: 1.0, LoopClock()).run())
    try:
        yield publisher, state, exits
    finally:
        check.cancel()
        await asyncio.wait({check}, timeout=5)


@on_virtual_time
async def test_a_stall_from_before_probing_was_off_does_not_exit_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FakeEngine()
    engine.behaviour = "hang"
    async with checked(monkeypatch) as (publisher, state, exits), probing(engine, settings()) as prober:
        publisher.prober = prober
        await until(lambda: prober.state.verdict is Verdict.STALLED)
        prober.configure(settings(mode=Mode.DISABLED))
        publisher.publish()
        assert state.readiness() == (True, "")
        assert (publisher.verdict, publisher.is_healthy(), publisher.is_healthy_for_dynamo()) == (
            Verdict.DISABLED,
            True,
            True,
        )
        await asyncio.sleep(1.0)
        engine.behaviour = "wait"
        prober.configure(settings(timeout=5.0))
        assert prober.state.verdict is Verdict.STARTING
        await until(lambda: engine.running == 1)
        await asyncio.sleep(2 * liveness.HEARTBEAT_SECONDS)
        engine.go.set()
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        assert exits == []


@on_virtual_time
async def test_turning_probing_on_keeps_a_healthy_worker_ready() -> None:
    engine = FakeEngine()
    async with probing(engine, settings()) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        prober.configure(settings(mode=Mode.DISABLED))
        prober.configure(settings())
        assert prober.state.verdict is Verdict.GENERATING


@on_virtual_time
async def test_concurrent_callers_share_a_probe_on_demand() -> None:
    engine = FakeEngine()
    async with probing(engine, settings(period=60.0)) as prober:
        await until(lambda: len(engine.request_times) == 1)
        results = await asyncio.gather(*(prober.probe_now() for _ in range(5)))
        assert len({id(result) for result in results}) == 1
        assert len(engine.request_times) == 2


@on_virtual_time
async def test_a_dead_engine_is_detected_while_a_probe_hangs() -> None:
    engine = FakeEngine()
    async with probing(engine, settings(timeout=20.0)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        engine.behaviour = "hang"
        await until(lambda: engine.running == 1)
        engine.gone = "gone"
        assert await until(lambda: prober.state.verdict is Verdict.DEAD) < 0.5


@on_virtual_time
async def test_failed_probes_repeat_after_one_second_until_the_threshold() -> None:
    engine = FakeEngine()
    async with probing(engine, settings(period=60.0)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        engine.behaviour = "raise"
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.0):
                await prober.probe_now()
        assert await until(lambda: prober.state.verdict is Verdict.FAILING) < 1.7
        gap = engine.request_times[-1] - engine.request_times[-2]
        assert 0.9 <= gap <= 1.4


def test_the_next_probe_depends_on_the_verdict() -> None:
    given = settings(period=30.0, timeout=5.0)
    assert next_probe_at(VerdictState.start(0.0), None, None, given) == 0.0
    assert next_probe_at(VerdictState(Verdict.GENERATING, 0), 100.0, None, given) == 130.0
    assert next_probe_at(VerdictState(Verdict.GENERATING, 0), 100.0, 120.0, given) == 150.0
    assert next_probe_at(VerdictState(Verdict.GENERATING, 0, failures=1), 100.0, 120.0, given) == 101.0
    assert next_probe_at(VerdictState(Verdict.STALLED, 0), 100.0, 120.0, given) == 101.0
    assert next_probe_at(VerdictState(Verdict.BUSY, 0), 100.0, None, given) == 105.0
