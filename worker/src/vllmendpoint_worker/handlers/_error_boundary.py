"""ASGI applications around customer code, which turn its errors into a 500 that is logged and reported.

vLLM's application answers 400 to every ``ValueError`` and ``TypeError``, because its own routes raise them
for invalid requests. A custom handler raises them because of a bug, so around a handler only an error that
the client certainly caused keeps its response.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Final

from fastapi import Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from vllmendpoint_worker.errors import HandlerAbortedError

from ._error_origin import is_from_vllm, is_raised_below_middleware, root_error
from .loading._error_reporting import report_errors_to

__all__ = [
    "EXIT_ERRORS",
    "App",
    "ExchangeStage",
    "HandlerApp",
    "MiddlewareApp",
    "Scope",
    "internal_error",
    "set_result",
]

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]
OnError = Callable[[BaseException, "ExchangeStage", Any], None]

_EXCEPTION_HANDLERS: Final = "starlette.exception_handlers"

EXIT_ERRORS: Final = (SystemExit, KeyboardInterrupt, HandlerAbortedError)
"""Errors in customer code that are no ``Exception`` and must not end the worker."""


class ExchangeStage(StrEnum):
    """The progress of a request and its response when an error occurred."""

    CALL = "Call"
    RESULT = "Result"
    STREAM = "Stream"
    BACKGROUND = "Background"


@dataclass(slots=True)
class _Exchange:
    """One request to customer code and the response to it."""

    stage: ExchangeStage = ExchangeStage.CALL
    result: Any = None
    started: bool = False

    async def send(self, send: Any, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            status = message["status"]
            if not isinstance(status, int) or not 200 <= status <= 599:
                raise ValueError("a response's status is a number from 200 to 599")
            self.started, self.stage = True, ExchangeStage.STREAM
        await send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.stage = ExchangeStage.BACKGROUND


_EXCHANGE: Final[ContextVar[_Exchange | None]] = ContextVar("handler_exchange", default=None)


def set_result(result: Any) -> None:
    """Record that the handler has returned ``result``: it causes the errors that follow."""
    if (exchange := _EXCHANGE.get()) is not None:
        exchange.stage, exchange.result = ExchangeStage.RESULT, result


class HandlerApp:
    """The ASGI application of a custom handler's route.

    ``on_error`` receives every error that the handler caused, its stage and the handler's result.
    """

    def __init__(self, app: App, route: str, on_error: OnError) -> None:
        self._app = app
        self._route = route
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        exchange = _Exchange()
        handlers = scope.get(_EXCEPTION_HANDLERS)
        if handlers is not None:
            scope[_EXCEPTION_HANDLERS] = _without_builtin_errors(*handlers)
        token = _EXCHANGE.set(exchange)
        try:
            await self._app(scope, receive, partial(exchange.send, send))
        except (Exception, *EXIT_ERRORS) as error:  # noqa: BLE001  (_respond reports it)
            await self._respond(error, exchange, scope, receive, send)
        except asyncio.CancelledError as error:
            if _is_request_cancelled():
                raise
            await self._respond(error, exchange, scope, receive, send)
        finally:
            _EXCHANGE.reset(token)
            scope[_EXCEPTION_HANDLERS] = handlers

    async def _respond(
        self, error: BaseException, exchange: _Exchange, scope: Scope, receive: Any, send: Any
    ) -> None:
        cause = root_error(error)
        if isinstance(cause, ClientDisconnect):
            return
        if not exchange.started and is_from_vllm(cause):
            raise cause
        self._on_error(cause, exchange.stage, exchange.result)
        if not exchange.started:
            await internal_error(f"handler of {self._route}")(scope, receive, send)
        elif exchange.stage is ExchangeStage.STREAM:
            # The server then closes the connection, which shows the client that the response is incomplete.
            raise RuntimeError(f"the response of {self._route} is incomplete") from cause


def _is_request_cancelled() -> bool:
    """Whether the request itself is cancelled. A handler also raises CancelledError if it awaits a task that
    was cancelled.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class MiddlewareApp:
    """The ASGI application around customer middleware.

    ``on_error`` receives every error of the middleware and the request's path, but no error of the
    application below it.
    """

    def __init__(self, app: App, on_error: Callable[[BaseException, str], None]) -> None:
        self._app = app
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, exchange = scope["path"], _Exchange()
        with report_errors_to(lambda error: self._on_error(error, path)):
            try:
                await self._app(scope, receive, partial(exchange.send, send))
            except (Exception, *EXIT_ERRORS) as error:
                cause = root_error(error)
                if isinstance(cause, ClientDisconnect) or is_raised_below_middleware(cause):
                    raise
                self._on_error(cause, path)
                if exchange.started:
                    raise RuntimeError(f"the response of {path} is incomplete") from cause
                await internal_error("middleware")(scope, receive, send)


def internal_error(what: str) -> Any:
    """A 500 in the form of vLLM's errors, without the error's text, which may contain data."""
    message = f"The custom {what} failed. The worker's log has the traceback."
    error = {"message": message, "type": "InternalServerError", "param": None, "code": 500}
    return JSONResponse({"error": error}, status_code=500)


def _without_builtin_errors(exception_handlers: Mapping[Any, Any], status_handlers: Any) -> tuple[Any, Any]:
    """vLLM's exception handlers without those for Python's built-in exceptions."""
    kept = {kind: handle for kind, handle in exception_handlers.items() if kind.__module__ != "builtins"}
    for kind, handle in kept.items():
        if issubclass(kind, HTTPException):
            kept[kind] = partial(_handle_http_exception, handle)
    return kept, status_handlers


async def _handle_http_exception(handle: Callable[..., Any], request: Request, error: HTTPException) -> Any:
    """vLLM's response, or FastAPI's if vLLM's exception handler fails: it does not support a detail that is
    no string or a status without a name.
    """
    try:
        answer = handle(request, error)
        return await answer if inspect.isawaitable(answer) else answer
    except (TypeError, ValueError):
        return await http_exception_handler(request, error)
