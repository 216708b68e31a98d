"""A changed request is activated only after the engine has answered it."""

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

REJECTED = VLLMRejection("no", "logprobs")


def result(outcome: Outcome, tokens: int = 0, error: BaseException | None = None) -> ProbeResult:
    return ProbeResult(outcome, 0.1, tokens, 1.0, "detail", error)


def read_rejection(error: BaseException | None) -> VLLMRejection | None:
    return REJECTED if isinstance(error, ValueError) else None


def responses(*results: ProbeResult) -> Callable[[], Awaitable[ProbeResult]]:
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
        ([result(Outcome.ERROR, error=ValueError())], [], REJECTED),
        ([ERROR], [ERROR], TrialResult.UNKNOWN),
        ([ERROR], [TIMEOUT], TrialResult.UNKNOWN),
        ([ERROR, COMPLETE], [COMPLETE], TrialResult.ACCEPTED),
        ([ERROR, TIMEOUT], [COMPLETE], TrialResult.UNKNOWN),
        ([ERROR, result(Outcome.ERROR, error=ValueError())], [COMPLETE], REJECTED),
        ([EMPTY], [EMPTY], TrialResult.UNKNOWN),
    ],
)
async def test_a_payload_is_rejected_only_if_it_causes_the_error(
    asked: list[ProbeResult], control: list[ProbeResult], expected: TrialResult | VLLMRejection
) -> None:
    assert await run_trial(responses(*asked), responses(*control), read_rejection) == expected


@pytest.mark.parametrize("error", [ERROR, EMPTY])
async def test_an_error_that_occurs_twice_while_the_engine_answers_rejects_the_payload(
    error: ProbeResult,
) -> None:
    found = await run_trial(responses(error, error), responses(COMPLETE), read_rejection)
    assert isinstance(found, VLLMRejection)
    assert "(detail)" in found.message


class SelectiveEngine(FakeEngine):
    """``nine`` is the behaviour for requests with token 9, ``behaviour`` for others."""

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
async def test_a_rejected_request_does_not_change_verdict_or_settings() -> None:
    engine = SelectiveEngine()
    async with probing(engine, settings(period=60.0)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        before = prober.state, prober.last_result
        given = settings(period=60.0, token_ids=[9])
        assert await wait_for_trial(prober, given, read_rejection, never, lambda: None) == REJECTED
        assert (prober.state, prober.last_result) == before
        assert prober.settings.request == {"token_ids": [1]}


@on_virtual_time
async def test_the_active_request_and_disabled_probing_need_no_trial() -> None:
    engine = SelectiveEngine()
    async with probing(engine, settings(period=60.0)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        asked = len(engine.request_times)
        assert await wait_for_trial(prober, settings(period=5.0), read_rejection, never, lambda: None) is True
        off = settings(mode=Mode.DISABLED, token_ids=[9])
        assert await wait_for_trial(prober, off, read_rejection, never, lambda: None) is True
        assert len(engine.request_times) == asked


@on_virtual_time
async def test_a_request_that_was_set_while_probing_was_off_is_tried_when_it_is_on() -> None:
    engine = SelectiveEngine()
    async with probing(engine, settings(mode=Mode.DISABLED, token_ids=[9])) as prober:
        assert (
            await wait_for_trial(prober, settings(token_ids=[9]), read_rejection, never, lambda: None)
            == REJECTED
        )


@on_virtual_time
async def test_a_trial_is_repeated_until_a_stalled_engine_answers() -> None:
    engine = SelectiveEngine()
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
async def test_newer_settings_end_the_wait_for_a_trial() -> None:
    engine = SelectiveEngine()
    engine.nine = "hang"

    async def soon() -> None:
        await asyncio.sleep(0.1)

    async with probing(engine, settings(period=60.0)) as prober:
        await until(lambda: prober.state.verdict is Verdict.GENERATING)
        assert (
            await wait_for_trial(prober, settings(token_ids=[9]), read_rejection, soon, lambda: None) is False
        )


@on_virtual_time
async def test_a_trial_and_a_probe_do_not_overlap_and_both_are_counted() -> None:
    engine = SelectiveEngine()
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
