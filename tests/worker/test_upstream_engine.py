"""The worker's additions to Dynamo's worker: canary, progress, used blocks, the report of a dead engine."""

import inspect
import types
import warnings
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn while they are imported
    from dynamo.vllm import publisher
    from vllm.v1.engine import FinishReason
    from vllm.v1.metrics.stats import (
        FinishedRequestStats,
        IterationStats,
        SchedulerIterationDetails,
        SchedulerStats,
    )

    from tests.worker.signatures import parameters
    from vllmendpoint_worker import upstream
    from vllmendpoint_worker.probing.progress import PROGRESS

pytestmark = pytest.mark.timeout(120)


async def test_the_canary_is_answered_from_the_verdict_and_other_requests_by_the_engine() -> None:
    asked: list[Any] = []

    async def generate(request: Any, context: Any) -> Any:
        asked.append((request, context))
        yield {"token_ids": [7]}

    healthy = True
    answer = upstream._dynamo_worker._answer_canary(generate, lambda: healthy)
    assert parameters(answer) == ["request", "context"]
    canary = {"token_ids": [1], "_HEALTH_CHECK": True}
    chunks = [chunk async for chunk in answer(canary, context="c")]
    assert [chunk["finish_reason"] for chunk in chunks] == ["stop"]
    healthy = False
    assert [chunk async for chunk in answer(canary, context="c")] == []
    assert asked == []
    assert [chunk async for chunk in answer({"token_ids": [1]}, context="c")] == [{"token_ids": [7]}]


def test_the_stat_logger_records_vllms_counts() -> None:
    logger = upstream.ProgressLogger(None)
    assert upstream.ProgressLogger(None, 1)
    assert PROGRESS.ranks == [0, 1]
    progress, other = PROGRESS.rank(0), PROGRESS.rank(1)
    before = (progress.tokens_scheduled, progress.user_requests_finished)
    details = SchedulerIterationDetails(1, 1, 7, 1, 3, 12.5)
    iteration = IterationStats()
    iteration.finished_requests.append(FinishedRequestStats(FinishReason.LENGTH, request_id="user"))
    iteration.finished_requests.append(FinishedRequestStats(FinishReason.ABORT, request_id="gone"))
    scheduler = SchedulerStats(iteration_details=details)
    logger.record(scheduler, iteration)
    logger.record(None, None)
    assert (progress.tokens_scheduled, progress.user_requests_finished) == (before[0] + 10, before[1] + 1)
    logger.record(SchedulerStats(iteration_details=details), iteration, engine_idx=1)
    assert (other.tokens_scheduled, other.user_requests_finished) == (10, 1)
    assert progress.tokens_scheduled == before[0] + 10
    assert scheduler.iteration_details is None, "vLLM's own logger would make a line of it"


def test_used_blocks_are_published_only_when_they_change() -> None:
    assert "self.inner.publish(" in inspect.getsource(publisher.DynamoStatLoggerPublisher.record)
    assert publisher.StatLoggerFactory(None).created_loggers == {}
    published: list[tuple[Any, ...]] = []
    inner = types.SimpleNamespace(publish=lambda *args, **kwargs: published.append((*args, kwargs)), other=1)
    changes = upstream._dynamo_worker.DeduplicatingPublisher(inner)
    for blocks in (0, 0, 3, 3, 0):
        changes.publish(0, kv_used_blocks=blocks)
    assert published == [(0, {"kv_used_blocks": blocks}) for blocks in (0, 3, 0)]
    assert changes.other == 1


@pytest.mark.parametrize("dead", [None, "vLLM reports EngineDeadError"])
def test_a_dead_engine_is_reported_before_upstream_ends_the_process(dead: str | None) -> None:
    called: list[str] = []
    engine = types.SimpleNamespace(dead=lambda: dead, on_died=lambda: called.append("died"))
    runtime = types.SimpleNamespace(shutdown=lambda: called.append("shutdown"), endpoint="theirs")
    words = upstream._engine.ShutdownInterceptor(runtime, engine)
    assert words.endpoint == "theirs"
    words.shutdown()
    assert called == (["died", "shutdown"] if dead else ["shutdown"])
