"""Lets a script use the worker's running event loop while it is imported.

Upstream imports scripts on the main thread, under the running loop. The worker imports them on another
thread, so that a slow import does not stop the engine. During the import the loop works there as on its own
thread: ``get_running_loop()``, ``create_task()``, ``aiohttp.ClientSession()`` and ``signal.signal()``. The
calls run on the loop's own thread, because asyncio's loops are not thread-safe.
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

__all__ = ["INTERRUPT_SIGNAL", "ScriptLoop", "ScriptTasks"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

CALL_SECONDS: Final = 5.0
"""Limit of one call on the loop's thread, which may itself wait for a module that is being imported."""

_FORWARDED_METHODS: Final = (
    "call_soon", "call_later", "call_at", "add_reader", "remove_reader", "add_writer", "remove_writer",
)  # fmt: skip
_IGNORED_METHODS: Final = (
    "set_default_executor", "set_exception_handler", "set_task_factory", "set_debug", "stop", "close",
)  # fmt: skip
"""Methods that have no effect, because they would change the loop for the whole worker."""

INTERRUPT_SIGNAL: Final = signal.SIGURG
"""The signal that interrupts code which blocks the loop. By default, a process ignores it."""

_WORKER_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, INTERRUPT_SIGNAL)
"""Signals whose handlers a script cannot replace."""

_ORIGINAL: Final = "vllmendpoint_original"
"""Attribute of a function that replaces another. An import that was given up may still refer to one."""


class ScriptTasks:
    """Tasks that a script creates while it is imported. They begin when its handlers become active. Upstream,
    too, a task begins only after the script is completely imported.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._released: asyncio.Future[None] = loop.create_future()
        self._tasks: list[asyncio.Task[Any]] = []

    def begin(self) -> None:
        if not self._released.done():
            self._released.set_result(None)

    def cancel(self) -> None:
        """Cancel all tasks, including those that have not begun."""
        for task in self._tasks:
            task.cancel()

    def create(
        self, create: Callable[..., asyncio.Task[Any]], work: Coroutine[Any, Any, Any], **kwargs: Any
    ) -> asyncio.Task[Any]:
        task = create(self._wait_for_release(work), **kwargs)
        task.add_done_callback(self._report_error)
        self._tasks.append(task)
        return task

    async def _wait_for_release(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            await asyncio.shield(self._released)
        except BaseException:
            work.close()
            raise
        return await work

    def _report_error(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "A task of the handlers' script failed", "exception": error, "task": task}
            self._loop.call_exception_handler(context)


class ScriptLoop:
    """The running loop, for one import.

    Create it on the loop's own thread, and call every method there except ``use_as_running_loop``.
    ``script_line`` returns the line of the script that the calling thread runs.
    """

    def __init__(self, script_line: Callable[[], str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._script_line = script_line
        self._closed = False
        self._given_up = False
        self._stack = ExitStack()
        self.tasks = ScriptTasks(self._loop)

    def open(self) -> None:
        """Make the loop and ``signal.signal`` usable on other threads."""
        for name in _FORWARDED_METHODS:
            self._replace(self._loop, name, self._run_on_loop)
        for name in _IGNORED_METHODS:
            self._replace(self._loop, name, self._ignore_call)
        for name in ("run_forever", "run_until_complete"):
            self._replace(self._loop, name, self._reject_run)
        self._replace(self._loop, "create_task", self._create_task)
        self._replace(self._loop, "add_signal_handler", self._set_signal)
        self._replace(self._loop, "remove_signal_handler", self._set_signal)
        self._replace(signal, "signal", self._set_signal)

    def close(self, *, running: bool) -> None:
        """End the import. A thread that was given up and is still ``running`` can no longer use the loop."""
        self._given_up = running
        self._closed = True
        if not running:
            self._stack.close()

    @contextmanager
    def use_as_running_loop(self) -> Iterator[None]:
        """Inside, on the thread of the import, the loop is the running one."""
        asyncio._set_running_loop(self._loop)
        asyncio.set_event_loop(self._loop)
        try:
            yield
        finally:
            asyncio.set_event_loop(None)
            asyncio._set_running_loop(None)
            if self._given_up:  # the thread has ended after all
                with suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(partial(self.close, running=False))

    def _replace(self, owner: Any, name: str, replacement: Callable[..., Any]) -> None:
        current = getattr(owner, name)
        original = vars(current).get(_ORIGINAL, current) if inspect.isfunction(current) else current

        def call(*args: Any, **kwargs: Any) -> Any:
            # After the import, a module may still hold this function: ``from signal import signal``.
            if threading.get_ident() == self._thread or (self._closed and not self._given_up):
                return original(*args, **kwargs)
            return replacement(original, *args, **kwargs)

        def restore() -> None:
            if vars(owner).get(name) is call:  # not the replacement of a newer import
                del vars(owner)[name]
                if owner is not self._loop:
                    setattr(owner, name, original)

        self._stack.callback(restore)
        setattr(call, _ORIGINAL, original)
        setattr(owner, name, call)

    # --- on other threads ---

    def _run_on_loop(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._closed:
            raise RuntimeError("the import of this script was given up")
        done: Future[Any] = Future()

        def call() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(function(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  (raised on the script's thread)
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
        return self._run_on_loop(self.tasks.create, create, work, **kwargs)

    def _set_signal(self, function: Callable[..., Any], number: Any, *args: Any) -> Any:
        if number in _WORKER_SIGNALS:
            name = signal.Signals(number).name
            logger.warning(
                "The script sets a signal handler, which the worker ignores: signal=%s location=%s",
                name,
                self._script_line(),
            )
            return signal.getsignal(number)
        return self._run_on_loop(function, number, *args)

    def _ignore_call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        name = getattr(function, "__name__", "")
        logger.warning(
            "The script calls a method of the worker's event loop, without effect: method=%s location=%s",
            name,
            self._script_line(),
        )

    def _reject_run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        del function, kwargs
        for work in args:
            if asyncio.iscoroutine(work):
                work.close()
        raise RuntimeError("this event loop is already running.")
