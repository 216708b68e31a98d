"""A changed question comes into force only once the engine has answered it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest

from tests.unit.worker.probed_engine import FakeEngine, now, probing, settings, until
from tests.unit.worker.virtual_time import on_virtual_time
from vllmendpoint_api import Mode, Outcome, Verdict
from vllmendpoint_worker.probing.probe import ProbeResult
from vllmendpoint_worker.probing.trial import TrialResult, run_trial, wait_for_trial
from vllmendpoint_worker.vllm_rejections import VLLMRejection

pytestmark = pytest.mark.timeout(30)

REFUSED = VLLMRejection("no", "logprobs")


def result(outcome: Outcome, tokens: int = 0, error: BaseException | None = None) -> ProbeResult:
    return ProbeResult(outcome, 0.1, tokens, 1.0, "detail", error)


def read_rejection(error: BaseException | None) -> VLLMRejection | None:
    return REFUSED if isinstance(error, ValueError) else None


def playing(*results: ProbeResult) -> Callable[[], Awaitable[ProbeResult]]:
    left = list(results)

    async def send() -> ProbeResult:
        return left.pop(0)

    return send


COMPLETE = result(Outcome.COMPLETE, 1)
TIMEOUT = result(Outcome.TIMEOUT)
DEAD = result(Outcome.ENGINE_DEAD, error=RuntimeError())
ERROR = result(Outcome.ERROR, error=RuntimeError())
EMPTY = result(Outcome.UNEXPECTED_ANSWER)


@pytest.mark.parametrize(
    ("asked", "control", "expected"),
    [
        ([COMPLETE], [], TrialResult.ACCEPTED),
        ([result(Outcome.TIMEOUT, tokens=3)], [], TrialResult.ACCEPTED),
        ([TIMEOUT], [], TrialResult.UNKNOWN),
        ([DEAD], [], TrialResult.UNKNOWN),
        ([result(Outcome.ERROR, error=ValueError())], [], REFUSED),
        ([ERROR], [ERROR], TrialResult.UNKNOWN),
        ([ERROR], [TIMEOUT], TrialResult.UNKNOWN),
        ([ERROR, COMPLETE], [COMPLETE], TrialResult.ACCEPTED),
        ([ERROR, TIMEOUT], [COMPLETE], TrialResult.UNKNOWN),
        ([ERROR, result(Outcome.ERROR, error=ValueError())], [COMPLETE], REFUSED),
        ([EMPTY], [EMPTY], TrialResult.UNKNOWN),
    ],
)
async def test_only_the_payloads_own_fault_refuses_it(
    asked: list[ProbeResult], control: list[ProbeResult], expected: TrialResult | VLLMRejection
) -> None:
    assert await run_trial(playing(*asked), playing(*control), read_rejection) == expected


@pytest.mark.parametrize("error", [ERROR, EMPTY])
async def test_an_error_that_comes_twice_beside_a_good_answer_is_the_payloads(error: ProbeResult) -> None:
    found = await run_trial(playing(error, error), playing(COMPLETE), read_rejection)
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
        before = prober.state, prober.last_result
        given = settings(period=60.0, token_ids=[9])
        assert await wait_for_trial(prober, given, read_rejection, never, lambda: None) == REFUSED
        assert (prober.state, prober.last_result) == before
        assert prober.settings.request == {"token_ids": [1]}


@on_virtual_time
async def test_what_is_asked_already_or_not_asked_at_all_needs_no_trial() -> None:
    engine = Picky()
    async with probing(engine, settings(period=60.0)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        asked = len(engine.asked)
        assert await wait_for_trial(prober, settings(period=5.0), read_rejection, never, lambda: None) is True
        off = settings(mode=Mode.DISABLED, token_ids=[9])
        assert await wait_for_trial(prober, off, read_rejection, never, lambda: None) is True
        assert len(engine.asked) == asked


@on_virtual_time
async def test_what_was_taken_up_while_probing_was_off_is_tried_when_it_is_on() -> None:
    engine = Picky()
    async with probing(engine, settings(mode=Mode.DISABLED, token_ids=[9])) as prober:
        assert (
            await wait_for_trial(prober, settings(token_ids=[9]), read_rejection, never, lambda: None)
            == REFUSED
        )


@on_virtual_time
async def test_a_stalled_engine_refuses_nothing_and_the_trial_is_repeated_until_it_answers() -> None:
    engine = Picky()
    postponed: list[float] = []
    async with probing(engine, settings(period=60.0, timeout=0.5)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        engine.behaviour = engine.nine = "hang"
        given = settings(period=60.0, timeout=0.5, token_ids=[9])
        waiting = asyncio.create_task(
            wait_for_trial(prober, given, read_rejection, never, lambda: postponed.append(now()))
        )
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
        assert (
            await wait_for_trial(prober, settings(token_ids=[9]), read_rejection, soon, lambda: None) is False
        )


@on_virtual_time
async def test_one_question_at_a_time_and_a_trial_counts_as_a_probe() -> None:
    engine = Picky()
    engine.nine = "wait"
    async with probing(engine, settings(period=0.2, timeout=2.0)) as prober:
        ended: list[ProbeResult] = []
        prober._on_result = ended.append
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        trial = asyncio.create_task(prober.run_trial({"token_ids": [9]}, 2.0))
        await asyncio.sleep(1.0)
        engine.go.set()
        assert (await trial).outcome is Outcome.COMPLETE
        assert engine.most_running == 1
        await until(lambda: len(ended) >= 2)
