"""Decides when to probe the engine, and keeps the verdict.

At most one probe is in flight. The engine, its progress and the clock come through the constructor, so that
tests need no engine. :func:`.verdict.next_state` decides the verdict.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from vllmendpoint_api import Mode, Outcome, RankReport, Verdict
from vllmendpoint_worker.errors import ProbeUnavailableError
from vllmendpoint_worker.payload.expect import Expectation
from vllmendpoint_worker.process.clock import Clock

from .probe import ABORT_SECONDS, ProbeResult, ProbeTarget, run_probe
from .progress import RankProgress
from .verdict import (
    EngineDied,
    ProbeEnded,
    Tick,
    UserRequestFinished,
    VerdictRules,
    VerdictState,
    next_state,
    reset_after_disabled,
    reset_for_new_probe,
)

__all__ = ["ProbeSettings", "Prober", "next_probe_at"]

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.1
"""Interval at which the prober polls the engine and its progress. A poll reads two attributes."""

STOP_SECONDS: Final = 0.5
"""With requests in flight and no token scheduled for this long (or 1.5 steps), a probe starts immediately."""

RETRY_SECONDS: Final = 1.0
"""Time from a failed probe to the next."""

_OFF: Final = "probing is off"


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """``request``: the payload, translated for Dynamo's request handler. Times in seconds."""

    request: Mapping[str, Any]
    mode: Mode
    period: float
    rules: VerdictRules
    expect: Expectation | None = None
    """Condition on the generated text. None: an answer is any tokens with a finish reason."""

    @property
    def probe(self) -> tuple[Mapping[str, Any], Expectation | None]:
        """The request and the condition on its answer. A verdict holds only for the probe it comes from."""
        return self.request, self.expect


def next_probe_at(
    state: VerdictState, last_end: float | None, last_user: float | None, settings: ProbeSettings
) -> float:
    """When the next periodic probe is due (monotonic seconds). Pure.

    A finished user request postpones the probe, unless the text must meet a condition: it proves that the
    engine generates tokens, but not that they are correct.
    """
    if last_end is None:
        return 0.0
    if state.verdict is Verdict.BUSY:
        return last_end + min(settings.period, max(RETRY_SECONDS, settings.rules.timeout))
    if state.verdict is not Verdict.GENERATING or state.failures:
        return last_end + RETRY_SECONDS
    proof = last_user if settings.expect is None else None
    return max(last_end, proof or 0.0) + settings.period


class Prober:
    """Probes one target and owns its verdict. ``run`` is one task; its owner cancels and awaits it.

    ``publish`` is called after every change of the state and every probe. ``on_result`` is called with every
    result, also with one for settings that have changed since. ``rank``: the target's data-parallel rank if
    the engine has several.
    """

    def __init__(
        self,
        target: ProbeTarget,
        settings: ProbeSettings,
        *,
        progress: RankProgress,
        publish: Callable[[], None],
        on_result: Callable[[ProbeResult], None] = lambda result: None,
        clock: Clock | None = None,
        rank: int | None = None,
    ) -> None:
        self._rank = rank
        self._target = target
        self._settings = settings
        self._progress = progress
        self._publish = publish
        self._on_result = on_result
        self._clock = clock or Clock()
        self.state = VerdictState.start(self._clock.monotonic())
        self.last_result: ProbeResult | None = None
        self.last_proof: float | None = None
        """Monotonic seconds of the last complete probe or finished user request."""
        self.last_complete: ProbeResult | None = None
        """The last complete probe with the current request and condition."""
        self._user_requests_seen = progress.user_requests_finished
        self._traffic_since: float | None = None
        self._pending: list[asyncio.Future[ProbeResult]] = []
        self._waiting: list[asyncio.Future[ProbeResult]] = []
        """Callers that wait for the probe in flight."""
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()
        """Held by the probe or trial in flight."""
        self._in_flight: asyncio.Task[ProbeResult] | None = None

    @property
    def settings(self) -> ProbeSettings:
        return self._settings

    def configure(self, settings: ProbeSettings) -> None:
        """Apply new settings. A probe follows immediately if they differ."""
        before, self._settings = self._settings, settings
        if before.probe != settings.probe:
            self.state = reset_for_new_probe(self.state)
            self.last_complete = None
        if before.mode is Mode.DISABLED and settings.mode is not Mode.DISABLED:
            self.state = reset_after_disabled(self.state, self._clock.monotonic())
        if settings.mode is Mode.DISABLED:
            self._fail_pending()
        elif before != settings:
            self._request_probe()
        if self._in_flight is not None and (
            before.probe != settings.probe
            or before.rules.timeout != settings.rules.timeout
            or settings.mode is Mode.DISABLED
        ):
            self._in_flight.cancel()  # its result, or its timeout, is no longer the one that applies
        self._publish()

    @property
    def proof(self) -> float | None:
        """Monotonic seconds of the last proof of the expected answers; None without a complete probe.

        A finished user request is one, unless the text must meet a condition.
        """
        if self.last_complete is None:
            return None
        return self.last_proof if self._settings.expect is None else self.last_complete.ended

    async def probe_now(self, *, join: bool = False) -> ProbeResult:
        """Run a probe after the one in flight. Concurrent callers share it.

        ``join``: the probe in flight is sufficient. Raises ProbeUnavailableError if probing is off.
        """
        if self._settings.mode is Mode.DISABLED:
            raise ProbeUnavailableError(_OFF)
        in_flight = join and self._in_flight is not None
        return await asyncio.shield(self._join_probe() if in_flight else self._request_probe())

    def report(self) -> tuple[RankReport, ...]:
        """Reports of ranks: none, because a prober has one target."""
        return ()

    def probes_with(self, settings: ProbeSettings) -> bool:
        """Whether the request of ``settings`` is already in use."""
        return self._settings.mode is not Mode.DISABLED and self._settings.request == settings.request

    async def run_trial(self, request: Mapping[str, Any], timeout: float) -> ProbeResult:  # noqa: ASYNC109
        """Send a request that is not active yet. Its result does not change the verdict."""
        async with self._lock:
            result = await run_probe(self._target, request, timeout, self._clock)
        self._on_result(result)
        return result

    async def run(self) -> None:
        """Poll the engine, and probe when a probe is due, until cancelled."""
        try:
            while True:
                self._poll()
                if self._is_due():
                    await self._probe()
                self._wake.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), POLL_SECONDS)
        finally:
            for waiting in self._pending:
                waiting.cancel()
            self._pending.clear()

    def _request_probe(self) -> "asyncio.Future[ProbeResult]":
        waiting = _create_future()
        self._pending.append(waiting)
        self._wake.set()
        return waiting

    def _join_probe(self) -> "asyncio.Future[ProbeResult]":
        waiting = _create_future()
        self._waiting.append(waiting)
        return waiting

    def _fail_pending(self) -> None:
        for waiting in self._pending:
            waiting.set_exception(ProbeUnavailableError(_OFF))
        self._pending.clear()

    def _is_due(self) -> bool:
        if self._settings.mode is Mode.DISABLED or self.state.verdict is Verdict.DEAD:
            return False
        if self._pending:
            return True
        now = self._clock.monotonic()
        last_end = self.last_result.ended if self.last_result else None
        last_user = self._progress.last_user_request_finished
        due = next_probe_at(self.state, last_end, last_user, self._settings)
        return now >= due or self._progress_stopped(now)

    def _progress_stopped(self, now: float) -> bool:
        """Whether requests are in flight and the scheduler schedules no tokens."""
        if self._traffic_since is None or self.state.verdict is not Verdict.GENERATING:
            return False
        progress = self._progress.snapshot()
        last_progress = max(progress.last_scheduled or 0.0, self._traffic_since)
        return now - last_progress >= max(STOP_SECONDS, 1.5 * progress.longest_step)

    async def _probe(self) -> None:
        self._waiting, self._pending = self._pending, []
        settings = self._settings
        task = self._in_flight = asyncio.create_task(self._run_locked(settings), name="run-probe")
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=POLL_SECONDS)
                self._poll()
        except asyncio.CancelledError:
            task.cancel()
            for waiting in self._waiting:
                waiting.cancel()
            await asyncio.wait({task}, timeout=2 * ABORT_SECONDS)
            raise
        finally:
            self._in_flight = None
        if task.cancelled():  # by configure: the callers get a result of the new settings
            self._pending = self._waiting + self._pending
            if self._settings.mode is Mode.DISABLED:
                self._fail_pending()
            return
        result = task.result()
        self._record(result, settings)
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(result)

    async def _run_locked(self, settings: ProbeSettings) -> ProbeResult:
        async with self._lock:
            return await run_probe(
                self._target, settings.request, settings.rules.timeout, self._clock, settings.expect
            )

    def _record(self, result: ProbeResult, settings: ProbeSettings) -> None:
        self._on_result(result)
        if self._settings.probe != settings.probe:
            return  # the probe changed while this one was in flight
        self.last_result = result
        if result.outcome is Outcome.COMPLETE:
            self.last_proof = result.ended
            self.last_complete = result
        event = ProbeEnded(result.ended, result.outcome, self._progress.snapshot(), result.detail)
        self._transition(next_state(self.state, event, settings.rules))
        self._publish()

    def _poll(self) -> None:
        """Check for a dead engine, finished user requests and stopped progress."""
        now = self._clock.monotonic()
        rules = self._settings.rules
        if (cause := self._target.dead()) is not None:
            self._transition(next_state(self.state, EngineDied(now, cause), rules))
            return
        self._traffic_since = (self._traffic_since or now) if self._target.in_flight() else None
        if self._progress.user_requests_finished != self._user_requests_seen:
            self._user_requests_seen = self._progress.user_requests_finished
            self.last_proof = self._progress.last_user_request_finished or now
            before = self.state.verdict
            self._transition(next_state(self.state, UserRequestFinished(self.last_proof), rules))
            if self.state.verdict is before:
                self._publish()  # the new proof of life
        tick = Tick(now, self._progress.snapshot(), self._traffic_since)
        self._transition(next_state(self.state, tick, rules))

    def _transition(self, state: VerdictState) -> None:
        before, self.state = self.state, state
        if before.verdict is state.verdict:
            return
        if state.verdict is Verdict.STALLED:
            self._progress.mark_stalled()
        level = logging.INFO if state.verdict in (Verdict.GENERATING, Verdict.BUSY) else logging.WARNING
        logger.log(
            level,
            "Verdict changed: from=%s to=%s rank=%s message=%s",
            before.verdict,
            state.verdict,
            "-" if self._rank is None else self._rank,
            state.message,
        )
        self._publish()


def _create_future() -> "asyncio.Future[ProbeResult]":
    waiting: asyncio.Future[ProbeResult] = asyncio.get_running_loop().create_future()
    # Retrieve the exception: after a reload no caller awaits this future, and asyncio would log it.
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
    return waiting
