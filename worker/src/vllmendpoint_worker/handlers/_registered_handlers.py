"""Handlers of sessions and adapters that a script has registered, watched: what they raise is their fault.

vLLM's app would answer 400 to a ``ValueError`` of theirs, and the standards package turns what a session
handler raises into a 500 without a trace.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import anyio.to_thread
from starlette.exceptions import HTTPException

from vllmendpoint_worker.config.handler_config import Route

from ._error_boundary import EXITS, from_the_standards_package, from_vllm, internal_error, leaf
from .loading._load_problems import failed_at
from .loading._loader import LoadedHandlers
from .loading._signature import is_async
from .loading._standards_registry import ADAPTER_TYPES, SESSION_TYPES

__all__ = ["watched"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

_WATCHED: Final = (*SESSION_TYPES, *ADAPTER_TYPES)


def watched(loaded: LoadedHandlers, failed: Callable[[Route, str], None]) -> Mapping[str, Callable[..., Any]]:
    """``loaded.registered``, of which every error goes to ``failed``, too."""

    def told(type_: str, error: BaseException) -> None:
        kind = type(error).__name__
        sentence = (
            f"The script's handler {type_} raised {kind} at {where}."
            if (where := failed_at(error, loaded.wanted))
            else f"The script's handler {type_} is no coroutine function, or returned what the standards "
            f"package does not take ({kind})."
        )
        logger.warning("A registered handler failed: %s", sentence, exc_info=error)
        failed(Route.INVOCATIONS, sentence)

    calls = {
        type_: _watch(type_, loaded.registered[type_], told)
        for type_ in _WATCHED
        if type_ in loaded.registered
    }
    return {**loaded.registered, **calls}


def _watch(
    type_: str, handler: Callable[..., Any], told: Callable[[str, BaseException], None]
) -> Callable[..., Any]:
    @functools.wraps(handler)
    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            if is_async(handler):
                return await handler(*args, **kwargs)
            return await anyio.to_thread.run_sync(functools.partial(handler, *args, **kwargs))
        except HTTPException as error:
            if error.status_code < 500 or not from_the_standards_package(error):
                raise  # an answer that the handler has chosen, or the client's fault
            told(type_, error.__context__ or error)
        except (Exception, *EXITS) as error:
            cause = leaf(error)
            if from_vllm(cause):
                raise
            told(type_, cause)
        return internal_error(f"handler {type_}")

    return call
