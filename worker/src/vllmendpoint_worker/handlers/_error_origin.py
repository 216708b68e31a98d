"""Finds out whether the client, vLLM, SageMaker's package or the custom handler caused an error."""

import json
import traceback
from collections.abc import Mapping
from itertools import chain
from typing import Any

from fastapi import Request
from fastapi.encoders import jsonable_encoder
from fastapi.responses import JSONResponse

__all__ = [
    "StreamExitError",
    "describe_invalid_body",
    "find_unencodable",
    "is_from_standards_package",
    "is_from_vllm",
    "is_raised_below_middleware",
    "root_error",
]


class StreamExitError(RuntimeError):
    """Replaces an error that would end the process, because a stream is iterated in a task of its own."""


def root_error(error: BaseException) -> BaseException:
    """The original error, without exception groups and the errors that Starlette or a stream wraps it in."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif error.__cause__ is not None and (
            isinstance(error, StreamExitError) or str(error).startswith("Caught handled exception")
        ):
            error = error.__cause__
        else:
            return error


def is_from_vllm(error: BaseException) -> bool:
    """Whether vLLM rejected a value that the handler passed to it. vLLM's own exception handlers then
    answer.
    """
    return isinstance(error, ValueError) and _raising_module(error).partition(".")[0] == "vllm"


def is_from_standards_package(error: BaseException) -> bool:
    """Whether SageMaker's package raised the error, instead of another error or because of a result."""
    return _raising_module(error).startswith("model_hosting_container_standards")


def is_raised_below_middleware(error: BaseException) -> bool:
    """Whether the application below customer middleware raised the error: it came through Starlette's own."""
    return "starlette.middleware.exceptions" in _modules(error)


def _raising_module(error: BaseException) -> str:
    return next(reversed(_modules(error)), "")


def _modules(error: BaseException) -> list[str]:
    """The modules in the error's traceback, the innermost last."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [str(frame.f_globals.get("__name__", "")) for frame in frames]


def describe_invalid_body(error: BaseException, request: Request | None) -> str | None:
    """What is wrong with the request's body; None if the body did not cause ``error``."""
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


def find_unencodable(result: Any, depth: int = 8) -> str:
    """The type of the first value in ``result`` that JSON cannot represent; ``""`` if there is none."""
    if isinstance(result, Mapping) and depth:
        keys = (_type_name(key) for key in result if not _is_encodable({key: None}))
        values = (find_unencodable(item, depth - 1) for item in result.values())
        return next(chain(keys, filter(None, values)), "")
    if isinstance(result, list | tuple | set) and depth:
        return next(filter(None, (find_unencodable(item, depth - 1) for item in result)), "")
    return "" if _is_encodable(result) else _type_name(result)


def _is_encodable(value: Any) -> bool:
    try:
        JSONResponse(jsonable_encoder(value))
    except Exception:  # noqa: BLE001  (a customer's class may raise any exception)
        return False
    return True


def _type_name(value: Any) -> str:
    if isinstance(value, float):
        return "a number that is not finite"
    if isinstance(value, bytes):
        return "bytes that are not UTF-8"
    if isinstance(value, str):
        return "a string with a lone surrogate"
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
