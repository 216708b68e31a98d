"""Asks the engine whether it generates: one probe in flight, the whole stream, aborted at its timeout.

Takes everything it touches (engine, progress, clock) from outside, so that tests drive it without an engine.
What it finds goes through :func:`verdict.decide`; this module decides only **when** to ask.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol
from uuid import uuid4

from vllmendpoint_api import Mode, Outcome, RankReport, Verdict
from vllmendpoint_worker.errors import ProbeUnavailableError
from vllmendpoint_worker.payload.expect import Expectation
from vllmendpoint_worker.process.clock import Clock

from .answer import Answer
from .progress import PROBE_PREFIX, Progress
from .verdict import (
    EngineDied,
    ProbeEnded,
    Rules,
    State,
    Tick,
    UserFinished,
    asked_anew,
    decide,
    probed_again,
)

__all__ = ["Engine", "ProbeResult", "ProbeSettings", "Prober", "ask", "next_probe_at"]

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.1
"""How often the engine is looked at between probes; it costs two attribute reads."""

STOP_SECONDS: Final = 0.5
"""With traffic in flight and no token scheduled for so long (or 1.5 steps), a probe starts at once."""

RETRY_SECONDS: Final = 1.0
"""After a failure the next probe follows this much later."""

ABORT_SECONDS: Final = 1.0
"""Bound on the cleaning up of an aborted probe."""


class Engine(Protocol):
    """What the prober needs of the engine."""

    def generate(self, request: Mapping[str, Any], request_id: str) -> AsyncIterator[Mapping[str, Any]]:
        """The worker's real request path."""
        ...

    def in_flight(self) -> int:
        """Requests that the engine client has sent and not seen the end of."""
        ...

    def dead(self) -> str | None:
        """Why the engine is gone, or None while it lives."""
        ...


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """What to ask and how often. ``request`` is translated for the handler; times in seconds."""

    request: Mapping[str, Any]
    mode: Mode
    period: float
    rules: Rules
    expect: Expectation | None = None
    """What the generated text must be; None: any tokens with an end are an answer."""

    @property
    def question(self) -> tuple[Mapping[str, Any], Expectation | None]:
        """What is asked and what counts as an answer: the verdict of one question says nothing of another."""
        return self.request, self.expect


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """``ended``: monotonic seconds; ``latency``: seconds."""

    outcome: Outcome
    latency: float
    tokens: int
    ended: float
    detail: str = ""
    error: BaseException | None = None
    """What the request path raised. Never shown as it is: it may repeat the payload."""


def next_probe_at(
    state: State, last_end: float | None, last_user: float | None, settings: ProbeSettings
) -> float:
    """When the next probe is due (monotonic seconds), stops of progress apart. Pure.

    Users' answers spare the probe, except where the text is expected to match: they prove that tokens come,
    not that they make sense.
    """
    if last_end is None:
        return 0.0
    if state.verdict is Verdict.BUSY:
        return last_end + min(settings.period, max(RETRY_SECONDS, settings.rules.timeout))
    if state.verdict is not Verdict.GENERATING or state.failures:
        return last_end + RETRY_SECONDS
    spared = last_user if settings.expect is None else None
    return max(last_end, spared or 0.0) + settings.period


async def ask(
    engine: Engine,
    request: Mapping[str, Any],
    bound: float,
    clock: Clock,
    expect: Expectation | None = None,
) -> ProbeResult:
    """One probe: read the whole stream within ``bound`` seconds, else abort it. Raises only on cancel."""
    began = clock.monotonic()
    answer = Answer(expect)
    reading = asyncio.create_task(_read(engine, request, answer), name="probe")
    try:
        done, _ = await asyncio.wait({reading}, timeout=bound)
        ended = clock.monotonic()
    finally:
        if not reading.done():
            reading.cancel()
            # The engine may not answer the abort either: the wait is bounded, the task is cancelled.
            await asyncio.wait({reading}, timeout=ABORT_SECONDS)
    latency = ended - began
    if not done:
        if reading.done() and not reading.cancelled():
            reading.exception()  # taken, so that asyncio does not log it as never retrieved
        return ProbeResult(Outcome.TIMEOUT, latency, answer.tokens, ended)
    if reading.cancelled():  # by the engine itself
        return ProbeResult(Outcome.ERROR, latency, answer.tokens, ended, asyncio.CancelledError.__name__)
    if (error := reading.exception()) is not None:
        dead = engine.dead()
        outcome = Outcome.ERROR if dead is None else Outcome.ENGINE_DEAD
        return ProbeResult(outcome, latency, answer.tokens, ended, type(error).__name__, error)
    outcome, detail = answer.judge()
    return ProbeResult(outcome, latency, answer.tokens, ended, detail)


async def _read(engine: Engine, request: Mapping[str, Any], answer: Answer) -> None:
    stream = engine.generate(request, f"{PROBE_PREFIX}{uuid4().hex}")
    try:
        async for chunk in stream:
            answer.feed(chunk)
    finally:
        if (close := getattr(stream, "aclose", None)) is not None:
            with suppress(RuntimeError):  # already closing: the consumer was cancelled inside it
                await close()


class Prober:
    """Owns the verdict. ``run`` is one task; its owner cancels and awaits it.

    ``publish`` is called after every change of state and every probe; ``ended`` with every probe that ended,
    its question still asked or not. ``name``: for the log, where there are several. Whether the process must
    end is its caller's to decide.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ProbeSettings,
        *,
        progress: Progress,
        publish: Callable[[], None],
        ended: Callable[[ProbeResult], None] = lambda result: None,
        clock: Clock | None = None,
        name: str = "",
    ) -> None:
        self._name = name
        self._engine = engine
        self._settings = settings
        self._progress = progress
        self._publish = publish
        self._ended = ended
        self._clock = clock or Clock()
        self.state = State.start(self._clock.monotonic())
        self.last: ProbeResult | None = None
        self.last_proof: float | None = None
        """Monotonic seconds of the last finished probe or user request."""
        self._users_seen = progress.users_finished
        self._traffic_since: float | None = None
        self._wanted: list[asyncio.Future[ProbeResult]] = []
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        """One question at a time: a probe's or a trial's."""
        self._asking: asyncio.Task[ProbeResult] | None = None

    @property
    def settings(self) -> ProbeSettings:
        return self._settings

    def configure(self, settings: ProbeSettings) -> None:
        """Take up new settings; a changed question, or one asked again, is asked at once."""
        before, self._settings = self._settings, settings
        if before.question != settings.question:
            self.state = asked_anew(self.state)
        if before.mode is Mode.DISABLED and settings.mode is not Mode.DISABLED:
            self.state = probed_again(self.state, self._clock.monotonic())
        if settings.mode is Mode.DISABLED:
            self._refuse_wanted()
        elif before != settings:
            self._want()
        if self._asking is not None and (
            before.question != settings.question
            or before.rules.timeout != settings.rules.timeout
            or settings.mode is Mode.DISABLED
        ):
            self._asking.cancel()  # what it finds, or the time it may take, is no longer asked for
        self._publish()

    def _refuse_wanted(self) -> None:
        for waiting in self._wanted:
            waiting.set_exception(ProbeUnavailableError("probing is off"))
        self._wanted.clear()

    async def probe_now(self) -> ProbeResult:
        """A probe of its own, after the one in flight; concurrent callers share it."""
        if self._settings.mode is Mode.DISABLED:
            raise ProbeUnavailableError("probing is off")
        return await asyncio.shield(self._want())

    def report(self) -> tuple[RankReport, ...]:
        """Of the ranks: a prober has one, which needs no name."""
        return ()

    def asks(self, settings: ProbeSettings) -> bool:
        """Whether the request of ``settings`` is the one that is probed with already."""
        return self._settings.mode is not Mode.DISABLED and self._settings.request == settings.request

    async def trial(self, request: Mapping[str, Any], bound: float) -> ProbeResult:
        """Ask a question that is not in force. What comes of it does not change the verdict."""
        async with self._turn:
            result = await ask(self._engine, request, bound, self._clock)
        self._ended(result)
        return result

    def _want(self) -> "asyncio.Future[ProbeResult]":
        waiting: asyncio.Future[ProbeResult] = asyncio.get_running_loop().create_future()
        # A future that nobody awaits (a reload) must not be called a lost exception.
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._wanted.append(waiting)
        self._wake.set()
        return waiting

    async def run(self) -> None:
        """Look, and ask when it is time, until cancelled."""
        try:
            while True:
                self._look()
                if self._due():
                    await self._probe()
                self._wake.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), TICK_SECONDS)
        finally:
            for waiting in self._wanted:
                waiting.cancel()
            self._wanted.clear()

    def _due(self) -> bool:
        if self._settings.mode is Mode.DISABLED or self.state.verdict is Verdict.DEAD:
            return False
        if self._wanted:
            return True
        now = self._clock.monotonic()
        last_end = self.last.ended if self.last else None
        user = self._progress.last_user_finished
        return now >= next_probe_at(self.state, last_end, user, self._settings) or self._stopped(now)

    def _stopped(self, now: float) -> bool:
        """Traffic in flight and the scheduler schedules nothing."""
        if self._traffic_since is None or self.state.verdict is not Verdict.GENERATING:
            return False
        seen = self._progress.seen()
        moved = max(seen.last_scheduled or 0.0, self._traffic_since)
        return now - moved >= max(STOP_SECONDS, 1.5 * seen.longest_step)

    async def _probe(self) -> None:
        wanted, self._wanted = self._wanted, []
        settings = self._settings
        asking = self._asking = asyncio.create_task(self._ask(settings), name="ask")
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=TICK_SECONDS)
                self._look()
        except asyncio.CancelledError:
            asking.cancel()
            for waiting in wanted:
                waiting.cancel()
            await asyncio.wait({asking}, timeout=2 * ABORT_SECONDS)
            raise
        finally:
            self._asking = None
        if asking.cancelled():  # by other settings, with which those who wait are answered
            self._wanted = wanted + self._wanted
            if self._settings.mode is Mode.DISABLED:
                self._refuse_wanted()
            return
        result = asking.result()
        self._account(result, settings)
        for waiting in wanted:
            if not waiting.done():
                waiting.set_result(result)

    async def _ask(self, settings: ProbeSettings) -> ProbeResult:
        async with self._turn:
            return await ask(
                self._engine, settings.request, settings.rules.timeout, self._clock, settings.expect
            )

    def _account(self, result: ProbeResult, settings: ProbeSettings) -> None:
        self._ended(result)
        if self._settings.question != settings.question:
            return  # the question changed while it was asked: its answer says nothing of the new one
        self.last = result
        if result.outcome is Outcome.COMPLETE:
            self.last_proof = result.ended
        event = ProbeEnded(result.ended, result.outcome, self._progress.seen(), result.detail)
        self._move(decide(self.state, event, settings.rules))
        self._publish()

    def _look(self) -> None:
        """Between probes and during one: a dead engine, users' answers, traffic, the passing of time."""
        now = self._clock.monotonic()
        rules = self._settings.rules
        state = self.state
        if (why := self._engine.dead()) is not None:
            self._move(decide(state, EngineDied(now, why), rules))
            return
        self._traffic_since = (self._traffic_since or now) if self._engine.in_flight() else None
        if self._progress.users_finished != self._users_seen:
            self._users_seen = self._progress.users_finished
            self.last_proof = self._progress.last_user_finished or now
            state = decide(state, UserFinished(self.last_proof), rules)
            self._publish_quietly(state)
        self._move(decide(self.state, Tick(now, self._progress.seen(), self._traffic_since), rules))

    def _publish_quietly(self, state: State) -> None:
        if state.verdict is self.state.verdict:
            self.state = state
            self._publish()
        else:
            self._move(state)

    def _move(self, state: State) -> None:
        before, self.state = self.state, state
        if before.verdict is state.verdict:
            return
        if state.verdict is Verdict.STALLED:
            self._progress.stalled()
        level = logging.INFO if state.verdict in (Verdict.GENERATING, Verdict.BUSY) else logging.WARNING
        logger.log(level, "Verdict %s -> %s %s %s", before.verdict, state.verdict, self._name, state.message)
        self._publish()
