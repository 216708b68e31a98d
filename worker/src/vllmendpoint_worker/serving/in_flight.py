"""Requests in flight, which the worker can interrupt together.

A request waits for the engine in a task that another component owns: Dynamo creates one for each chunk,
uvicorn one for each request. As in :func:`asyncio.timeout`, an interruption cancels the current task, and the
request turns that cancellation into an exception of its own.
"""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from vllmendpoint_worker.errors import RequestInterruptedError

__all__ = ["InFlightRequest", "InFlightRequests"]

T = TypeVar("T")


class InFlightRequest:
    """One request. ``is_interrupted`` stays true once :meth:`interrupt` was called."""

    __slots__ = ("_cancelled", "_task", "is_interrupted")

    def __init__(self) -> None:
        self.is_interrupted = False
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False

    def interrupt(self) -> None:
        if self.is_interrupted:
            return
        self.is_interrupted = True
        if self._task is not None:
            self._cancelled = True
            self._task.cancel()

    async def step(self, work: Awaitable[T]) -> T:
        """Await ``work``. Raises RequestInterruptedError if the request is or becomes interrupted."""
        task = asyncio.current_task()
        assert task is not None, "coroutines run in tasks"
        if self.is_interrupted:
            if asyncio.iscoroutine(work):
                work.close()
            raise RequestInterruptedError
        cancellations = task.cancelling()
        self._task = task
        try:
            return await work
        except asyncio.CancelledError:
            if self._cancelled and task.cancelling() <= cancellations + 1:
                raise RequestInterruptedError from None
            raise  # the owner of the task cancelled it
        finally:
            self._task = None
            if self._cancelled:
                self._cancelled = False
                task.uncancel()


class InFlightRequests:
    """The requests of one server."""

    def __init__(self) -> None:
        self._requests: set[InFlightRequest] = set()
        self._ended = asyncio.Event()

    def __len__(self) -> int:
        return len(self._requests)

    @contextmanager
    def track(self) -> Iterator[InFlightRequest]:
        request = InFlightRequest()
        self._requests.add(request)
        try:
            yield request
        finally:
            self._requests.discard(request)
            if not self._requests:
                self._ended.set()

    def interrupt(self) -> int:
        """Interrupt all requests. Returns how many were not interrupted before."""
        waiting = [request for request in self._requests if not request.is_interrupted]
        for request in waiting:
            request.interrupt()
        return len(waiting)

    async def wait_until_ended(self, seconds: float) -> bool:
        """Wait until no request is in flight, at most ``seconds``. Returns whether that is so."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._requests:
                    self._ended.clear()
                    await self._ended.wait()
        return not self._requests
