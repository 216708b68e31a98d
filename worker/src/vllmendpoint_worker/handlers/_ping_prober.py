"""Probes the custom ping handler, which takes part in readiness: every status except 200 is a failure.

Also checks periodically for handlers that hang.
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
"""Time between two pings. SageMaker itself pings every few seconds and expects an answer within two."""

_CANCEL_SECONDS: Final = 1.0
"""Time that a cancelled handler has to end."""


@dataclass(frozen=True, slots=True)
class _ProbeCounts:
    """Consecutive failures or successes up to now."""

    failures: int = 0
    successes: int = 0
    message: str = ""


class PingProber:
    """The periodic probe of the custom ping handler.

    ``address`` returns where the server listens; ``timeout`` the seconds that a ping may take; ``thresholds``
    the consecutive failures and successes that change the state. ``on_change`` receives every new
    :class:`PingReport`, or None if vLLM's own ping is active.
    """

    def __init__(
        self,
        manager: HandlerManager,
        *,
        timeout: Callable[[], float],
        thresholds: Callable[[], tuple[int, int]],
        on_change: Callable[[PingReport | None], None],
        address: Callable[[], Address] = lambda: ("127.0.0.1", names.SAGEMAKER_PORT),
        clock: Clock | None = None,
    ) -> None:
        self._manager = manager
        self._address = address
        self._timeout = timeout
        self._thresholds = thresholds
        self._on_change = on_change
        self._clock = clock or Clock()
        self._counts = _ProbeCounts()
        self.report: PingReport | None = None

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            await self.run_probe()
            self._manager.check_hanging()
            await asyncio.sleep(PING_SECONDS)

    async def run_probe(self) -> None:
        """Send one ping if there is a custom handler."""
        endpoint = self._manager.custom_endpoint(Route.PING)
        if endpoint is None:
            self._counts = _ProbeCounts()
            self._publish(None)
            return
        timeout = self._timeout()
        running = endpoint.running_for()
        if (
            self._manager.is_interrupted
        ):  # another call would block the event loop before the replacement loads
            failure = f"{endpoint.handler.name} blocked the worker's event loop and was interrupted"
        elif running > timeout:
            failure = f"{endpoint.handler.name} does not return"
        else:
            failure = await self._check(endpoint.handler.name, timeout)
        if failure:
            self._counts = _ProbeCounts(failures=self._counts.failures + 1, message=failure)
        else:
            self._counts = _ProbeCounts(successes=self._counts.successes + 1)
        self._update_state()

    async def _check(self, name: str, seconds: float) -> str:
        """Why the ping failed, or ``""``. It runs in this process, without a port or a proxy."""
        request = InternalRequest(self._address())
        # In a task of its own, because customer code may ignore a cancellation or cancel itself.
        call = self._manager(request.scope, request.receive, request.send)
        task = asyncio.create_task(call, name="ping")
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds)
        finally:
            if not task.done():
                task.cancel()
                task.add_done_callback(lambda late: late.cancelled() or late.exception())
                await asyncio.wait({task}, timeout=_CANCEL_SECONDS)
        if not done:
            return f"{name} did not answer within {seconds:g} s"
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            logger.debug("The ping handler failed", exc_info=error)
            if request.status is None:
                return f"{name} raised {type(error).__name__}"
        if request.status is None:
            return f"{name} did not answer"
        return "" if request.status == 200 else f"{name} answers {request.status} instead of 200"

    def _update_state(self) -> None:
        failure_threshold, success_threshold = self._thresholds()
        counts, before = self._counts, self.report
        passing = before is None or before.state == PingState.PASSING
        if counts.failures and (not passing or before is None or counts.failures >= failure_threshold):
            self._publish(PingState.FAILING, counts.message)
        elif counts.successes and (passing or counts.successes >= success_threshold):
            self._publish(PingState.PASSING)

    def _publish(self, state: PingState | None, message: str = "") -> None:
        before = self.report
        if state is None:
            report = None
        elif before is not None and before.state == state:
            report = before if before.message == message else before.model_copy(update={"message": message})
        else:
            since = self._clock.wall().replace(microsecond=0)
            report = PingReport(state=state, message=message, since=since)
            level = logging.INFO if state is PingState.PASSING else logging.WARNING
            logger.log(level, "The state of the custom ping changed: state=%s message=%s", state, message)
        if report is not before:
            self.report = report
            self._on_change(report)
