"""A custom handler as a FastAPI endpoint, watched: what it raises, what it returns and how long it has been
running.
"""

import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
from fastapi import HTTPException, Request, Response
from fastapi.responses import StreamingResponse

from vllmendpoint_worker.config.handler_config import HandlerConfig, Route
from vllmendpoint_worker.errors import HandlerAbortedError
from vllmendpoint_worker.process.clock import Clock

from ._error_boundary import (
    EXITS,
    App,
    ExchangeStage,
    HandlerApp,
    StreamExitError,
    invalid_body,
    returned,
    unencodable,
)
from ._log_limit import LogLimit
from .loading._load_problems import failed_at
from .loading._loader import Handler
from .loading._signature import defined_in, is_async

__all__ = ["MAX_THREADS", "HandlerEndpoint"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

MAX_THREADS: Final = 40
"""Threads for handlers that are no coroutines, of their own: where they all hang, vLLM's routes go on."""

_RETURN: Final = "return Python's own numbers, texts, lists and dicts, or a Response"
_ADVICE: Final = {
    "coroutine": "await it",
    "async_generator": "return a StreamingResponse of it",
}


class HandlerEndpoint:
    """``failed`` is told, in one sentence, of every error that the handler raises."""

    def __init__(
        self,
        route: Route,
        handler: Handler,
        wanted: HandlerConfig,
        *,
        failed: Callable[[Route, str], None],
        clock: Clock,
    ) -> None:
        self.route = route
        self.handler = handler
        self._wanted = wanted
        self._failed = failed
        self._clock = clock
        self._limiter = anyio.CapacityLimiter(MAX_THREADS)
        self._running: dict[object, float] = {}
        self._log_limit = LogLimit(clock)
        self._async = is_async(handler.function)

    @property
    def function(self) -> Callable[..., Any]:
        """For ``add_api_route``: a coroutine function with the handler's own parameters."""

        async def endpoint(**arguments: Any) -> Any:
            return await self._call(arguments)

        endpoint.__name__ = getattr(self.handler.function, "__name__", "handler")
        endpoint.__doc__ = inspect.getdoc(self.handler.function)
        endpoint.__signature__ = self.handler.binding.signature  # type: ignore[attr-defined]
        return endpoint

    def app(self, inner: App) -> App:
        """The ASGI app of the route: ``inner``, FastAPI's, with the handler's errors told apart."""
        return HandlerApp(inner, self.route.value, self._told)

    def running_for(self) -> float:
        """Seconds since the oldest call that has not returned yet began; 0 where none runs."""
        began = min(list(self._running.values()), default=None)
        return 0.0 if began is None else self._clock.monotonic() - began

    def hanging(self, seconds: float) -> float | None:
        """When the newest of the calls began that have run for longer than ``seconds``; None: none has."""
        latest = self._clock.monotonic() - seconds
        return max((began for began in list(self._running.values()) if began < latest), default=None)

    async def _call(self, values: dict[str, Any]) -> Any:
        request = next((value for value in values.values() if isinstance(value, Request)), None)
        try:
            result = await self._returned(values)
        except Exception as error:
            if (wrong := invalid_body(error, request)) is not None:
                raise HTTPException(400, wrong) from error
            raise
        returned(result)
        if isinstance(result, StreamingResponse):
            result.body_iterator = _without_exits(result.body_iterator)
        return result

    async def _returned(self, values: dict[str, Any]) -> Any:
        arguments, named = self.handler.binding.arguments(values)
        if self._async:
            with self._counted():
                return await self.handler.function(*arguments, **named)
        work = functools.partial(self._in_thread, arguments, named)
        result = await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
        if not inspect.isawaitable(result):
            return result
        with self._counted():
            return await result

    def _in_thread(self, arguments: list[Any], named: dict[str, Any]) -> Any:
        with self._counted():
            return self.handler.function(*arguments, **named)

    def _told(self, error: BaseException, stage: ExchangeStage, result: Any) -> None:
        """Log and report an error that is the handler's."""
        sentence = self._sentence(error, stage, result)
        if inspect.iscoroutine(result):
            result.close()  # else Python warns of it, at some other time
        self._failed(self.route, sentence)
        level = self._log_limit.level(self.route, sentence)
        logger.log(level, "The handler of %s failed: %s", self.route, sentence, exc_info=error)

    def _sentence(self, error: BaseException, stage: ExchangeStage, result: Any) -> str:
        """What happened, and where; never the error's own text, which may hold data."""
        name, kind = self.handler.name, type(error).__name__
        at = f" at {where}" if (where := failed_at(error, self._wanted)) else ""
        if not at and (code := defined_in(self.handler.function)) is not None:
            name = f"{name} ({Path(code[0]).name} line {code[1]})"
        if isinstance(error, HandlerAbortedError):
            return f"{name} blocked the worker's event loop{at}, and was interrupted to be replaced."
        if stage is ExchangeStage.RESULT and not at:
            if (culprit := unencodable(result)) and not isinstance(result, Response):
                return f"{name} returned what JSON cannot hold, {culprit}: {_ADVICE.get(culprit, _RETURN)}."
            return f"{name} returned a {type(result).__name__} that cannot be sent: {kind}."
        when = {
            ExchangeStage.STREAM: " while its answer was sent",
            ExchangeStage.BACKGROUND: " after its answer was sent",
        }
        return f"{name} raised {kind}{at}{when.get(stage, '')}."

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """One call, for as long as it really runs: a thread outlives the request that was given up."""
        call = object()  # no number: threads would count at the same time
        self._running[call] = self._clock.monotonic()
        try:
            yield
        finally:
            del self._running[call]


async def _without_exits(items: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The items of a stream, which is iterated in a task of its own: what would end the process there ends
    the stream.
    """
    try:
        async for item in items:
            yield item
    except EXITS as error:
        raise StreamExitError from error
