"""The states of KV events, and one check, without a network."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.unit.worker.virtual_time import LoopClock, on_virtual_time
from vllmendpoint_api import KVEventsState
from vllmendpoint_worker.frontend.http_client import HttpResponse
from vllmendpoint_worker.frontend.kv_events.check import KVCheck, run_check
from vllmendpoint_worker.frontend.kv_events.state import (
    CHECK_SECONDS,
    MISSING_SECONDS,
    RETRY_SECONDS,
    SOURCE_SECONDS,
    CheckEnd,
    CheckOutcome,
    KVEvents,
    after_check,
    next_check_at,
    with_source,
)
from vllmendpoint_worker.frontend.probing.probe import RANK_HEADER, WORKER_HEADER, RequestForm

NEW = KVEvents(discovered=100.0, since=100.0)
WITH_SOURCE = with_source(NEW, has_source=True, now=101.0)


def end(outcome: CheckOutcome, at: float, message: str = "") -> CheckEnd:
    return CheckEnd(at, outcome, message)


def test_a_worker_without_a_source_of_events_is_missing_after_a_moment() -> None:
    soon = with_source(NEW, has_source=False, now=100.0 + SOURCE_SECONDS - 0.1)
    assert soon.state is KVEventsState.PENDING
    late = with_source(NEW, has_source=False, now=100.0 + SOURCE_SECONDS)
    assert late.state is KVEventsState.MISSING
    assert late.message.startswith("The worker publishes no KV events. ")
    assert next_check_at(late) is None
    found = with_source(late, has_source=True, now=120.0)
    assert (found.state, next_check_at(found)) == (KVEventsState.PENDING, 120.0)


def test_one_failed_check_is_repeated_and_the_second_one_decides() -> None:
    first = after_check(WITH_SOURCE, end(CheckOutcome.MISSING, 102.0, "Lost."))
    assert first.state is KVEventsState.PENDING
    assert next_check_at(first) == 102.0 + RETRY_SECONDS
    second = after_check(first, end(CheckOutcome.NOT_CACHED, 105.0, "Lost again."))
    assert (second.state, second.message, second.since) == (KVEventsState.MISSING, "Lost again.", 105.0)
    assert next_check_at(second) == 105.0 + MISSING_SECONDS
    back = after_check(second, end(CheckOutcome.RECEIVED, 116.0))
    assert (back.state, back.message, back.failures) == (KVEventsState.RECEIVED, "", 0)
    assert next_check_at(back) == 116.0 + CHECK_SECONDS


def test_a_check_without_an_answer_changes_nothing() -> None:
    received = after_check(WITH_SOURCE, end(CheckOutcome.RECEIVED, 102.0))
    failed = after_check(received, end(CheckOutcome.FAILED, 132.0, "503"))
    assert (failed.state, failed.since) == (KVEventsState.RECEIVED, 102.0)
    assert next_check_at(failed) == 132.0 + RETRY_SECONDS


class Router:
    """Answers like Dynamo's frontend. ``rates`` and ``cached``: of the first and of the later requests."""

    def __init__(
        self, rates: tuple[float, float], cached: tuple[int, int], draws: tuple[int, ...] = ()
    ) -> None:
        self.rates = rates
        self.cached = cached
        self.draws = list(draws)
        """Statuses of the first responses."""
        self.posts: list[tuple[str, Mapping[str, Any], Mapping[str, str]]] = []
        self.answered = 0

    async def get(self, path: str, timeout: float) -> HttpResponse:
        raise AssertionError(path)

    async def post(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str], timeout: float
    ) -> HttpResponse:
        assert timeout > 0
        self.posts.append((path, body, headers))
        if self.draws and (status := self.draws.pop(0)) != 200:
            return HttpResponse(status, b"{}")
        turn = min(self.answered, 1)
        self.answered += 1
        details = {"cached_tokens": self.cached[turn]}
        answer = {
            "usage": {"prompt_tokens": 40, "prompt_tokens_details": details},
            "nvext": {"timing": {"kv_hit_rate": self.rates[turn]}},
        }
        return HttpResponse(200, json.dumps(answer).encode())


def check(form: RequestForm = RequestForm.CHAT) -> KVCheck:
    return KVCheck(model="m", form=form, instance_id=7, block_size=16, attempts=3)


@on_virtual_time
async def test_a_hit_of_the_second_request_proves_the_events() -> None:
    router = Router((0.3, 0.9), (16, 32))
    found = await run_check(router, check(), LoopClock())
    assert found.outcome is CheckOutcome.RECEIVED
    (path, body, headers), (_, again, _) = router.posts
    assert path == "/v1/chat/completions"
    assert headers == {WORKER_HEADER: "7", RANK_HEADER: "0"}
    assert body == again, "the same prompt"
    assert len(body["messages"][0]["content"].split()) > 16, "more than one block"
    await run_check(router, check(), LoopClock())
    assert router.posts[2][1] != body, "each check has a new prompt, because the index keeps the old ones"


@pytest.mark.parametrize(
    ("router", "outcome", "text"),
    [
        (Router((0.3, 0.3), (0, 32)), CheckOutcome.MISSING, "the KV event has not arrived"),
        (Router((0.0, 0.0), (0, 0)), CheckOutcome.NOT_CACHED, "does not keep a repeated prompt"),
        (Router((0.0, 0.9), (0, 0), (500,)), CheckOutcome.FAILED, "500"),
        (Router((0.0, 0.9), (0, 0), (400, 400, 400)), CheckOutcome.FAILED, "400"),
        (Router((0.0, 0.9), (0, 32), (400, 400, 200)), CheckOutcome.RECEIVED, ""),
    ],
)
@on_virtual_time
async def test_the_outcome_has_the_cause(router: Router, outcome: CheckOutcome, text: str) -> None:
    found = await run_check(router, check(RequestForm.COMPLETION), LoopClock())
    assert found.outcome is outcome
    assert text in found.message
    assert found.message == "" or found.message.endswith(".")
