"""A custom handler as a FastAPI endpoint, with reports of its errors and the time that its calls take."""

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

from ._error_boundary import EXIT_ERRORS, App, ExchangeStage, HandlerApp, set_result
from ._error_origin import StreamExitError, describe_invalid_body, find_unencodable
from ._log_limit import LogLimit
from .loading._load_problems import error_location
from .loading._loader import Handler
from .loading._signature import is_async, source_location

__all__ = ["MAX_THREADS", "HandlerEndpoint"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

MAX_THREADS: Final = 40
"""Threads of each synchronous handler. They are a pool of its own, so vLLM's routes work while they hang."""

_RETURN: Final = "return numbers, strings, lists and dicts of Python, or a Response"
_REMEDY: Final = {
    "coroutine": "await it",
    "async_generator": "return a StreamingResponse of it",
}


class HandlerEndpoint:
    """The endpoint of one route. ``on_error`` receives a sentence for every error that the handler causes."""

    def __init__(
        self,
        route: Route,
        handler: Handler,
        config: HandlerConfig,
        *,
        on_error: Callable[[Route, str], None],
        clock: Clock,
    ) -> None:
        self.route = route
        self.handler = handler
        self._config = config
        self._on_error = on_error
        self._clock = clock
        self._limiter = anyio.CapacityLimiter(MAX_THREADS)
        self._running: dict[object, float] = {}
        self._log_limit = LogLimit(clock)
        self._is_async = is_async(handler.function)

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
        """The ASGI application of the route: ``inner``, FastAPI's, within an error boundary."""
        return HandlerApp(inner, self.route.value, self._report_error)

    def running_for(self) -> float:
        """Seconds since the start of the oldest call that has not returned; 0 if no call runs."""
        began = min(list(self._running.values()), default=None)
        return 0.0 if began is None else self._clock.monotonic() - began

    def hanging_since(self, seconds: float) -> float | None:
        """Start of the newest call that has run for longer than ``seconds``, on the monotonic clock; None if
        there is no such call.
        """
        latest = self._clock.monotonic() - seconds
        return max((began for began in list(self._running.values()) if began < latest), default=None)

    async def _call(self, values: dict[str, Any]) -> Any:
        request = next((value for value in values.values() if isinstance(value, Request)), None)
        try:
            result = await self._run(values)
        except Exception as error:
            if (message := describe_invalid_body(error, request)) is not None:
                raise HTTPException(400, message) from error
            raise
        set_result(result)
        if isinstance(result, StreamingResponse):
            result.body_iterator = _without_exits(result.body_iterator)
        return result

    async def _run(self, values: dict[str, Any]) -> Any:
        arguments, keywords = self.handler.binding.arguments(values)
        if self._is_async:
            with self._track_call():
                return await self.handler.function(*arguments, **keywords)
        work = functools.partial(self._run_in_thread, arguments, keywords)
        result = await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
        if not inspect.isawaitable(result):
            return result
        with self._track_call():
            return await result

    def _run_in_thread(self, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        with self._track_call():
            return self.handler.function(*arguments, **keywords)

    def _report_error(self, error: BaseException, stage: ExchangeStage, result: Any) -> None:
        """Log and report an error that the handler caused."""
        message = self._error_message(error, stage, result)
        if inspect.iscoroutine(result):
            result.close()  # otherwise Python warns of it at a later time
        self._on_error(self.route, message)
        level = self._log_limit.level(self.route, message)
        logger.log(level, "The custom handler failed: route=%s error=%s", self.route, message, exc_info=error)

    def _error_message(self, error: BaseException, stage: ExchangeStage, result: Any) -> str:
        """What happened and where. It does not repeat the error's own text, which may contain data."""
        name, kind = self.handler.name, type(error).__name__
        at = f" at {location}" if (location := error_location(error, self._config)) else ""
        if not at and (code := source_location(self.handler.function)) is not None:
            name = f"{name} ({Path(code[0]).name} line {code[1]})"
        if isinstance(error, HandlerAbortedError):
            return f"{name} blocked the worker's event loop{at}, and was interrupted to be replaced."
        if stage is ExchangeStage.RESULT and not at:
            if (found := find_unencodable(result)) and not isinstance(result, Response):
                remedy = _REMEDY.get(found, _RETURN)
                return f"{name} returned a value that JSON cannot represent, {found}: {remedy}."
            return f"{name} returned a {type(result).__name__} that cannot be sent: {kind}."
        when = {
            ExchangeStage.STREAM: " while its response was sent",
            ExchangeStage.BACKGROUND: " after its response was sent",
        }
        return f"{name} raised {kind}{at}{when.get(stage, '')}."

    @contextmanager
    def _track_call(self) -> Iterator[None]:
        """Record a call for as long as it runs: a thread continues after its request was cancelled."""
        call = object()  # not a counter, because threads would increase it concurrently
        self._running[call] = self._clock.monotonic()
        try:
            yield
        finally:
            del self._running[call]


async def _without_exits(items: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The items of a stream. An error that would end the process ends the stream instead, which is iterated
    in a task of its own.
    """
    try:
        async for item in items:
            yield item
    except EXIT_ERRORS as error:
        raise StreamExitError from error
