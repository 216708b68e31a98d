"""The state machine that decides whether the engine generates tokens.

One frozen :class:`VerdictState` and one pure function, :func:`next_state`; every event carries its time.

- A complete probe gives ``Generating``. After ``Stalled`` or ``Failing`` it takes ``success_threshold``
  complete probes in a row.
- A probe that times out while the scheduler still schedules tokens gives ``Busy``.
- A probe that times out with no token scheduled for max(timeout, 3 x the longest recent step) gives
  ``Stalled`` immediately, because two signals agree.
- ``failure_threshold`` errors or unexpected answers in a row give ``Failing``. After unexpected answers only
  a complete probe ends it: finished user requests and scheduled tokens do not show that answers are correct.
- A dead engine gives ``Dead``, which is final. Before the first probe ends the verdict is ``Starting``.
"""

from dataclasses import dataclass, replace
from typing import Final

from vllmendpoint_api import Mode, Outcome, Reason, Stage, Verdict

__all__ = [
    "CRITICAL_STEPS",
    "EngineDied",
    "Event",
    "ProbeEnded",
    "ProgressSnapshot",
    "Tick",
    "UserRequestFinished",
    "VerdictRules",
    "VerdictState",
    "is_healthy",
    "next_state",
    "readiness",
    "reset_after_disabled",
    "reset_for_new_probe",
    "stalled_seconds",
]

CRITICAL_STEPS: Final = 3
"""Without a scheduled token for this many times the longest recent step, the engine has stopped. A long
prefill is one step."""

HEALTHY: Final = frozenset({Verdict.GENERATING, Verdict.BUSY})


@dataclass(frozen=True, slots=True)
class VerdictRules:
    """The fields of the resolved health check that the verdict depends on. Times in seconds."""

    timeout: float
    failure_threshold: int = 2
    success_threshold: int = 1


@dataclass(frozen=True, slots=True)
class ProgressSnapshot:
    """The progress of the engine's scheduler, from vLLM's stat logger. Times in monotonic seconds."""

    last_scheduled: float | None = None
    """Time of the last step that scheduled tokens; None before the first."""
    longest_step: float = 0.0
    """Duration of the longest recent engine step."""


@dataclass(frozen=True, slots=True)
class ProbeEnded:
    at: float
    outcome: Outcome
    progress: ProgressSnapshot
    detail: str = ""
    """For the message. Never contains content of the payload or of the answer."""


@dataclass(frozen=True, slots=True)
class UserRequestFinished:
    """The engine finished a request of a user."""

    at: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: ``Busy`` may turn into ``Stalled`` without another probe."""

    at: float
    progress: ProgressSnapshot
    traffic_since: float | None
    """Time since which at least one request is in flight; None if none is."""


@dataclass(frozen=True, slots=True)
class EngineDied:
    at: float
    detail: str = ""


Event = ProbeEnded | UserRequestFinished | Tick | EngineDied


@dataclass(frozen=True, slots=True)
class VerdictState:
    """``since``: monotonic seconds of the last change of ``verdict``."""

    verdict: Verdict
    since: float
    reason: str = ""
    """A :class:`Reason` of the condition ``Generating``; empty if the engine is healthy."""
    message: str = ""
    failures: int = 0
    """Number of consecutive probes that ended in an error or an unexpected answer."""
    successes: int = 0
    """Number of consecutive proofs of life since ``Stalled`` or ``Failing``."""
    timed_out: bool = False
    """The last probe timed out, and no request has finished since."""
    unexpected_message: str = ""
    """Message of the last unexpected answers, until a probe is complete."""

    def with_message(self, message: str) -> "VerdictState":
        return replace(self, message=message)

    @staticmethod
    def start(at: float) -> "VerdictState":
        return VerdictState(Verdict.STARTING, at, Reason.STARTING, "No probe has ended yet.")


def next_state(state: VerdictState, event: Event, rules: VerdictRules) -> VerdictState:
    """The state after ``event``. Pure. ``Dead`` is final."""
    if state.verdict is Verdict.DEAD:
        return state
    match event:
        case EngineDied(at, detail):
            cause = f": {detail}" if detail else ""
            message = f"The engine is dead{cause}. The worker exits and the kubelet restarts it."
            return _change(state, Verdict.DEAD, at, Reason.ENGINE_DEAD, message)
        case UserRequestFinished(at):
            return _after_user_request(state, at, rules)
        case Tick(at, progress, traffic_since):
            if state.verdict is not Verdict.BUSY or not state.timed_out or traffic_since is None:
                return state  # without requests in flight the engine schedules nothing; a probe is due soon
            # The window starts with the traffic, which may be the probe itself.
            waited = at - traffic_since >= _stall_window(progress, rules)
            stopped = waited and _has_stopped(progress, at, rules)
            return _stalled(state, at, progress, rules) if stopped else state
        case ProbeEnded():
            return _after_probe(state, event, rules)


def reset_for_new_probe(state: VerdictState) -> VerdictState:
    """The state when the probe's request or expected text changes: earlier answers do not count."""
    return replace(state, failures=0, successes=0, unexpected_message="")


def reset_after_disabled(state: VerdictState, at: float) -> VerdictState:
    """The state when probing is turned on again: earlier failures do not count.

    A worker that was ``Generating`` or ``Busy`` keeps its verdict. Otherwise all replicas of an endpoint
    would become unready at the same time.
    """
    if state.verdict in (Verdict.GENERATING, Verdict.BUSY, Verdict.DEAD):
        return replace(reset_for_new_probe(state), timed_out=False)
    return VerdictState.start(at)


def _after_probe(state: VerdictState, event: ProbeEnded, rules: VerdictRules) -> VerdictState:
    match event.outcome:
        case Outcome.COMPLETE:
            reset = replace(state, failures=0, timed_out=False, unexpected_message="")
            return _after_proof_of_life(reset, event.at, rules)
        case Outcome.ENGINE_DEAD:
            return next_state(state, EngineDied(event.at, event.detail), rules)
        case Outcome.TIMEOUT:
            return _after_timeout(state, event, rules)
        case _:
            return _after_failure(state, event, rules)


def _after_timeout(state: VerdictState, event: ProbeEnded, rules: VerdictRules) -> VerdictState:
    state = replace(state, successes=0, timed_out=True)
    if _has_stopped(event.progress, event.at, rules):
        return _stalled(state, event.at, event.progress, rules)
    if state.unexpected_message:
        reason = Reason.UNEXPECTED_ANSWER
        return _change(state, Verdict.FAILING, event.at, reason, state.unexpected_message)
    message = f"The probe got no answer within {rules.timeout:g} s, but the engine schedules tokens."
    return _change(replace(state, failures=0), Verdict.BUSY, event.at, "", message)


def _after_failure(state: VerdictState, event: ProbeEnded, rules: VerdictRules) -> VerdictState:
    failures = state.failures + 1
    state = replace(state, failures=failures, successes=0, timed_out=False)
    if failures < rules.failure_threshold and state.verdict is not Verdict.FAILING:
        return state
    detail = f" ({event.detail})" if event.detail else ""
    if event.outcome is Outcome.UNEXPECTED_ANSWER:
        message = f"Probes end in an unexpected answer{detail}."
        state = replace(state, unexpected_message=message)
        return _change(state, Verdict.FAILING, event.at, Reason.UNEXPECTED_ANSWER, message)
    message = f"Probes end in an error{detail}."
    return _change(state, Verdict.FAILING, event.at, Reason.PROBE_FAILED, message)


def _after_user_request(state: VerdictState, at: float, rules: VerdictRules) -> VerdictState:
    """A finished user request disproves a stall. It does not disprove errors or unexpected answers of probes,
    and does not replace the first probe.
    """
    if state.verdict in (Verdict.FAILING, Verdict.STARTING) or state.unexpected_message:
        return state
    return _after_proof_of_life(replace(state, timed_out=False), at, rules)


def _after_proof_of_life(state: VerdictState, at: float, rules: VerdictRules) -> VerdictState:
    if state.verdict is Verdict.GENERATING:
        return state
    successes = state.successes + 1
    if state.verdict in (Verdict.STARTING, Verdict.BUSY) or successes >= rules.success_threshold:
        return _change(replace(state, successes=0), Verdict.GENERATING, at, "", "")
    return replace(state, successes=successes)


def _stalled(state: VerdictState, at: float, progress: ProgressSnapshot, rules: VerdictRules) -> VerdictState:
    if progress.last_scheduled is None:
        scheduled = "has never scheduled a token"
    else:
        # The rule's window instead of the exact time, so that the message does not change with every probe.
        scheduled = f"has scheduled no token for {_stall_window(progress, rules):g} s"
    message = f"The probe got no answer within {rules.timeout:g} s and the engine {scheduled}."
    return _change(state, Verdict.STALLED, at, Reason.ENGINE_STALLED, message)


def _has_stopped(progress: ProgressSnapshot, at: float, rules: VerdictRules) -> bool:
    if progress.last_scheduled is None:
        return True
    return at - progress.last_scheduled >= _stall_window(progress, rules)


def _stall_window(progress: ProgressSnapshot, rules: VerdictRules) -> float:
    return max(rules.timeout, CRITICAL_STEPS * progress.longest_step)


def _change(state: VerdictState, verdict: Verdict, at: float, reason: str, message: str) -> VerdictState:
    since = state.since if state.verdict is verdict else at
    return replace(state, verdict=verdict, since=since, reason=reason, message=message)


def stalled_seconds(state: VerdictState, at: float) -> float:
    """Seconds since the engine stalled; 0 if it is not stalled."""
    return at - state.since if state.verdict is Verdict.STALLED else 0.0


def readiness(verdict: Verdict, mode: Mode, stage: Stage) -> tuple[bool, str]:
    """Whether the worker is ready, and the reason if it is not."""
    if verdict is Verdict.DEAD:
        return False, "the engine is dead"
    if stage is Stage.STOPPING:
        return False, "the worker is stopping"
    if stage is not Stage.SERVING:
        return False, "the worker does not serve yet"
    if mode is Mode.ENFORCE and verdict not in HEALTHY:
        return False, f"the verdict is {verdict.value}"
    return True, ""


def is_healthy(verdict: Verdict, mode: Mode, *, serving: bool) -> bool:
    """Whether the default ``/ping`` answers 200. Never over a stalled or dead engine, in any mode."""
    if verdict in (Verdict.STALLED, Verdict.DEAD):
        return False
    if mode is Mode.ENFORCE:
        return serving and verdict in HEALTHY
    return serving
