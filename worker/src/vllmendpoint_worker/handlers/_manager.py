"""Loads, binds and activates handlers, and serves each request with the active generation.

A request stays in the generation that it began in.
"""

import asyncio
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

from fastapi import FastAPI

from vllmendpoint_api import HandlerError, HandlerReport, HandlerSource, HandlersReport
from vllmendpoint_worker.config.custom_default import CUSTOM_DEFAULT
from vllmendpoint_worker.config.handler_config import HandlerConfig, Route
from vllmendpoint_worker.process.clock import Clock
from vllmendpoint_worker.process.file_fingerprint import file_fingerprint
from vllmendpoint_worker.process.run_blocking import run_blocking

from ._error_boundary import Scope
from ._generation import Generation, bind_generation
from ._handler_endpoint import HandlerEndpoint
from .loading._load_problems import error_location
from .loading._loader import Handler, LoadedHandlers, Loader
from .loading._standards_registry import use_registered

__all__ = ["HandlerManager"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

HANG_SECONDS: Final = 600.0
"""A call that runs for longer hangs. SageMaker waits 60 s for an answer and 8 minutes for a stream. The
worker only reports the call, because a generation may take that long, and removes the report when it
returns."""


class HandlerManager:
    """The ASGI application that serves requests with the active generation, and its life cycle.

    ``on_change`` is called after an activation, after an error of a handler, and when a call starts or stops
    to hang.
    """

    def __init__(self, on_change: Callable[[], None], clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._on_change = on_change
        self._loader = Loader()
        self._vllm_app: FastAPI | None = None
        self._loaded: LoadedHandlers | None = None
        self._fingerprints: tuple[object, ...] = ()
        self._last_error: HandlerError | None = None
        self._hanging: dict[Route, float] = {}
        self._interrupted: LoadedHandlers | None = None
        self.current: Generation | None = None

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        generation = self.current
        if generation is None:
            raise RuntimeError("no handlers are active yet")
        scope["app"] = generation.app
        request = object()
        generation.requests.add(request)
        try:
            with use_registered(generation.registered):
                await generation.app(scope, receive, send)
        finally:
            generation.requests.discard(request)
            self._retire(generation)

    def _retire(self, generation: Generation) -> None:
        """Cancel the tasks of a script that is no longer active after the last of its requests."""
        current = self.current
        if not generation.requests and (current is None or generation.loaded is not current.loaded):
            _cancel_tasks(generation.loaded)

    async def load(self, config: HandlerConfig) -> LoadedHandlers:
        """The desired handlers. They are imported only if they, or a file that they import, have changed: a
        script keeps its state when only the health check changes.

        Raises ConfigurationRejectedError.
        """
        last = self._loaded
        if (
            last is not None
            and last.config == config
            and await run_blocking(_fingerprints_of, last.files) == self._fingerprints
        ):
            return last
        loaded = await self._loader.load(config)
        if last is not None and (self.current is None or last is not self.current.loaded):
            _cancel_tasks(last)  # it was never activated
        self._loaded, self._fingerprints = loaded, await run_blocking(_fingerprints_of, loaded.files)
        return loaded

    @property
    def imported_files(self) -> frozenset[Path]:
        """Files of the customer's code that the last load imported."""
        return self._loaded.files if self._loaded is not None else frozenset()

    def attach(self, vllm_app: FastAPI) -> None:
        """Set vLLM's own application, which exists once the engine has loaded."""
        self._vllm_app = vllm_app

    def bind(self, loaded: LoadedHandlers) -> Generation:
        """Bind the handlers without activating them. Raises ConfigurationRejectedError."""
        if self.current is not None and self.current.loaded is loaded:
            return self.current
        if self._vllm_app is None:
            raise RuntimeError("vLLM's application is not attached yet")
        return bind_generation(self._vllm_app, loaded, self._record_error, self._clock)

    def activate(self, generation: Generation) -> None:
        """Send new requests to ``generation``; requests in flight end in the former one. The script's default
        of the health check becomes active too.
        """
        if self.current is generation:
            return
        if self.current is not None:
            old, new = self.current.script_digest, generation.script_digest
            logger.info("Handlers activated: script=%s previous=%s", new or "none", old or "none")
        if self.current is None:
            self._report_task_errors(asyncio.get_running_loop())
        before, self.current = self.current, generation
        if before is not None:
            self._retire(before)
        CUSTOM_DEFAULT.set(generation.loaded.custom_default)
        self._last_error = None
        self._hanging = {}
        if generation.loaded.tasks is not None:
            generation.loaded.tasks.begin()
        self._on_change()

    @property
    def app(self) -> FastAPI:
        """The application of the active generation."""
        if self.current is None:
            raise RuntimeError("no handlers are active yet")
        return self.current.app

    def custom_endpoint(self, route: Route) -> HandlerEndpoint | None:
        """The custom handler's endpoint; None if vLLM's own handler is active."""
        return self.current.endpoints.get(route) if self.current is not None else None

    # --- handlers that block the event loop: called on any thread ---

    def blocking_frame(self) -> str:
        """``model.py line 12``: the customer's code that the main thread runs; ``""`` if it runs none."""
        main = threading.main_thread().ident
        return self._location(sys._current_frames().get(main) if main is not None else None)

    def in_customer_code(self, frame: FrameType | None) -> bool:
        """Whether code of the active handlers, or of those loaded last, is on the stack."""
        return bool(self._location(frame))

    def _location(self, frame: FrameType | None) -> str:
        files = self.imported_files | (self.current.loaded.files if self.current is not None else frozenset())
        while frame is not None:
            if Path(frame.f_code.co_filename) in files:
                return f"{Path(frame.f_code.co_filename).name} line {frame.f_lineno}"
            frame = frame.f_back
        return ""

    def has_changed(self, config: HandlerConfig) -> bool:
        """Whether ``config`` differs from the handlers loaded last. Reads files: not on the event loop."""
        last, fingerprints = self._loaded, self._fingerprints
        return last is None or last.config != config or _fingerprints_of(last.files) != fingerprints

    def mark_interrupted(self) -> None:
        """Record that the handlers loaded last block the event loop and are interrupted."""
        self._interrupted = self._loaded

    @property
    def is_interrupted(self) -> bool:
        """Whether the interrupted handlers are still those loaded last."""
        return self._interrupted is not None and self._interrupted is self._loaded

    # --- report ---

    def report(self) -> HandlersReport:
        generation = self.current
        if generation is None:
            return HandlersReport()
        handlers = generation.loaded.handlers
        return HandlersReport(
            script_digest=generation.script_digest,
            ping=_handler_report(handlers.get(Route.PING)),
            invocations=_handler_report(handlers.get(Route.INVOCATIONS)),
            last_error=self._newest_error(generation),
        )

    def check_hanging(self) -> None:
        """Detect active handlers that hang. Handlers of former generations are not reported."""
        endpoints = self.current.endpoints if self.current is not None else {}
        found = {route: endpoint.hanging_since(HANG_SECONDS) for route, endpoint in endpoints.items()}
        hanging = {route: began for route, began in found.items() if began is not None}
        if hanging == self._hanging:
            return
        self._hanging = hanging
        for route in hanging:
            logger.warning("A custom handler hangs: route=%s", route)
        self._on_change()

    def _newest_error(self, generation: Generation) -> HandlerError | None:
        """The newest of the last error and the calls that hang."""
        errors = [self._last_error] if self._last_error is not None else []
        for route, began in self._hanging.items():
            name = generation.loaded.handlers[route].name
            message = (
                f"{name} has not returned from a request for more than {HANG_SECONDS:.0f} s. "
                "The server and the probes continue."
            )
            time = self._clock.wall_of(began + HANG_SECONDS).replace(microsecond=0)
            errors.append(HandlerError(route=route.value, message=message, time=time))
        return max(errors, key=lambda error: error.time, default=None)

    def _report_task_errors(self, loop: asyncio.AbstractEventLoop) -> None:
        """Report errors in tasks that handlers start and do not await."""
        before = loop.get_exception_handler()

        def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            self._record_background_error("task", context.get("exception"))
            if before is not None:
                before(loop, context)
            else:
                loop.default_exception_handler(context)

        loop.set_exception_handler(handle)

    def report_thread_errors(self) -> None:
        """Report errors in threads that handlers start. Call once in the process."""
        before = threading.excepthook

        def handle(args: threading.ExceptHookArgs) -> None:
            self._record_background_error("thread", args.exc_value)
            before(args)

        threading.excepthook = handle

    def _record_background_error(self, origin: str, error: BaseException | None) -> None:
        """Record an error outside a request if the active handlers' code raised it."""
        generation = self.current
        if error is None or generation is None:
            return
        if location := error_location(error, generation.loaded.config):
            route = Route.PING if set(generation.endpoints) == {Route.PING} else Route.INVOCATIONS
            kind = type(error).__name__
            self._record_error(route, f"A {origin} of the handlers raised {kind} at {location}.")

    def _record_error(self, route: Route, message: str) -> None:
        now = self._clock.wall().replace(microsecond=0)
        self._last_error = HandlerError(route=route.value, message=message[:2048], time=now)
        self._on_change()


def _cancel_tasks(loaded: LoadedHandlers) -> None:
    if loaded.tasks is not None:
        loaded.tasks.cancel()


def _fingerprints_of(files: frozenset[Path]) -> tuple[object, ...]:
    return tuple(file_fingerprint(path) for path in sorted(files))


def _handler_report(handler: Handler | None) -> HandlerReport:
    if handler is None:
        return HandlerReport(source=HandlerSource.DEFAULT)
    return HandlerReport(source=handler.source, handler=handler.name)
