"""A custom handler as a FastAPI endpoint, watched: what it raises and how long it has been running.

Bound so that every example of the guide works as printed: an unannotated ``request`` is the request (FastAPI
would take it for a query parameter and answer 422).
"""

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, get_type_hints

import anyio
import anyio.to_thread
from fastapi import HTTPException, Request

from vllmendpoint_worker.board import Clock
from vllmendpoint_worker.handler_sources import Route, Wanted

from ._load import Handler, failed_at

__all__ = ["MAX_THREADS", "Endpoint"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

MAX_THREADS: Final = 40
"""Threads for handlers that are no coroutines, of their own: where they all hang, vLLM's routes go on."""


class Endpoint:
    """``failed`` is told, in one sentence, of every error that the handler raises."""

    def __init__(
        self,
        route: Route,
        handler: Handler,
        wanted: Wanted,
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
        self._async = _is_async(handler.function)

    @property
    def function(self) -> Callable[..., Any]:
        """For ``add_api_route``: a coroutine function with the handler's own parameters."""

        async def endpoint(**arguments: Any) -> Any:
            return await self._call(arguments)

        endpoint.__name__ = getattr(self.handler.function, "__name__", "handler")
        endpoint.__doc__ = inspect.getdoc(self.handler.function)
        endpoint.__signature__ = signature_of(self.handler.function)  # type: ignore[attr-defined]
        return endpoint

    def running_for(self) -> float:
        """Seconds since the oldest call that has not returned yet began; 0 where none runs."""
        began = min(list(self._running.values()), default=None)
        return 0.0 if began is None else self._clock.monotonic() - began

    def hanging(self, seconds: float) -> float | None:
        """When the newest of the calls began that have run for longer than ``seconds``; None: none has."""
        latest = self._clock.monotonic() - seconds
        return max((began for began in list(self._running.values()) if began < latest), default=None)

    async def _call(self, arguments: dict[str, Any]) -> Any:
        try:
            if self._async:
                with self._counted():
                    return await self.handler.function(**arguments)
            work = functools.partial(self._in_thread, arguments)
            result = await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
            if not inspect.isawaitable(result):
                return result
            with self._counted():
                return await result
        except HTTPException:
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            where = failed_at(error, self._wanted)
            sentence = f"{self.handler.name} raised {type(error).__name__}"
            self._failed(self.route, f"{sentence} at {where}." if where else f"{sentence}.")
            logger.warning("The handler of %s failed", self.route, exc_info=error)
            if isinstance(error, Exception):
                raise
            raise RuntimeError(sentence) from error  # it must not end the event loop

    def _in_thread(self, arguments: dict[str, Any]) -> Any:
        with self._counted():
            return self.handler.function(**arguments)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """One call, for as long as it really runs: a thread outlives the request that was given up."""
        call = object()  # no number: threads would count at the same time
        self._running[call] = self._clock.monotonic()
        try:
            yield
        finally:
            del self._running[call]


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The handler's parameters, postponed annotations resolved, unannotated required ones as the request."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin that does not tell
        parameter = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Request)
        return inspect.Signature([parameter])
    hints = _hints(function)
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        annotation = hints.get(parameter.name, parameter.annotation)
        required = parameter.default is inspect.Parameter.empty
        if annotation is inspect.Parameter.empty and required:
            annotation = Request
        parameters.append(parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY))
    return inspect.Signature(parameters)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        return get_type_hints(target, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}  # FastAPI says what it cannot make of them


def _is_async(function: Callable[..., Any]) -> bool:
    plain = function.func if isinstance(function, functools.partial) else function
    return inspect.iscoroutinefunction(plain) or inspect.iscoroutinefunction(type(plain).__call__)
