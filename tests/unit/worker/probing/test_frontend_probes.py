"""How the worker answers the probes of frontends."""

import asyncio
from typing import Any

import pytest

from tests.unit.worker.probed_engine import GOOD, FakeEngine, letters, now, probing, settings, until
from tests.unit.worker.virtual_time import LoopClock, on_virtual_time
from vllmendpoint_api import Mode, Stage, Verdict
from vllmendpoint_worker.errors import EngineNotGeneratingError, ProbeUnavailableError
from vllmendpoint_worker.payload.expect import Expectation
from vllmendpoint_worker.probing.frontend_probes import FrontendProbes, Reply, choose_reply
from vllmendpoint_worker.probing.prober import Prober, ProbeSettings
from vllmendpoint_worker.probing.publisher import HealthPublisher
from vllmendpoint_worker.serving.state import WorkerState

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    ("verdict", "proof_age", "expected"),
    [
        (Verdict.DISABLED, None, Reply.ROUTE_ONLY),
        (Verdict.DISABLED, 1.0, Reply.ROUTE_ONLY),
        (Verdict.STARTING, None, Reply.PROBE),
        (Verdict.STARTING, 1.0, Reply.PROBE),
        (Verdict.GENERATING, None, Reply.PROBE),
        (Verdict.GENERATING, 0.0, Reply.REPLAY),
        (Verdict.GENERATING, 9.9, Reply.REPLAY),
        (Verdict.GENERATING, 10.0, Reply.PROBE),
        (Verdict.BUSY, None, Reply.REPLAY),
        (Verdict.BUSY, 99.0, Reply.REPLAY),
        (Verdict.STALLED, 1.0, Reply.REFUSE),
        (Verdict.FAILING, 1.0, Reply.REFUSE),
        (Verdict.DEAD, 1.0, Reply.REFUSE),
    ],
)
def test_the_reply_follows_the_verdict_and_the_age_of_the_proof(
    verdict: Verdict, proof_age: float | None, expected: Reply
) -> None:
    assert choose_reply(verdict, proof_age, 10.0) is expected


def test_every_verdict_has_a_reply() -> None:
    assert all(choose_reply(verdict, None, 10.0) in Reply for verdict in Verdict)


def frontend_probes(prober: Prober) -> FrontendProbes:
    state = WorkerState(worker_version="1", clock=LoopClock())
    state.enter_stage(Stage.SERVING)
    publisher = HealthPublisher(state, LoopClock())
    publisher.prober = prober
    return FrontendProbes(publisher, LoopClock())


@on_virtual_time
async def test_a_fresh_probe_is_replayed_without_the_engine() -> None:
    engine = FakeEngine()
    async with probing(engine, settings(period=60.0)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        probes = frontend_probes(prober)
        assert [list(await probes.answer()) for _ in range(3)] == [GOOD] * 3
        assert len(engine.requests) == 1


@on_virtual_time
async def test_concurrent_probes_of_frontends_share_the_probe_in_flight() -> None:
    engine = FakeEngine()
    async with probing(engine, settings(period=2.0, timeout=1.0)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        probes = frontend_probes(prober)
        engine.behaviour = "wait"
        await until(lambda: engine.running == 1)
        waiting = [asyncio.create_task(probes.answer()) for _ in range(3)]
        await asyncio.sleep(0.2)
        engine.go.set()
        assert [list(await answer) for answer in waiting] == [GOOD] * 3
        assert len(engine.requests) == 2, "the probe in flight is sufficient"


@on_virtual_time
async def test_a_proof_older_than_a_period_causes_a_probe() -> None:
    engine = FakeEngine()
    given = settings(period=2.0)
    prober = Prober(engine, given, progress=engine.progress, publish=lambda: None, clock=LoopClock())
    task = asyncio.create_task(prober.run())
    await until(lambda: prober.state.verdict is Verdict.GENERATING)
    prober.last_proof = now() - 2.0
    assert list(await frontend_probes(prober).answer()) == GOOD
    assert len(engine.requests) == 2
    task.cancel()
    await asyncio.wait({task})


@pytest.mark.parametrize(("behaviour", "verdict"), [("hang", Verdict.STALLED), ("raise", Verdict.FAILING)])
@on_virtual_time
async def test_an_engine_that_does_not_generate_is_an_error(behaviour: str, verdict: Verdict) -> None:
    engine = FakeEngine()
    engine.behaviour = behaviour
    async with probing(engine, settings(timeout=0.5)) as prober:
        probes = frontend_probes(prober)
        with pytest.raises(EngineNotGeneratingError):
            await probes.answer()  # waits for the first probe
        await until(lambda: prober.state.verdict is verdict)
        before = len(engine.requests)
        with pytest.raises(EngineNotGeneratingError, match=f"the verdict is {verdict.value}"):
            await probes.answer()
        assert len(engine.requests) == before


@on_virtual_time
async def test_a_disabled_health_check_proves_the_route_only() -> None:
    engine = FakeEngine()
    async with probing(engine, settings(mode=Mode.DISABLED)) as prober:
        assert list(await frontend_probes(prober).answer()) == []
        assert engine.requests == []


@on_virtual_time
async def test_turning_probing_off_ends_a_waiting_probe() -> None:
    engine = FakeEngine()
    engine.behaviour = "wait"
    async with probing(engine, settings(timeout=5.0)) as prober:
        waiting = asyncio.create_task(frontend_probes(prober).answer())
        await until(lambda: engine.running == 1)
        prober.configure(settings(mode=Mode.DISABLED))
        with pytest.raises(ProbeUnavailableError):
            await waiting


@on_virtual_time
async def test_a_users_request_proves_no_expected_text() -> None:
    engine = FakeEngine()
    given = settings(period=5.0)
    expecting = ProbeSettings(given.request, given.mode, given.period, given.rules, Expectation("e", letters))
    for one, ages in ((given, (0.0, 0.0)), (expecting, (0.0, 3.0))):
        async with probing(engine, one) as prober:
            await until(lambda prober=prober: prober.state.verdict is Verdict.GENERATING)
            probed = prober.proof
            await asyncio.sleep(3.0)
            engine.progress.record_finished([("user", True)])
            await asyncio.sleep(0.2)
            assert prober.proof is not None
            assert probed is not None
            assert (prober.proof == probed) is (ages[1] == 3.0)


@on_virtual_time
async def test_a_changed_payload_invalidates_the_recorded_answer() -> None:
    engine = FakeEngine()
    async with probing(engine, settings(period=60.0)) as prober:
        await until(lambda: prober.proof is not None)
        engine.behaviour = "wait"
        prober.configure(settings(period=60.0, prompt="other"))
        assert (prober.proof, prober.last_complete) == (None, None)
        engine.go.set()
        assert list(await frontend_probes(prober).answer()) == GOOD
        assert prober.proof is not None


@pytest.mark.parametrize(
    ("chunks", "recorded"),
    [
        (GOOD, GOOD),
        (
            [
                {"index": 0, "token_ids": [5], "log_probs": [0.1], "engine_data": {}},
                {"index": 1, "token_ids": [7], "finish_reason": "stop"},
                {"index": 0, "token_ids": [6], "finish_reason": "stop", "completion_usage": {"total": 1}},
            ],
            [
                {"index": 0, "token_ids": [5]},
                {"index": 0, "token_ids": [6], "finish_reason": "stop", "completion_usage": {"total": 1}},
            ],
        ),
        (
            [{"object": "list", "data": [{"embedding": "A"}, {"embedding": "B"}], "usage": {}}],
            [{"object": "list", "data": [{"embedding": "A"}], "usage": {}}],
        ),
        ([{"data": [{"score": 0.5}]}], []),
    ],
)
@on_virtual_time
async def test_the_part_of_an_answer_that_fits_any_request_is_recorded(
    chunks: list[dict[str, Any]], recorded: list[dict[str, Any]]
) -> None:
    engine = FakeEngine()
    engine.chunks = chunks
    async with probing(engine, settings(period=60.0)) as prober:
        await until(lambda: prober.last_complete is not None)
        assert list(await frontend_probes(prober).answer()) == recorded
