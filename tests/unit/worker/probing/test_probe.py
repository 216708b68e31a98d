"""One probe: what counts as an answer, its timeout and its detail."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.worker.probed_engine import GOOD, FakeEngine, letters
from tests.unit.worker.virtual_time import LoopClock, on_virtual_time
from vllmendpoint_api import Outcome
from vllmendpoint_worker.payload.expect import Expectation
from vllmendpoint_worker.probing.probe import run_probe
from vllmendpoint_worker.probing.progress import PROBE_PREFIX

pytestmark = pytest.mark.timeout(30)
UNEXPECTED = Outcome.UNEXPECTED_ANSWER


@pytest.mark.parametrize(
    ("chunks", "outcome", "tokens"),
    [
        (GOOD, Outcome.COMPLETE, 2),
        ([], Outcome.UNEXPECTED_ANSWER, 0),
        ([{"index": 0, "token_ids": [], "finish_reason": "stop"}], Outcome.UNEXPECTED_ANSWER, 0),
        ([{"index": 0, "token_ids": [5]}], Outcome.UNEXPECTED_ANSWER, 1),
        ([{"index": 0, "token_ids": [5]}, {"index": 0, "finish_reason": "error: no luck"}], Outcome.ERROR, 1),
        ([{"index": 0, "token_ids": [5], "finish_reason": "stop"}, {"event": "error"}], Outcome.ERROR, 1),
        ([{"index": 0, "token_ids": [5], "finish_reason": "cancelled"}], Outcome.ERROR, 1),
        ([{"token_ids": [5], "finish_reason": "stop"}, {"index": 1, "token_ids": [6]}], UNEXPECTED, 2),
        ([{"data": [{"embedding": "AAAA"}]}], Outcome.COMPLETE, 0),
    ],
)  # fmt: skip
@on_virtual_time
async def test_a_stream_is_an_answer_if_it_has_tokens_and_finish_reasons(
    chunks: list[dict[str, Any]], outcome: Outcome, tokens: int
) -> None:
    engine = FakeEngine()
    engine.chunks = chunks
    result = await run_probe(engine, {}, 1.0, LoopClock())
    assert (result.outcome, result.tokens) == (outcome, tokens)
    assert engine.ids[0].startswith(PROBE_PREFIX)


@pytest.mark.parametrize(
    ("regex", "chunks", "outcome"),
    [
        ("ef", GOOD, Outcome.COMPLETE),
        ("f$", GOOD, Outcome.COMPLETE),
        ("(?i)EF", GOOD, Outcome.COMPLETE),
        ("^f", GOOD, UNEXPECTED),
        ("x", GOOD, UNEXPECTED),
        ("e", [{"index": 0, "token_ids": [5]}], UNEXPECTED),
        (".*", [], UNEXPECTED),
        (
            "e",
            [{"index": 0, "token_ids": [5], "finish_reason": "stop"}]
            + [{"index": 1, "token_ids": [6], "finish_reason": "stop"}],
            UNEXPECTED,
        ),
    ],
)
@on_virtual_time
async def test_the_text_must_match_the_expected_expression(
    regex: str, chunks: list[dict[str, Any]], outcome: Outcome
) -> None:
    engine = FakeEngine()
    engine.chunks = chunks
    result = await run_probe(engine, {}, 1.0, LoopClock(), Expectation(regex, letters))
    assert result.outcome is outcome


@on_virtual_time
async def test_an_answer_that_does_not_match_is_reported_without_its_text() -> None:
    engine = FakeEngine()
    result = await run_probe(
        engine, {}, 1.0, LoopClock(), Expectation("hunter2", lambda tokens: "the secret")
    )
    assert result.detail == "2 tokens that do not match healthCheck.expect.regex"
    engine.chunks = GOOD[1:]
    assert (
        "1 token that does not"
        in (await run_probe(engine, {}, 1.0, LoopClock(), Expectation("x", letters))).detail
    )


@on_virtual_time
async def test_a_tokenizer_that_raises_is_an_error() -> None:
    def decode(tokens: Sequence[int]) -> str:
        raise OverflowError("hunter2")

    result = await run_probe(FakeEngine(), {}, 1.0, LoopClock(), Expectation("x", decode))
    assert result.outcome is Outcome.ERROR
    assert "OverflowError" in result.detail
    assert "hunter2" not in result.detail


@on_virtual_time
async def test_a_probe_is_aborted_at_its_timeout() -> None:
    engine = FakeEngine()
    engine.behaviour = "hang"
    result = await run_probe(engine, {}, 0.2, LoopClock())
    assert result.outcome is Outcome.TIMEOUT
    assert 0.2 <= result.latency < 0.5
    assert (engine.aborted, engine.running) == (1, 0)


@on_virtual_time
async def test_an_error_is_reported_by_its_type_only() -> None:
    engine = FakeEngine()
    engine.behaviour = "raise"
    result = await run_probe(engine, {}, 1.0, LoopClock())
    assert (result.outcome, result.detail) == (Outcome.ERROR, "ValueError")
    engine.gone = "gone"
    assert (await run_probe(engine, {}, 1.0, LoopClock())).outcome is Outcome.ENGINE_DEAD
