"""Ends Dynamo's requests in flight so that the frontend continues them at another worker.

Dynamo's frontend does so for a stream that ends with ``EngineShutdown``
(docs/decisions/0040-requests-move-to-another-worker.md).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from enum import Enum, auto
from typing import Any, Final

from dynamo.llm.exceptions import EngineShutdown
from vllm.v1.engine.exceptions import EngineDeadError

from vllmendpoint_worker.errors import RequestInterruptedError
from vllmendpoint_worker.serving.in_flight import InFlightRequests

__all__ = ["AnswerForm", "MovableRequests"]

logger = logging.getLogger(__name__)

DELIVERY_SECONDS: Final = 1.0
"""Longest wait for the streams to end."""

FLUSH_SECONDS: Final = 0.1
"""Time for Dynamo's runtime to send the ends of the streams."""

_ABORTED: Final = "cancelled"
"""Dynamo's finish reason of an aborted request."""

_STOPPED: Final = "The worker's engine does not generate tokens."
_INCOMPLETE: Final = "The engine ended the request before it was complete."


class AnswerForm(Enum):
    """How a complete answer ends."""

    TOKENS = auto()
    """With one finish reason for each choice."""
    POOLED = auto()
    """With its only chunk, which has no finish reason."""
    KV_BLOCKS = auto()
    """With its only chunk, which names the KV blocks of the prompt for a decode worker. That of an aborted
    request names none."""

    def expected_ends(self, request: Any) -> int:
        return _choices(request) if self is AnswerForm.TOKENS else 1

    def end(self, chunk: Any) -> str:
        """The finish reason of a chunk; empty if others follow. ``cancelled``: the engine aborted it."""
        match self:
            case AnswerForm.POOLED:
                return "stop"
            case AnswerForm.KV_BLOCKS:
                return "stop" if chunk.get("disaggregated_params") is not None else _ABORTED
        return chunk.get("finish_reason") or ""


class MovableRequests:
    """The requests of Dynamo's frontends at one worker.

    ``is_stopped``: whether the engine is stalled or dead, so that new requests end immediately. ``dead``: why
    the engine is dead, else None.
    """

    def __init__(self, dead: Callable[[], str | None]) -> None:
        self.is_stopped: Callable[[], bool] = lambda: False
        self._dead = dead
        self._requests = InFlightRequests()

    def __len__(self) -> int:
        return len(self._requests)

    def wrap(self, generate: Any, form: AnswerForm = AnswerForm.TOKENS) -> Any:
        """``generate`` of Dynamo's handler, whose requests :meth:`move_all` ends.

        A stream that ends early ends with ``EngineShutdown``, unless the client cancelled the request.
        """

        async def movable(request: Any, context: Any) -> AsyncIterator[Any]:
            if self.is_stopped():
                raise EngineShutdown(_STOPPED)
            remaining = form.expected_ends(request)
            with self._requests.track() as tracked:
                async with aclosing(generate(request, context)) as stream:
                    try:
                        while (chunk := await tracked.step(anext(stream, None))) is not None:
                            if finish_reason := form.end(chunk):
                                if finish_reason == _ABORTED and not _is_cancelled(context):
                                    break  # by the engine
                                remaining -= 1
                            yield chunk
                    except RequestInterruptedError:
                        pass
                    except Exception as error:
                        if not self._means_dead(error):
                            raise
            if remaining > 0 and not _is_cancelled(context):
                raise EngineShutdown(_STOPPED if self.is_stopped() else _INCOMPLETE)

        return movable

    def move_all(self) -> None:
        """End all requests in flight. The streams end as soon as the event loop runs."""
        if count := self._requests.interrupt():
            logger.warning("Requests in flight move to other workers: count=%d", count)

    async def drain(self) -> None:
        """:meth:`move_all`, and wait until the frontends have received the ends, at most about a second."""
        if not self._requests:
            return
        self.move_all()
        if not await self._requests.wait_until_ended(DELIVERY_SECONDS):
            logger.warning("Requests in flight did not end in time: count=%d", len(self._requests))
        await asyncio.sleep(FLUSH_SECONDS)

    def _means_dead(self, error: Exception) -> bool:
        return isinstance(error, (EngineDeadError, EngineShutdown)) or self._dead() is not None


def _choices(request: Any) -> int:
    """The number of finish reasons of a complete stream. Dynamo's handler reads the same fields."""
    extra = request.get("extra_args")
    places = (extra if isinstance(extra, Mapping) else {}, request)
    counts = [(place.get("sampling_options") or {}).get("n") for place in places]
    return next((count for count in counts if count), 1)


def _is_cancelled(context: Any) -> bool:
    """Whether the client has cancelled the request. Its end is not a failure of the worker then."""
    return bool(context.is_stopped() or context.is_killed())
