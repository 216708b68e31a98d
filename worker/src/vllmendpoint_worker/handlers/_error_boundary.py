"""Whose fault an error around customer code is, and what the client is answered.

vLLM's app answers 400 to every ``ValueError`` and ``TypeError``, because its own routes raise them for bad
requests. A custom handler raises them because it is wrong: around one, only an error that is certainly the
client's keeps its answer, and every other is a 500 that is logged and reported.
"""

import asyncio
import inspect
import json
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from functools import partial, wraps
from itertools import chain
from typing import Any, Final

from fastapi import Request
from fastapi.encoders import jsonable_encoder
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from vllmendpoint_worker.errors import HandlerAbortedError

__all__ = [
    "EXITS",
    "App",
    "ExchangeStage",
    "HandlerApp",
    "MiddlewareApp",
    "Scope",
    "StreamExitError",
    "from_the_standards_package",
    "from_vllm",
    "internal_error",
    "invalid_body",
    "leaf",
    "reported",
    "returned",
    "unencodable",
]

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]
Failed = Callable[[BaseException, "ExchangeStage", Any], None]

_HANDLERS: Final = "starlette.exception_handlers"

EXITS: Final = (SystemExit, KeyboardInterrupt, HandlerAbortedError)
"""What customer code raises, or what is raised in it, that is no Exception and must not go further."""


class ExchangeStage(StrEnum):
    """How far an exchange had come when it failed."""

    CALL = "Call"
    RESULT = "Result"
    STREAM = "Stream"
    BACKGROUND = "Background"


@dataclass(slots=True)
class _Exchange:
    """One request of a custom handler, on its way."""

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


def returned(result: Any) -> None:
    """The handler has returned: what fails from now on is its result."""
    if (exchange := _EXCHANGE.get()) is not None:
        exchange.stage, exchange.result = ExchangeStage.RESULT, result


class HandlerApp:
    """The ASGI app of a custom handler's route. ``failed`` gets every error that is the handler's, the stage
    that it came in, and the handler's result.
    """

    def __init__(self, app: App, route: str, failed: Failed) -> None:
        self._app = app
        self._route = route
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        exchange = _Exchange()
        handlers = scope.get(_HANDLERS)
        if handlers is not None:
            scope[_HANDLERS] = _specific(*handlers)
        token = _EXCHANGE.set(exchange)
        try:
            await self._app(scope, receive, partial(exchange.send, send))
        except (Exception, *EXITS) as error:  # noqa: BLE001  (told by _answer)
            await self._answer(error, exchange, scope, receive, send)
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            await self._answer(error, exchange, scope, receive, send)
        finally:
            _EXCHANGE.reset(token)
            scope[_HANDLERS] = handlers

    async def _answer(
        self, error: BaseException, exchange: _Exchange, scope: Scope, receive: Any, send: Any
    ) -> None:
        cause = leaf(error)
        if isinstance(cause, ClientDisconnect):
            return
        if not exchange.started and from_vllm(cause):
            raise cause
        self._failed(cause, exchange.stage, exchange.result)
        if not exchange.started:
            await internal_error(f"handler of {self._route}")(scope, receive, send)
        elif exchange.stage is ExchangeStage.STREAM:
            # The server closes the connection, so that the client sees that its answer is not whole.
            raise RuntimeError(f"the answer of {self._route} broke off") from cause


def _is_cancelled() -> bool:
    """Whether the request itself is cancelled: a handler also raises CancelledError where it awaits a task
    that was cancelled.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


_REPORT: Final[ContextVar[Callable[[BaseException], None] | None]] = ContextVar("report", default=None)


class MiddlewareApp:
    """The ASGI app around customer middleware. ``failed`` gets every error that is the middleware's, and not
    one of what it calls, and the request's path.
    """

    def __init__(self, app: App, failed: Callable[[BaseException, str], None]) -> None:
        self._app = app
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, exchange = scope["path"], _Exchange()
        token = _REPORT.set(lambda error: self._failed(error, path))
        try:
            await self._app(scope, receive, partial(exchange.send, send))
        except (Exception, *EXITS) as error:
            cause = leaf(error)
            if isinstance(cause, ClientDisconnect) or _of_the_app(cause):
                raise
            self._failed(cause, path)
            if exchange.started:
                raise RuntimeError(f"the answer of {path} broke off") from cause
            await internal_error("middleware")(scope, receive, send)
        finally:
            _REPORT.reset(token)


def reported(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """A function that the standards package calls before or after a handler, and whose errors it turns into
    an answer without a trace: they are reported first.
    """
    if function is None:
        return None

    @wraps(function)
    async def call(subject: Any) -> Any:
        try:
            return await function(subject)
        except Exception as error:
            if (report := _REPORT.get()) is not None:
                report(error)
            raise

    return call


def _of_the_app(error: BaseException) -> bool:
    """Whether it comes from what the middleware calls: that is behind Starlette's own."""
    return "starlette.middleware.exceptions" in _modules(error)


def _modules(error: BaseException) -> list[str]:
    """The modules that the error came through, the innermost last."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [str(frame.f_globals.get("__name__", "")) for frame in frames]


def internal_error(what: str) -> Any:
    """A 500 in the form of vLLM's own errors. The error's text may hold data, and is in the log only."""
    message = f"The custom {what} failed. The worker's log says where."
    said = {"message": message, "type": "InternalServerError", "param": None, "code": 500}
    return JSONResponse({"error": said}, status_code=500)


def _specific(exception_handlers: Mapping[Any, Any], status_handlers: Any) -> tuple[Any, Any]:
    """vLLM's exception handlers without those for Python's own exceptions."""
    kept = {kind: handle for kind, handle in exception_handlers.items() if kind.__module__ != "builtins"}
    for kind, handle in kept.items():
        if issubclass(kind, HTTPException):
            kept[kind] = partial(_http_exception, handle)
    return kept, status_handlers


async def _http_exception(handle: Callable[..., Any], request: Request, error: HTTPException) -> Any:
    """vLLM's answer; FastAPI's for a detail that is no text and a status that has no name, on which vLLM's
    handler fails.
    """
    try:
        answer = handle(request, error)
        return await answer if inspect.isawaitable(answer) else answer
    except (TypeError, ValueError):
        return await http_exception_handler(request, error)


class StreamExitError(RuntimeError):
    """Carries what would end the process: a stream is iterated in a task of its own, where it would."""


def leaf(error: BaseException) -> BaseException:
    """The error itself, where a group or Starlette's own error only carries it."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif error.__cause__ is not None and (
            isinstance(error, StreamExitError) or str(error).startswith("Caught handled exception")
        ):
            error = error.__cause__
        else:
            return error


def from_vllm(error: BaseException) -> bool:
    """Whether vLLM refuses a value that the handler passed on: vLLM answers it as on its own routes."""
    if not isinstance(error, ValueError):
        return False
    return _modules(error)[-1:] != [] and _modules(error)[-1].partition(".")[0] == "vllm"


def from_the_standards_package(error: BaseException) -> bool:
    """Whether SageMaker's package has raised it, in the place of another error or because of an answer."""
    return _modules(error)[-1:] != [] and _modules(error)[-1].startswith("model_hosting_container_standards")


def invalid_body(error: BaseException, request: Request | None) -> str | None:
    """What is wrong with the request's body, where that is what the handler failed on."""
    body = vars(request).get("_body") if request is not None else None
    if not isinstance(body, bytes):
        return None
    if isinstance(error, json.JSONDecodeError):
        text = body.decode(json.detect_encoding(body), "replace")
        if str(error.doc).strip() == text.strip():
            return f"The request's body is not JSON: {error.msg} (char {error.pos})."
    if isinstance(error, UnicodeDecodeError) and error.object == body:
        return f"The request's body is not {error.encoding}: {error.reason} (byte {error.start})."
    return None


def unencodable(result: Any, depth: int = 8) -> str:
    """The type of what keeps a result from being sent as JSON; ``""`` where all of it can be."""
    if isinstance(result, Mapping) and depth:
        keys = (_kind(key) for key in result if not _encodable({key: None}))
        return next(chain(keys, filter(None, (unencodable(item, depth - 1) for item in result.values()))), "")
    if isinstance(result, list | tuple | set) and depth:
        return next(filter(None, (unencodable(item, depth - 1) for item in result)), "")
    return "" if _encodable(result) else _kind(result)


def _encodable(value: Any) -> bool:
    try:
        JSONResponse(jsonable_encoder(value))
    except Exception:  # noqa: BLE001  (whatever a customer's class raises)
        return False
    return True


def _kind(value: Any) -> str:
    if isinstance(value, float):
        return "a number that is not finite"
    if isinstance(value, bytes):
        return "bytes that are not UTF-8"
    if isinstance(value, str):
        return "text with half of a character (a lone surrogate)"
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
