"""An event loop on which waiting takes no time: what is scheduled for later comes when nothing else is to do.

Bounds on time are exact then, however loaded the machine is. Not for threads and sockets.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

from vllmendpoint_worker.process.clock import Clock

__all__ = ["LoopClock", "on_virtual_time"]

P = ParamSpec("P")


class _Selector(selectors.DefaultSelector):
    """Passes the time that it is asked to wait."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0 if timeout is not None else None)
        if not events and timeout is not None:
            self.now += timeout
        return events


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._passed = _Selector()
        super().__init__(self._passed)

    def time(self) -> float:
        return self._passed.now


def on_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Decorator of a test: runs it on such a loop of its own."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=_Loop) as runner:
            runner.run(test(*args, **kwargs))

    return run


class LoopClock(Clock):
    """The running loop's time."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()
