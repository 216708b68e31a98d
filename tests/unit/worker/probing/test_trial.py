"""A changed question comes into force only once the engine has answered it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest

from tests.unit.worker.probed_engine import FakeEngine, now, probing, settings, until
from tests.unit.worker.virtual_time import on_virtual_time
from vllmendpoint_api import Mode, Outcome, Verdict
from vllmendpoint_worker.probing.prober import ProbeResult
from vllmendpoint_worker.probing.trial import Answered, answered, tried
from vllmendpoint_worker.vllm_rejections import VLLMRejection

pytestmark = pytest.mark.timeout(30)

REFUSED = VLLMRejection("no", "logprobs")


def result(outcome: Outcome, tokens: int = 0, error: BaseException | None = None) -> ProbeResult:
    return ProbeResult(outcome, 0.1, tokens, 1.0, "detail", error)


def reads(error: BaseException | None) -> VLLMRejection | None:
    return REFUSED if isinstance(error, ValueError) else None


def playing(*results: ProbeResult) -> Callable[[], Awaitable[ProbeResult]]:
    left = list(results)

    async def ask() -> ProbeResult:
        return left.pop(0)

    return ask


COMPLETE = result(Outcome.COMPLETE, 1)
TIMEOUT = result(Outcome.TIMEOUT)
DEAD = result(Outcome.ENGINE_DEAD, error=RuntimeError())
ERROR = result(Outcome.ERROR, error=RuntimeError())
EMPTY = result(Outcome.UNEXPECTED_ANSWER)


@pytest.mark.parametrize(
    ("asked", "control", "expected"),
    [
        ([COMPLETE], [], Answered.YES),
        ([result(Outcome.TIMEOUT, tokens=3)], [], Answered.YES),
        ([TIMEOUT], [], Answered.NO),
        ([DEAD], [], Answered.NO),
        ([result(Outcome.ERROR, error=ValueError())], [], REFUSED),
        ([ERROR], [ERROR], Answered.NO),
        ([ERROR], [TIMEOUT], Answered.NO),
        ([ERROR, COMPLETE], [COMPLETE], Answered.YES),
        ([ERROR, TIMEOUT], [COMPLETE], Answered.NO),
        ([ERROR, result(Outcome.ERROR, error=ValueError())], [COMPLETE], REFUSED),
        ([EMPTY], [EMPTY], Answered.NO),
    ],
)
async def test_only_the_payloads_own_fault_refuses_it(
    asked: list[ProbeResult], control: list[ProbeResult], expected: Answered | VLLMRejection
) -> None:
    assert await tried(playing(*asked), playing(*control), reads) == expected


@pytest.mark.parametrize("error", [ERROR, EMPTY])
async def test_an_error_that_comes_twice_beside_a_good_answer_is_the_payloads(error: ProbeResult) -> None:
    found = await tried(playing(error, error), playing(COMPLETE), reads)
    assert isinstance(found, VLLMRejection)
    assert "(detail)" in found.sentence


class Picky(FakeEngine):
    """Treats requests with token 9 as ``nine`` says, others as ``behaviour``."""

    nine = "raise"

    async def generate(self, request: Mapping[str, Any], request_id: str) -> AsyncIterator[Mapping[str, Any]]:
        before = self.behaviour
        if request["token_ids"] == [9]:
            self.behaviour = self.nine
        stream = super().generate(request, request_id)
        try:
            async for chunk in stream:
                self.behaviour = before
                yield chunk
        finally:
            self.behaviour = before
            await stream.aclose()  # type: ignore[attr-defined]


async def never() -> None:
    await asyncio.Event().wait()


@on_virtual_time
async def test_a_refused_question_leaves_the_verdict_and_the_question_in_force() -> None:
    engine = Picky()
    async with probing(engine, settings(period=60.0)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        before = prober.state, prober.last
        given = settings(period=60.0, token_ids=[9])
        assert await answered(prober, given, reads, never, lambda: None) == REFUSED
        assert (prober.state, prober.last) == before
        assert prober.settings.request == {"token_ids": [1]}


@on_virtual_time
async def test_what_is_asked_already_or_not_asked_at_all_needs_no_trial() -> None:
    engine = Picky()
    async with probing(engine, settings(period=60.0)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        asked = len(engine.asked)
        assert await answered(prober, settings(period=5.0), reads, never, lambda: None) is True
        off = settings(mode=Mode.DISABLED, token_ids=[9])
        assert await answered(prober, off, reads, never, lambda: None) is True
        assert len(engine.asked) == asked


@on_virtual_time
async def test_what_was_taken_up_while_probing_was_off_is_tried_when_it_is_on() -> None:
    engine = Picky()
    async with probing(engine, settings(mode=Mode.DISABLED, token_ids=[9])) as prober:
        assert await answered(prober, settings(token_ids=[9]), reads, never, lambda: None) == REFUSED


@on_virtual_time
async def test_a_stalled_engine_refuses_nothing_and_the_trial_is_repeated_until_it_answers() -> None:
    engine = Picky()
    postponed: list[float] = []
    async with probing(engine, settings(period=60.0, timeout=0.5)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        engine.behaviour = engine.nine = "hang"
        given = settings(period=60.0, timeout=0.5, token_ids=[9])
        waiting = asyncio.create_task(answered(prober, given, reads, never, lambda: postponed.append(now())))
        await until(lambda: len(postponed) == 3, 30.0)
        assert not waiting.done()
        engine.behaviour = engine.nine = "answer"
        assert await waiting is True


@on_virtual_time
async def test_newer_settings_end_the_wait() -> None:
    engine = Picky()
    engine.nine = "hang"

    async def soon() -> None:
        await asyncio.sleep(0.1)

    async with probing(engine, settings(period=60.0)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        assert await answered(prober, settings(token_ids=[9]), reads, soon, lambda: None) is False


@on_virtual_time
async def test_one_question_at_a_time_and_a_trial_counts_as_a_probe() -> None:
    engine = Picky()
    engine.nine = "wait"
    async with probing(engine, settings(period=0.2, timeout=2.0)) as prober:
        ended: list[ProbeResult] = []
        prober._ended = ended.append
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        trial = asyncio.create_task(prober.trial({"token_ids": [9]}, 2.0))
        await asyncio.sleep(1.0)
        engine.go.set()
        assert (await trial).outcome is Outcome.COMPLETE
        assert engine.most_running == 1
        await until(lambda: len(ended) >= 2)
