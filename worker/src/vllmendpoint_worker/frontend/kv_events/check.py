"""One check of KV events: two requests with the same new prompt to one worker.

Measured on Dynamo 1.6.1: ``nvext.timing.kv_hit_rate`` of a response is the share of the prompt's blocks that
the router knew to be in the cache of the selected worker, also for a request that is pinned to a worker.
``usage`` contains the number of tokens that the engine took from its cache. A prompt that the engine has
cached and the router does not know proves that the events do not arrive.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from vllmendpoint_worker.frontend.http_client import HttpResponse
from vllmendpoint_worker.frontend.probing.probe import RANK_HEADER, WORKER_HEADER, Client, RequestForm
from vllmendpoint_worker.process.clock import Clock

from .state import CheckEnd, CheckOutcome

__all__ = ["KVCheck", "run_check"]

CHECK_TIMEOUT_SECONDS: Final = 30.0
"""Of one check. The engine computes the prompt, so a busy one may take long."""
DELAYS: Final = (0.05, 0.2, 0.5, 1.0)
"""Seconds before each repetition of the second request: the events take a moment."""
EXTRA_WORDS: Final = 16

_NOT_RECEIVED: Final = (
    "The worker has a prompt of the frontend in its KV cache, but the KV event has not arrived at the "
    "frontend's router. Check the NetworkPolicies between the pods: the frontend connects to the worker's "
    "ports from 9092."
)
_NOT_CACHED: Final = (
    "The engine does not keep a repeated prompt in its KV cache. See the log of the worker, or set another "
    "frontend.routing.mode."
)


@dataclass(frozen=True, slots=True)
class KVCheck:
    """``attempts``: number of requests after which the router certainly has drawn the worker's set."""

    model: str
    form: RequestForm
    instance_id: int
    block_size: int
    attempts: int
    rank: int = 0
    """Data-parallel rank, which has a KV cache of its own."""


@dataclass(frozen=True, slots=True)
class _Answer:
    hit_rate: float
    """Share of the prompt's blocks that the router found in the worker's cache."""
    cached_tokens: int
    prompt_tokens: int


class _NoAnswerError(Exception):
    """The message is what the HTTP server responded."""


async def run_check(
    client: Client, check: KVCheck, clock: Clock, on_response: Callable[[Any], None] = lambda _: None
) -> CheckEnd:
    """``on_response`` receives the JSON of each response with status 200."""

    def end(outcome: CheckOutcome, message: str = "") -> CheckEnd:
        return CheckEnd(clock.monotonic(), outcome, message)

    deadline = clock.monotonic() + CHECK_TIMEOUT_SECONDS
    body = _body(check)
    try:
        first = await _send(client, check, body, lambda: deadline - clock.monotonic(), on_response)
        if first.prompt_tokens <= check.block_size:
            raise _NoAnswerError("the prompt is too short")
        last = first
        for delay in DELAYS:
            await asyncio.sleep(delay)
            last = await _send(client, check, body, lambda: deadline - clock.monotonic(), on_response)
            if last.hit_rate > first.hit_rate:
                return end(CheckOutcome.RECEIVED)
    except (OSError, ValueError, _NoAnswerError) as error:
        return end(CheckOutcome.FAILED, f"The check was not answered: {type(error).__name__}: {error}."[:300])
    if last.cached_tokens > first.cached_tokens:
        return end(CheckOutcome.MISSING, _NOT_RECEIVED)
    return end(CheckOutcome.NOT_CACHED, _NOT_CACHED)


def _body(check: KVCheck) -> dict[str, Any]:
    """A request whose prompt is new and longer than one block. Most tokenizers make one token of a letter."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [letters[number % len(letters)] for number in range(check.block_size + EXTRA_WORDS)]
    text = f"{uuid4().hex[:12]} {' '.join(words)}"
    content: dict[str, Any] = {"prompt": text}
    if check.form is RequestForm.CHAT:
        content = {"messages": [{"role": "user", "content": text}]}
    return {"model": check.model, "max_tokens": 1, "nvext": {"extra_fields": ["timing"]}, **content}


async def _send(
    client: Client,
    check: KVCheck,
    body: dict[str, Any],
    seconds_left: Callable[[], float],
    on_response: Callable[[Any], None],
) -> _Answer:
    """Raises _NoAnswerError, and as :meth:`.HttpClient.get`."""
    headers = {WORKER_HEADER: str(check.instance_id), RANK_HEADER: str(check.rank)}
    for _ in range(check.attempts):
        if (left := seconds_left()) <= 0.0:
            raise TimeoutError
        response = await client.post(check.form, body, headers, left)
        if response.status != 400:
            break
    if response.status != 200:
        raise _NoAnswerError(str(response.status))
    on_response(response.json())
    return _parse(response)


def _parse(response: HttpResponse) -> _Answer:
    body = response.json()
    try:
        usage = body["usage"]
        return _Answer(
            hit_rate=float(body["nvext"]["timing"]["kv_hit_rate"]),
            cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
            prompt_tokens=int(usage["prompt_tokens"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _NoAnswerError(f"the response has no {error}") from error
