"""Reports errors of pre- and post-processing functions to the middleware around them.

SageMaker's package turns such an error into a response with status 500 and does not log it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final

__all__ = ["report_errors", "report_errors_to"]

_REPORT: Final[ContextVar[Callable[[BaseException], None] | None]] = ContextVar("report", default=None)


@contextmanager
def report_errors_to(report: Callable[[BaseException], None]) -> Iterator[None]:
    """Inside, the functions of :func:`report_errors` pass their errors to ``report``."""
    token = _REPORT.set(report)
    try:
        yield
    finally:
        _REPORT.reset(token)


def report_errors(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """``function``, which reports its errors before it raises them. None stays None."""
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
