"""What a script finds while it is imported: the worker's event loop, running, as upstream.

Upstream imports scripts on the main thread, under the running loop. Here they are imported on another thread,
so that a slow import does not stop the engine. For that time the loop can be used there as on its own thread:
``get_running_loop()``, ``create_task()``, ``aiohttp.ClientSession()`` and ``signal.signal()`` work. The calls
are made on the loop's own thread, because asyncio's loops are not thread-safe.
"""

import asyncio
import inspect
import logging
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Final

__all__ = ["INTERRUPT", "ScriptLoop", "ScriptTasks"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

CALL_SECONDS: Final = 5.0
"""Bound on one call on the loop's thread, which may itself wait for a module that is being imported."""

_CALLS: Final = (
    "call_soon", "call_later", "call_at", "add_reader", "remove_reader", "add_writer", "remove_writer",
)  # fmt: skip
_WITHOUT_EFFECT: Final = (
    "set_default_executor", "set_exception_handler", "set_task_factory", "set_debug", "stop", "close",
)  # fmt: skip
"""Of the loop, which is not the script's alone."""

INTERRUPT: Final = signal.SIGURG
"""The signal that interrupts code which blocks the loop. Nothing happens where no handler is set for it."""

_WORKERS: Final = (signal.SIGTERM, signal.SIGINT, INTERRUPT)
"""The worker's own signals: their handlers stay."""


_ORIGINAL: Final = "vllmendpoint_original"
"""Attribute of a function that stands for another: an import that was given up may still hold one."""


class ScriptTasks:
    """Tasks that a script creates while it is imported. They begin when its handlers come into force:
    upstream, too, a task does not begin before the script is completely imported.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._released: asyncio.Future[None] = loop.create_future()
        self._tasks: list[asyncio.Task[Any]] = []

    def begin(self) -> None:
        if not self._released.done():
            self._released.set_result(None)

    def cancel(self) -> None:
        """Those that have begun, and those that have not."""
        for task in self._tasks:
            task.cancel()

    def create(
        self, create: Callable[..., asyncio.Task[Any]], work: Coroutine[Any, Any, Any], **kwargs: Any
    ) -> asyncio.Task[Any]:
        task = create(self._held(work), **kwargs)
        task.add_done_callback(self._failed)
        self._tasks.append(task)
        return task

    async def _held(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            await asyncio.shield(self._released)
        except BaseException:
            work.close()
            raise
        return await work

    def _failed(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            told = {"message": "A task of the handlers' script failed", "exception": error, "task": task}
            self._loop.call_exception_handler(told)


class ScriptLoop:
    """The running loop, for one import. Made on the loop's own thread, like every call but ``entered``.

    ``where`` says which line of the script runs now on the calling thread.
    """

    def __init__(self, where: Callable[[], str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._where = where
        self._closed = False
        self._given_up = False
        self._stack = ExitStack()
        self.tasks = ScriptTasks(self._loop)

    def open(self) -> None:
        """From now on the loop and ``signal.signal`` can be used on other threads."""
        for name in _CALLS:
            self._replace(self._loop, name, self._on_loop)
        for name in _WITHOUT_EFFECT:
            self._replace(self._loop, name, self._ignored)
        for name in ("run_forever", "run_until_complete"):
            self._replace(self._loop, name, self._refused)
        self._replace(self._loop, "create_task", self._create_task)
        self._replace(self._loop, "add_signal_handler", self._set_signal)
        self._replace(self._loop, "remove_signal_handler", self._set_signal)
        self._replace(signal, "signal", self._set_signal)

    def close(self, *, running: bool) -> None:
        """The import is over. A thread that was given up and is still ``running`` cannot use the loop any
        more.
        """
        self._given_up = running
        self._closed = True
        if not running:
            self._stack.close()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """On the thread of the import: the loop is its running one."""
        asyncio._set_running_loop(self._loop)
        asyncio.set_event_loop(self._loop)
        try:
            yield
        finally:
            asyncio.set_event_loop(None)
            asyncio._set_running_loop(None)
            if self._given_up:  # it has woken at last
                with suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(partial(self.close, running=False))

    def _replace(self, owner: Any, name: str, elsewhere: Callable[..., Any]) -> None:
        current = getattr(owner, name)
        original = vars(current).get(_ORIGINAL, current) if inspect.isfunction(current) else current

        def call(*args: Any, **kwargs: Any) -> Any:
            # After the import, a module may still hold this function: ``from signal import signal``.
            if threading.get_ident() == self._thread or (self._closed and not self._given_up):
                return original(*args, **kwargs)
            return elsewhere(original, *args, **kwargs)

        def restore() -> None:
            if vars(owner).get(name) is call:  # no newer import's
                del vars(owner)[name]
                if owner is not self._loop:
                    setattr(owner, name, original)

        self._stack.callback(restore)
        setattr(call, _ORIGINAL, original)
        setattr(owner, name, call)

    # --- on other threads ---

    def _on_loop(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._closed:
            raise RuntimeError("the import of this script was given up")
        done: Future[Any] = Future()

        def call() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(function(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  (it is the script's, on its own thread)
                done.set_exception(error)

        self._loop.call_soon_threadsafe(call)
        try:
            return done.result(CALL_SECONDS)
        except TimeoutError:
            done.cancel()
            raise RuntimeError(f"the worker's event loop did not answer within {CALL_SECONDS:g} s") from None

    def _create_task(self, create: Callable[..., Any], work: Any, **kwargs: Any) -> Any:
        if not asyncio.iscoroutine(work):
            raise TypeError(f"a coroutine was expected, got {work!r}")
        return self._on_loop(self.tasks.create, create, work, **kwargs)

    def _set_signal(self, function: Callable[..., Any], number: Any, *args: Any) -> Any:
        if number in _WORKERS:
            name = signal.Signals(number).name
            logger.warning(
                "The script sets a handler of %s (%s): the worker keeps its own", name, self._where()
            )
            return signal.getsignal(number)
        return self._on_loop(function, number, *args)

    def _ignored(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        name = getattr(function, "__name__", "")
        logger.warning(
            "The script calls %s() of the worker's event loop (%s): it has no effect", name, self._where()
        )

    def _refused(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        del function, kwargs
        for work in args:
            if asyncio.iscoroutine(work):
                work.close()
        raise RuntimeError("this event loop is already running.")
