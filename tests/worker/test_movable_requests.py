"""How the streams of Dynamo's requests end: complete, moved to another worker, or cancelled by the client."""

import asyncio
import types
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch and vLLM warn while they are imported
    from dynamo.llm.exceptions import EngineShutdown, HttpError
    from vllm.v1.engine.exceptions import EngineDeadError

    from vllmendpoint_worker.upstream import _in_flight, _phases
    from vllmendpoint_worker.upstream._in_flight import AnswerForm, MovableRequests

pytestmark = pytest.mark.timeout(120)

TOKEN = {"index": 0, "token_ids": [1]}
LAST = TOKEN | {"finish_reason": "stop"}
ABORTED = {"index": 0, "token_ids": [], "finish_reason": "cancelled"}
HANG = "hang"


def context(*, cancelled: bool = False) -> Any:
    return types.SimpleNamespace(is_stopped=lambda: cancelled, is_killed=lambda: False)


class Handler:
    """Dynamo's handler. ``steps``: chunks to yield, errors to raise and HANG."""

    def __init__(self, *steps: Any) -> None:
        self._steps = steps
        self.closed = 0

    async def generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            for step in self._steps:
                if step is HANG:
                    await asyncio.Event().wait()
                if isinstance(step, BaseException):
                    raise step
                yield step
        finally:
            self.closed += 1


async def read(stream: AsyncIterator[Any]) -> tuple[int, str]:
    """Number of chunks, and the name of the error or "". As Dynamo does, each chunk is read in a task."""
    chunks = 0
    while True:
        try:
            await asyncio.ensure_future(_next(stream))
        except StopAsyncIteration:
            return chunks, ""
        except Exception as error:  # noqa: BLE001
            return chunks, type(error).__name__
        chunks += 1


async def _next(stream: AsyncIterator[Any]) -> Any:
    return await anext(stream)


def requests(dead: str | None = None) -> MovableRequests:
    return MovableRequests(lambda: dead)


@pytest.mark.parametrize(
    ("steps", "cancelled", "choices", "expected"),
    [
        ([TOKEN, LAST], False, 1, (2, "")),
        ([TOKEN, LAST], True, 1, (2, "")),
        ([TOKEN], False, 1, (1, "EngineShutdown")),
        ([TOKEN], True, 1, (1, "")),
        ([], False, 1, (0, "EngineShutdown")),
        ([TOKEN, LAST], False, 2, (2, "EngineShutdown")),
        ([TOKEN, LAST, LAST | {"index": 1}], False, 2, (3, "")),
        ([TOKEN, ABORTED], False, 1, (1, "EngineShutdown")),
        ([TOKEN, ABORTED], True, 1, (2, "")),
        ([TOKEN, LAST | {"finish_reason": "error: no luck"}], False, 1, (2, "")),
        ([TOKEN, EngineDeadError()], False, 1, (1, "EngineShutdown")),
        ([TOKEN, EngineDeadError()], True, 1, (1, "")),
        ([TOKEN, EngineShutdown("upstream")], False, 1, (1, "EngineShutdown")),
        ([TOKEN, EngineShutdown("upstream")], True, 1, (1, "")),
        ([HttpError(400, "no")], False, 1, (0, "HttpError")),
        ([ValueError("no")], False, 1, (0, "ValueError")),
        ([ValueError("no")], True, 1, (0, "ValueError")),
    ],
)
async def test_a_stream_that_ends_early_moves_unless_the_client_cancelled_it(
    steps: list[Any], cancelled: bool, choices: int, expected: tuple[int, str]
) -> None:
    request = {"token_ids": [1], "sampling_options": {"n": choices}}
    movable = requests()
    stream = movable.wrap(Handler(*steps).generate)(request, context(cancelled=cancelled))
    assert await read(stream) == expected
    assert len(movable) == 0


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, 1),
        ({"sampling_options": None, "extra_args": None}, 1),
        ({"sampling_options": {"n": None}}, 1),
        ({"sampling_options": {"n": 3}}, 3),
        ({"sampling_options": {"n": 3}, "extra_args": {"sampling_options": {"n": 2}}}, 2),
        ({"sampling_options": {"n": 3}, "extra_args": {"sampling_options": {}}}, 3),
    ],
)
def test_a_stream_has_as_many_choices_as_dynamos_handler_requests(
    request_: dict[str, Any], expected: int
) -> None:
    assert _in_flight._choices(request_) == expected


async def test_every_error_of_a_dead_engine_moves_the_request() -> None:
    handler = Handler(TOKEN, RuntimeError("socket closed"))
    assert await read(requests("dead").wrap(handler.generate)({}, context())) == (1, "EngineShutdown")


@pytest.mark.parametrize(("steps", "expected"), [([{"data": [1]}], (1, "")), ([], (0, "EngineShutdown"))])
async def test_an_answer_of_a_pooling_model_is_one_chunk(steps: list[Any], expected: tuple[int, str]) -> None:
    stream = requests().wrap(Handler(*steps).generate, AnswerForm.POOLED)({"input": "x"}, context())
    assert await read(stream) == expected


BLOCKS = TOKEN | {"disaggregated_params": {"kv_transfer_params": {"remote_block_ids": [[1]]}}}
NO_BLOCKS = TOKEN | {"disaggregated_params": None}


@pytest.mark.parametrize(
    ("steps", "cancelled", "expected"),
    [
        ([BLOCKS], False, (1, "")),
        ([BLOCKS], True, (1, "")),
        ([], False, (0, "EngineShutdown")),
        ([], True, (0, "")),
        ([NO_BLOCKS], False, (0, "EngineShutdown")),
        ([NO_BLOCKS], True, (1, "")),
        ([EngineDeadError()], False, (0, "EngineShutdown")),
        ([HttpError(400, "no")], False, (0, "HttpError")),
    ],
)
async def test_an_answer_of_a_prefill_worker_is_one_chunk_that_names_kv_blocks(
    steps: list[Any], cancelled: bool, expected: tuple[int, str]
) -> None:
    request = {"token_ids": [1], "sampling_options": {"n": 2}}
    wrapped = requests().wrap(Handler(*steps).generate, AnswerForm.KV_BLOCKS)
    assert await read(wrapped(request, context(cancelled=cancelled))) == expected


FAILED = {"index": 0, "token_ids": [], "finish_reason": "error"}
PREFILLED = {"prefill_result": {"disaggregated_params": {"kv_transfer_params": {"remote_block_ids": [[1]]}}}}
STRUCTURED = PREFILLED | {"sampling_options": {"guided_decoding": {"regex": "a"}}}


@pytest.mark.parametrize(
    ("request_", "steps", "expected"),
    [
        (PREFILLED, [FAILED], (0, "Disconnected")),
        (PREFILLED, [FAILED | {"finish_reason": "error: KV load"}], (0, "Disconnected")),
        (PREFILLED, [TOKEN, FAILED], (2, "")),
        (PREFILLED, [TOKEN, LAST], (2, "")),
        (PREFILLED, [TOKEN | {"finish_reason": "error"}], (1, "")),
        (STRUCTURED, [FAILED], (1, "")),
        ({"prefill_result": None}, [FAILED], (1, "")),
        ({"prefill_result": {"disaggregated_params": None}}, [FAILED], (1, "")),
    ],
)
async def test_a_request_whose_kv_blocks_were_lost_moves(
    request_: dict[str, Any], steps: list[Any], expected: tuple[int, str]
) -> None:
    """The frontend requests the prefill again, and does not avoid this worker."""
    handler = Handler(*steps)
    stream = requests().wrap(_phases.repeat_prefill(handler.generate))(request_, context())
    assert await read(stream) == expected
    assert handler.closed == 1


async def wait_for(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5.0):
        while not condition():
            await asyncio.sleep(0.01)


async def test_requests_that_wait_for_the_engine_move_and_their_handlers_end() -> None:
    movable = requests()
    handlers = [Handler(TOKEN, HANG), Handler(HANG), Handler(TOKEN, LAST)]
    reads = [asyncio.create_task(read(movable.wrap(handler.generate)({}, context()))) for handler in handlers]
    await wait_for(lambda: len(movable) == 2)
    await movable.drain()
    assert len(movable) == 0
    assert await asyncio.gather(*reads) == [(1, "EngineShutdown"), (0, "EngineShutdown"), (2, "")]
    assert [handler.closed for handler in handlers] == [1, 1, 1]


async def test_a_request_moves_while_its_consumer_is_slow() -> None:
    movable, handler = requests(), Handler(TOKEN, TOKEN, LAST)
    stream = movable.wrap(handler.generate)({}, context())
    assert await anext(stream) == TOKEN
    movable.move_all()
    assert await read(stream) == (0, "EngineShutdown")
    assert handler.closed == 1


async def test_a_complete_request_does_not_move() -> None:
    movable = requests()
    stream = movable.wrap(Handler(LAST).generate)({}, context())
    assert await anext(stream) == LAST
    movable.move_all()
    assert await read(stream) == (0, "")


async def test_a_cancelled_request_does_not_move() -> None:
    """Otherwise the frontend would avoid a healthy worker."""
    movable = requests()
    handler = Handler(TOKEN, HANG)
    reading = asyncio.create_task(read(movable.wrap(handler.generate)({}, context(cancelled=True))))
    await wait_for(lambda: len(movable) == 1)
    await asyncio.sleep(0.05)
    movable.move_all()
    assert await reading == (1, "")


async def test_a_stopped_engine_receives_no_requests() -> None:
    movable, handler = requests(), Handler(LAST)
    movable.is_stopped = lambda: True
    assert await read(movable.wrap(handler.generate)({}, context())) == (0, "EngineShutdown")
    assert handler.closed == 0


async def test_draining_without_requests_takes_no_time() -> None:
    async with asyncio.timeout(0.05):
        await requests().drain()
