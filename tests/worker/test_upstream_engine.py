"""The worker's additions to Dynamo's worker: answers to canaries and frontends' probes, progress, used
blocks, the report of a dead engine.
"""

import asyncio
import contextlib
import inspect
import types
import warnings
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn while they are imported
    from dynamo.vllm import handlers, publisher
    from dynamo.vllm.constants import DisaggregationMode
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import FinishReason
    from vllm.v1.metrics.stats import (
        FinishedRequestStats,
        IterationStats,
        SchedulerIterationDetails,
        SchedulerStats,
    )

    from tests.worker.signatures import parameters
    from vllmendpoint_api import names
    from vllmendpoint_worker import upstream
    from vllmendpoint_worker.errors import EngineNotGeneratingError
    from vllmendpoint_worker.probing.progress import PROBE_PREFIX, PROGRESS

pytestmark = pytest.mark.timeout(120)


class FakeContext:
    """Dynamo's context of one request."""

    def __init__(self, metadata: dict[str, str] | None = None, *, cancelled: bool = False) -> None:
        self.metadata = metadata or {}
        self.cancelled = cancelled

    def is_stopped(self) -> bool:
        return self.cancelled

    def is_killed(self) -> bool:
        return self.cancelled


USER = FakeContext({"user": "x"})
PROBE = FakeContext({names.PROBE_METADATA: "1"})
PROBED = [{"index": 0, "token_ids": [5]}, {"index": 0, "token_ids": [6], "finish_reason": "length"}]
EMBEDDED = {
    "object": "list",
    "data": [{"object": "embedding", "embedding": "AACAPw==", "index": 0}],
    "model": "m",
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
}


def answering(
    generate: Any, probed: list[dict[str, Any]], *, pools: bool = False, replays: bool = True
) -> tuple[Any, types.SimpleNamespace]:
    """``generate``, wrapped, and the state that its answers depend on."""
    state = types.SimpleNamespace(healthy=True, stopped=False)

    async def answer_probe() -> list[dict[str, Any]]:
        return probed

    health = upstream.HealthSource(lambda: state.healthy, lambda: state.stopped, answer_probe)
    engine = types.SimpleNamespace(pools=pools, replays_probes=replays, instance_id="77")
    return upstream._probe_requests.answer_probes(generate, engine, health), state


async def test_the_canary_is_answered_from_the_verdict_and_other_requests_by_the_engine() -> None:
    asked: list[Any] = []

    async def generate(request: Any, context: Any) -> Any:
        asked.append((request, context))
        yield {"token_ids": [7]}

    answer, state = answering(generate, PROBED)
    assert parameters(answer) == ["request", "context"]
    canary = {"token_ids": [1], "_HEALTH_CHECK": True}
    chunks = [chunk async for chunk in answer(canary, context=None)]
    assert [chunk["finish_reason"] for chunk in chunks] == ["stop"]
    state.healthy = False
    assert [chunk async for chunk in answer(canary, context=None)] == []
    assert [chunk async for chunk in answer({"token_ids": [1]}, context=PROBE)] == PROBED
    assert asked == []
    assert [chunk async for chunk in answer({"token_ids": [1]}, context=USER)] == [{"token_ids": [7]}]
    assert asked == [({"token_ids": [1]}, USER)]


@pytest.mark.parametrize(
    ("request_", "probed", "expected"),
    [
        ({"input": "x"}, [EMBEDDED], EMBEDDED | {"model": "77"}),
        ({"token_ids": [[1]]}, [EMBEDDED], {"embeddings": ["AACAPw=="], **EMBEDDED["usage"]}),
        ({"input": "x"}, [], {**upstream._probe_requests._NO_EMBEDDING, "model": "77"}),
    ],
)
async def test_a_frontends_probe_of_an_embedding_model_is_answered_in_the_form_of_the_request(
    request_: dict[str, Any], probed: list[dict[str, Any]], expected: dict[str, Any]
) -> None:
    answer, _ = answering(None, probed, pools=True)
    assert [chunk async for chunk in answer(request_, context=PROBE)] == [expected]


async def test_a_probe_that_cannot_be_replayed_runs_without_counting_as_a_users_request() -> None:
    ids: list[str | None] = []

    async def generate(request: Any, context: Any) -> Any:
        ids.append(upstream._ranks._REQUEST.get())
        yield {"data": [{"score": 0.5}], "model": "m"}

    answer, state = answering(generate, [], pools=True, replays=False)
    (chunk,) = [chunk async for chunk in answer({"input": "x"}, context=USER)]
    assert chunk["model"] == "m"
    (chunk,) = [chunk async for chunk in answer({"input": "x"}, context=PROBE)]
    assert chunk == {"data": [{"score": 0.5}], "model": "77"}, "the worker identifies itself"
    assert [str(one).startswith(PROBE_PREFIX) for one in ids] == [False, True]
    state.stopped = True
    with pytest.raises(EngineNotGeneratingError):  # an EngineShutdown would be answered by another worker
        await anext(answer({"input": "x"}, context=PROBE))
    assert len(ids) == 2


async def test_a_frontends_probe_of_a_pair_runs_without_counting_as_a_users_request() -> None:
    """Dynamo's handlers take the id from the context, which is read-only. An abort must name the same id."""
    ids: list[str] = []

    class Client:
        model_config = "vLLM's"

        async def generate(self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any) -> Any:
            ids.append(request_id)
            yield kwargs

        async def abort(self, request_id: str) -> None:
            ids.append(request_id)

    client = upstream._phases.NamingClient(Client())
    assert client.model_config == "vLLM's"

    async def generate(request: Any, context: Any) -> Any:
        async for chunk in client.generate("prompt", None, "id", priority=1):
            await asyncio.create_task(client.abort("id"))
            yield chunk

    answer, _ = answering(generate, [], replays=False)

    async def chunks(context: FakeContext) -> list[Any]:
        return [chunk async for chunk in answer({"token_ids": [1]}, context=context)]

    assert await asyncio.create_task(chunks(USER)) == [{"priority": 1}]
    assert await asyncio.create_task(chunks(PROBE)) == [{"priority": 1}]
    assert ids[:2] == ["id", "id"]
    assert ids[2] == ids[3]
    assert ids[2].startswith(PROBE_PREFIX)
    assert ids[2].endswith("-id")


@pytest.mark.parametrize("mode", ["prefill", "decode", "agg"])
async def test_a_worker_for_one_phase_probes_itself_with_both(mode: str) -> None:
    """Its own probe must have all tokens of the payload, and no KV blocks may wait for another worker."""
    config = types.SimpleNamespace(disaggregation_mode=DisaggregationMode(mode), enable_rl=False)
    handler_class = handlers.PrefillWorkerHandler if mode == "prefill" else handlers.DecodeWorkerHandler
    handler = handler_class.__new__(handler_class)
    vars(handler).update(
        config=config,
        runtime="runtime",
        engine_client="client",
        engine_monitor=types.SimpleNamespace(runtime=0),
    )
    engine = upstream.WorkerEngine(config, asyncio.Event())
    engine.set_handler(handler)
    used = engine._generate.__self__
    assert type(used) is handlers.DecodeWorkerHandler
    assert used.config.disaggregation_mode is DisaggregationMode.AGGREGATED
    assert config.disaggregation_mode is DisaggregationMode(mode)
    assert used.runtime is handler.runtime
    assert used.engine_client is handler.engine_client
    assert (used is handler) == (mode == "agg") == engine.replays_probes
    assert isinstance(handler.engine_client, str) == (mode == "agg")
    engine.client = "vLLM's"
    assert (engine.http_client == engine.client) == (mode == "agg")
    assert engine.answer_form.name == ("KV_BLOCKS" if mode == "prefill" else "TOKENS")


async def test_clients_of_the_http_port_give_no_parameters_of_a_transfer() -> None:
    received: list[Any] = []

    class Client:
        errored = False

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            received.append((args, kwargs))
            return "stream"

        async def notify_kv_transfer_request_rejected(self, *args: Any) -> None:
            received.append(args)

    client = upstream._phases.LocalClient(Client())
    assert client.errored is False
    for extra in (None, {}, {"kv_transfer_params": None}, {"other": 1}):
        params = SamplingParams(extra_args=extra)
        assert client.generate("prompt", params, "id", priority=1) == "stream"
        assert received.pop() == (("prompt", params, "id"), {"priority": 1})
    assert client.generate(prompt="p", sampling_params=object(), request_id="id") == "stream"
    received.clear()
    with pytest.raises(ValueError, match="kv_transfer_params is not accepted at this port") as raised:
        client.generate(
            "p", SamplingParams(extra_args={"kv_transfer_params": {"do_remote_decode": True}}), "i"
        )
    assert upstream.rejection_of(raised.value) is not None, "vLLM answers 400"
    await client.notify_kv_transfer_request_rejected("id", {})
    assert received == []


@pytest.mark.parametrize("mode", ["prefill", "decode", "agg"])
def test_kv_blocks_that_wait_for_a_decode_worker_are_unfinished(mode: str) -> None:
    config = types.SimpleNamespace(disaggregation_mode=DisaggregationMode(mode))
    engine = upstream.WorkerEngine(config, asyncio.Event())
    logger = upstream.ProgressLogger(None)
    for usage in (0.25, 0.0):
        logger.record(SchedulerStats(kv_cache_usage=usage), None)
        assert engine.unfinished() == int(usage > 0 and mode == "prefill")


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
def test_a_dead_engine_is_reported_instead_of_upstreams_exit(dead: str | None) -> None:
    called: list[str] = []
    engine = types.SimpleNamespace(dead=lambda: dead, on_died=lambda: called.append("died"))
    runtime = types.SimpleNamespace(shutdown=lambda: called.append("shutdown"), endpoint="theirs")
    interceptor = upstream._engine.ShutdownInterceptor(runtime, engine, KeyError)
    assert interceptor.endpoint == "theirs"
    with pytest.raises(KeyError) if dead else contextlib.nullcontext():
        interceptor.shutdown()
    assert called == (["died"] if dead else ["shutdown"])
