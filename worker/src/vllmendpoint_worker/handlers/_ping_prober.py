"""Asks the custom ping handler, since it takes part in readiness: anything but 200 is a failure. Looks for
handlers that hang, too.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vllmendpoint_api import PingReport, PingState, names
from vllmendpoint_worker.config.handler_config import Route
from vllmendpoint_worker.process.clock import Clock

from ._manager import HandlerManager
from ._ping_request import Address, InternalRequest

__all__ = ["PING_SECONDS", "PingProber"]

logger = logging.getLogger("vllmendpoint_worker.handlers")

PING_SECONDS: Final = 2.0
"""Time between two pings. SageMaker itself asks every few seconds, and wants an answer within two."""

_CANCEL_SECONDS: Final = 1.0
"""For a handler to heed that it is given up."""


@dataclass(frozen=True, slots=True)
class _Answers:
    """The newest answers, counted."""

    failures: int = 0
    successes: int = 0
    message: str = ""


class PingProber:
    """``address`` gives where the server listens; ``timeout`` the seconds a ping may take; ``thresholds`` the
    failures and successes in a row that it takes to change the state. ``changed`` is called with every new
    :class:`PingReport`, None where the ping handler is the framework's.
    """

    def __init__(
        self,
        manager: HandlerManager,
        *,
        timeout: Callable[[], float],
        thresholds: Callable[[], tuple[int, int]],
        changed: Callable[[PingReport | None], None],
        address: Callable[[], Address] = lambda: ("127.0.0.1", names.SAGEMAKER_PORT),
        clock: Clock | None = None,
    ) -> None:
        self._manager = manager
        self._address = address
        self._timeout = timeout
        self._thresholds = thresholds
        self._changed = changed
        self._clock = clock or Clock()
        self._answers = _Answers()
        self.report: PingReport | None = None

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await self.ask()
            self._manager.check_hanging()
            await asyncio.sleep(PING_SECONDS)

    async def ask(self) -> None:
        """One ping, where there is a custom handler."""
        endpoint = self._manager.custom_endpoint(Route.PING)
        if endpoint is None:
            self._answers = _Answers()
            self._show(None)
            return
        timeout = self._timeout()
        running = endpoint.running_for()
        if self._manager.given_up:  # it would block the loop again before that takes up its replacement
            wrong = f"{endpoint.handler.name} blocked the worker's event loop and was interrupted"
        elif running > timeout:
            wrong = f"{endpoint.handler.name} does not return"
        else:
            wrong = await self._wrong(endpoint.handler.name, timeout)
        answers = self._answers
        if wrong:
            self._answers = _Answers(failures=answers.failures + 1, message=wrong)
        else:
            self._answers = _Answers(successes=answers.successes + 1)
        self._decide()

    async def _wrong(self, name: str, seconds: float) -> str:
        """What is wrong with the answer, "" where it is 200. In process: no port, no proxy in between."""
        request = InternalRequest(self._address())
        # As a task: customer code may not heed a cancellation, or may cancel itself.
        answered = self._manager(request.scope, request.receive, request.send)
        asking = asyncio.create_task(answered, name="ping")
        try:
            done, _ = await asyncio.wait({asking}, timeout=seconds)
        finally:
            if not asking.done():
                asking.cancel()
                asking.add_done_callback(lambda late: late.cancelled() or late.exception())
                await asyncio.wait({asking}, timeout=_CANCEL_SECONDS)
        if not done:
            return f"{name} did not answer within {seconds:g} s"
        error = asyncio.CancelledError() if asking.cancelled() else asking.exception()
        if error is not None:
            logger.debug("The ping handler failed", exc_info=error)
            if request.status is None:
                return f"{name} raised {type(error).__name__}"
        if request.status is None:
            return f"{name} did not answer"
        return "" if request.status == 200 else f"{name} answers {request.status} instead of 200"

    def _decide(self) -> None:
        failure_threshold, success_threshold = self._thresholds()
        answers, before = self._answers, self.report
        passing = before is None or before.state == PingState.PASSING
        if answers.failures and (not passing or before is None or answers.failures >= failure_threshold):
            self._show(PingState.FAILING, answers.message)
        elif answers.successes and (passing or answers.successes >= success_threshold):
            self._show(PingState.PASSING)

    def _show(self, state: PingState | None, message: str = "") -> None:
        before = self.report
        if state is None:
            report = None
        elif before is not None and before.state == state:
            report = before if before.message == message else before.model_copy(update={"message": message})
        else:
            since = self._clock.wall().replace(microsecond=0)
            report = PingReport(state=state, message=message, since=since)
            logger.log(
                logging.INFO if state is PingState.PASSING else logging.WARNING,
                "Custom ping: %s %s",
                state,
                message,
            )
        if report is not before:
            self.report = report
            self._changed(report)
