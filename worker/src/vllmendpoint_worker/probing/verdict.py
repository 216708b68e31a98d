"""Does the model generate? The pure state machine of the design, section 5.

One frozen :class:`State`, one function :func:`decide`; time comes in with the event. Rules:

- a complete probe -> ``Generating`` (back from trouble only after ``success_threshold`` in a row);
- timed out while the scheduler still schedules tokens -> ``Busy``;
- timed out and no token scheduled for max(timeout, 3 x the longest recent step) -> ``Stalled``, at once, for
  two signals agree;
- error or unexpected answer -> ``Failing`` after ``failure_threshold`` in a row; an unexpected answer is
  taken back by a complete probe only: users' answers, and tokens being scheduled, say nothing of their sense;
- engine gone -> ``Dead``, for good; before the first probe ended -> ``Starting``.
"""

from dataclasses import dataclass, replace
from typing import Final

from vllmendpoint_api import Mode, Outcome, Reason, Verdict

__all__ = [
    "CRITICAL_STEPS",
    "EngineDied",
    "Event",
    "ProbeEnded",
    "ProgressSeen",
    "Rules",
    "State",
    "Tick",
    "UserFinished",
    "asked_anew",
    "decide",
    "fit_for_ping",
    "probed_again",
    "ready",
    "stalled_for",
]

CRITICAL_STEPS: Final = 3
"""A stop is certain after so many times the longest recent engine step (a long prefill is one step)."""


HEALTHY: Final = frozenset({Verdict.GENERATING, Verdict.BUSY})


@dataclass(frozen=True, slots=True)
class Rules:
    """What of the resolved health check the verdict needs. Times in seconds."""

    timeout: float
    failure_threshold: int = 2
    success_threshold: int = 1


@dataclass(frozen=True, slots=True)
class ProgressSeen:
    """What the engine's scheduler did, as the stat logger saw it. Times in seconds, monotonic."""

    last_scheduled: float | None = None
    """When tokens were last scheduled; None before the first."""
    longest_step: float = 0.0
    """The longest engine step of the recent past."""


@dataclass(frozen=True, slots=True)
class ProbeEnded:
    at: float
    outcome: Outcome
    progress: ProgressSeen
    detail: str = ""
    """For the message: never content of the payload or of the answer."""


@dataclass(frozen=True, slots=True)
class UserFinished:
    """The engine finished a user's request."""

    at: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: a probe that timed out as Busy may turn out to be a stall."""

    at: float
    progress: ProgressSeen
    traffic_since: float | None
    """Since when there has been something in flight; None while there is nothing."""


@dataclass(frozen=True, slots=True)
class EngineDied:
    at: float
    detail: str = ""


Event = ProbeEnded | UserFinished | Tick | EngineDied


@dataclass(frozen=True, slots=True)
class State:
    """``since``: monotonic seconds of the last change of ``verdict``."""

    verdict: Verdict
    since: float
    reason: str = ""
    message: str = ""
    failures: int = 0
    """Probes in a row that ended in an error."""
    successes: int = 0
    """Proofs of life in a row since the last trouble."""
    unanswered: bool = False
    """The last probe timed out, and nothing has finished since."""
    wrong: str = ""
    """The sentence that made it Failing for unexpected answers, until a probe is complete again."""

    def renamed(self, message: str) -> "State":
        """With another message."""
        return replace(self, message=message)

    @staticmethod
    def start(at: float) -> "State":
        return State(Verdict.STARTING, at, Reason.STARTING, "No probe has ended yet.")


def decide(state: State, event: Event, rules: Rules) -> State:
    """The state after ``event``. Pure; a dead engine stays dead."""
    if state.verdict is Verdict.DEAD:
        return state
    match event:
        case EngineDied(at, detail):
            why = f": {detail}" if detail else ""
            return _to(
                state,
                Verdict.DEAD,
                at,
                Reason.ENGINE_DEAD,
                f"The engine is gone{why}; the worker ends and is restarted.",
            )
        case UserFinished(at):
            return _finished(state, at, rules)
        case Tick(at, progress, traffic_since):
            if state.verdict is not Verdict.BUSY or not state.unanswered or traffic_since is None:
                return state  # with nothing in flight no token is due; the next probe soon is
            # Nor was a token due before there was anything in flight, and that may be the probe itself.
            waited = at - traffic_since >= _window(progress, rules)
            return _stall(state, at, progress, rules) if waited and _stopped(progress, at, rules) else state
        case ProbeEnded():
            return _probed(state, event, rules)


def asked_anew(state: State) -> State:
    """The state where another question is asked from now on: what the old answers were says nothing of it."""
    return replace(state, failures=0, successes=0, wrong="")


def probed_again(state: State, at: float) -> State:
    """The state where probing is on again: trouble of the time before it was off may be over, and none of it
    counts. A worker that generated, or was busy, stays in service, as it was all the while: every one of an
    endpoint would leave it at once.
    """
    if state.verdict in (Verdict.GENERATING, Verdict.BUSY, Verdict.DEAD):
        return replace(asked_anew(state), unanswered=False)
    return State.start(at)


def _probed(state: State, event: ProbeEnded, rules: Rules) -> State:
    match event.outcome:
        case Outcome.COMPLETE:
            return _proof(replace(state, failures=0, unanswered=False, wrong=""), event.at, rules)
        case Outcome.ENGINE_DEAD:
            return decide(state, EngineDied(event.at, event.detail), rules)
        case Outcome.TIMEOUT:
            state = replace(state, successes=0, unanswered=True)
            if _stopped(event.progress, event.at, rules):
                return _stall(state, event.at, event.progress, rules)
            if state.wrong:
                return _to(state, Verdict.FAILING, event.at, Reason.UNEXPECTED_ANSWER, state.wrong)
            return _to(
                replace(state, failures=0),
                Verdict.BUSY,
                event.at,
                "",
                f"The probe got no answer within {rules.timeout:g} s, but the engine schedules tokens.",
            )
        case _:
            failures = state.failures + 1
            state = replace(state, failures=failures, successes=0, unanswered=False)
            if failures < rules.failure_threshold and state.verdict is not Verdict.FAILING:
                return state
            unexpected = event.outcome is Outcome.UNEXPECTED_ANSWER
            reason = Reason.UNEXPECTED_ANSWER if unexpected else Reason.PROBE_FAILED
            what = "an unexpected answer" if unexpected else "an error"
            why = f" ({event.detail})" if event.detail else ""
            message = f"Probes end in {what}{why}."
            state = replace(state, wrong=message if unexpected else state.wrong)
            return _to(state, Verdict.FAILING, event.at, reason, message)


def _finished(state: State, at: float, rules: Rules) -> State:
    """A user's answer disproves a stall; it says nothing of why the probe itself errs or what the answers
    are, nor is it the first probe.
    """
    if state.verdict in (Verdict.FAILING, Verdict.STARTING) or state.wrong:
        return state
    return _proof(replace(state, unanswered=False), at, rules)


def _proof(state: State, at: float, rules: Rules) -> State:
    if state.verdict is Verdict.GENERATING:
        return state
    if state.verdict in (Verdict.STARTING, Verdict.BUSY):
        return _to(state, Verdict.GENERATING, at, "", "")
    successes = state.successes + 1
    if successes >= rules.success_threshold:
        return _to(replace(state, successes=0), Verdict.GENERATING, at, "", "")
    return replace(state, successes=successes)


def _stall(state: State, at: float, progress: ProgressSeen, rules: Rules) -> State:
    if progress.last_scheduled is None:
        still = "has never scheduled a token"
    else:
        # Rounded up to the rule's window, so that the sentence does not change with every probe.
        still = f"has scheduled no token for {_window(progress, rules):g} s"
    message = f"The probe got no answer within {rules.timeout:g} s and the engine {still}."
    return _to(state, Verdict.STALLED, at, Reason.ENGINE_STALLED, message)


def _stopped(progress: ProgressSeen, at: float, rules: Rules) -> bool:
    if progress.last_scheduled is None:
        return True
    return at - progress.last_scheduled >= _window(progress, rules)


def _window(progress: ProgressSeen, rules: Rules) -> float:
    return max(rules.timeout, CRITICAL_STEPS * progress.longest_step)


def _to(state: State, verdict: Verdict, at: float, reason: str, message: str) -> State:
    since = state.since if state.verdict is verdict else at
    return replace(state, verdict=verdict, since=since, reason=reason, message=message)


def stalled_for(state: State, at: float) -> float:
    """Seconds since which the engine is certainly stalled; 0 where it is not."""
    return at - state.since if state.verdict is Verdict.STALLED else 0.0


def ready(
    verdict: Verdict, mode: Mode, *, serving: bool, resolved_once: bool, warmed: bool, stopping: bool
) -> tuple[bool, str]:
    """Readiness (design, section 5), and one line that says why not.

    ``resolved_once``: a configuration has been in force; a later refused one takes nothing away.
    ``warmed``: the first probe and the warm-up have ended.
    """
    if verdict is Verdict.DEAD:
        return False, "the engine is gone"
    if stopping:
        return False, "the worker is stopping"
    if not resolved_once:
        return False, "the configuration is not resolved"
    if not serving or not warmed:
        return False, "the worker does not serve yet"
    if mode is Mode.ENFORCE and verdict not in HEALTHY:
        return False, f"the verdict is {verdict.value}"
    return True, ""


def fit_for_ping(verdict: Verdict, mode: Mode, *, serving: bool) -> bool:
    """Whether the default ``/ping`` may say 200: never over a stalled or dead engine (invariant 8)."""
    if verdict in (Verdict.STALLED, Verdict.DEAD):
        return False
    if mode is Mode.ENFORCE:
        return serving and verdict in HEALTHY
    return serving
