"""Wraps the handlers of sessions and adapters that a script registers, and reports their errors.

Without this, vLLM's application would answer 400 to a ``ValueError`` of theirs, and SageMaker's package would
turn an error of a session handler into a 500 without a log line.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio.to_thread
from starlette.exceptions import HTTPException

from vllmendpoint_worker.config.handler_config import Route

from ._error_boundary import EXIT_ERRORS, internal_error
from ._error_origin import is_from_standards_package, is_from_vllm, root_error
from .loading._load_problems import error_location
from .loading._loader import LoadedHandlers
from .loading._signature import is_async
from .loading._standards_registry import ADAPTER_TYPES, SESSION_TYPES

__all__ = ["wrap_registered_handlers"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

_WRAPPED_TYPES: Final = (*SESSION_TYPES, *ADAPTER_TYPES)

OnError = Callable[[str, BaseException], None]


def wrap_registered_handlers(
    loaded: LoadedHandlers, on_error: Callable[[Route, str], None]
) -> Mapping[str, Callable[..., Any]]:
    """``loaded.registered``, whose errors are logged and passed to ``on_error``."""

    def report(type_: str, error: BaseException) -> None:
        kind = type(error).__name__
        message = (
            f"The script's handler {type_} raised {kind} at {location}."
            if (location := error_location(error, loaded.config))
            else f"The script's handler {type_} is not a coroutine function, or returned a value that "
            f"SageMaker's package does not accept ({kind})."
        )
        logger.warning("A registered handler failed: type=%s error=%s", type_, message, exc_info=error)
        on_error(Route.INVOCATIONS, message)

    wrapped = {
        type_: _wrap(type_, loaded.registered[type_], report)
        for type_ in _WRAPPED_TYPES
        if type_ in loaded.registered
    }
    return {**loaded.registered, **wrapped}


def _wrap(type_: str, handler: Callable[..., Any], report: OnError) -> Callable[..., Any]:
    @functools.wraps(handler)
    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            if is_async(handler):
                return await handler(*args, **kwargs)
            return await anyio.to_thread.run_sync(functools.partial(handler, *args, **kwargs))
        except HTTPException as error:
            if error.status_code < 500 or not is_from_standards_package(error):
                raise  # the handler chose this response, or the client caused the error
            report(type_, error.__context__ or error)
        except (Exception, *EXIT_ERRORS) as error:
            cause = root_error(error)
            if is_from_vllm(cause):
                raise
            report(type_, cause)
        return internal_error(f"handler {type_}")

    return call
