"""The transitions of the verdict, as docs/concepts/verdict.md defines them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmendpoint_api import Mode, Outcome, Stage, Verdict
from vllmendpoint_worker.probing.verdict import (
    EngineDied,
    Event,
    ProbeEnded,
    ProgressSnapshot,
    Tick,
    UserRequestFinished,
    VerdictRules,
    VerdictState,
    is_healthy,
    next_state,
    readiness,
    reset_after_disabled,
    reset_for_new_probe,
    stalled_seconds,
)

RULES = VerdictRules(timeout=5.0, failure_threshold=2, success_threshold=1)
STEADY = VerdictRules(timeout=5.0, failure_threshold=2, success_threshold=3)
V = Verdict


def probe(outcome: Outcome, at: float = 100.0, last: float | None = None, step: float = 0.0) -> ProbeEnded:
    return ProbeEnded(at, outcome, ProgressSnapshot(last, step))


def run(state: VerdictState, *events: Event, rules: VerdictRules = RULES) -> VerdictState:
    for event in events:
        state = next_state(state, event, rules)
    return state


START = VerdictState.start(0.0)
GENERATING = run(START, probe(Outcome.COMPLETE, 1.0))
STALLED = run(GENERATING, probe(Outcome.TIMEOUT, 50.0, last=10.0))
FAILING = run(GENERATING, probe(Outcome.ERROR, 50.0), probe(Outcome.ERROR, 51.0))
WRONG = run(GENERATING, probe(Outcome.UNEXPECTED_ANSWER, 50.0), probe(Outcome.UNEXPECTED_ANSWER, 51.0))
WRONG_AND_STALLED = run(WRONG, probe(Outcome.TIMEOUT, 60.0, last=50.0))
BUSY = run(GENERATING, probe(Outcome.TIMEOUT, 50.0, last=49.0))
DEAD = run(GENERATING, EngineDied(50.0))


@pytest.mark.parametrize(
    ("before", "event", "after"),
    [
        (START, probe(Outcome.COMPLETE), V.GENERATING),
        (START, probe(Outcome.ERROR), V.STARTING),
        (START, probe(Outcome.TIMEOUT), V.STALLED),
        (START, probe(Outcome.TIMEOUT, last=99.0), V.BUSY),
        (START, UserRequestFinished(100.0), V.STARTING),
        (GENERATING, probe(Outcome.COMPLETE), V.GENERATING),
        (GENERATING, probe(Outcome.TIMEOUT, last=99.9), V.BUSY),
        (GENERATING, probe(Outcome.TIMEOUT, last=95.1), V.BUSY),
        (GENERATING, probe(Outcome.TIMEOUT, last=95.0), V.STALLED),
        (GENERATING, probe(Outcome.TIMEOUT, last=90.0, step=4.0), V.BUSY),
        (GENERATING, probe(Outcome.TIMEOUT, last=88.0, step=4.0), V.STALLED),
        (GENERATING, probe(Outcome.ERROR), V.GENERATING),
        (GENERATING, probe(Outcome.UNEXPECTED_ANSWER), V.GENERATING),
        (GENERATING, probe(Outcome.ENGINE_DEAD), V.DEAD),
        (GENERATING, EngineDied(100.0), V.DEAD),
        (BUSY, probe(Outcome.COMPLETE), V.GENERATING),
        (BUSY, probe(Outcome.TIMEOUT, last=99.0), V.BUSY),
        (BUSY, UserRequestFinished(100.0), V.GENERATING),
        (BUSY, Tick(53.9, ProgressSnapshot(49.0), 1.0), V.BUSY),
        (BUSY, Tick(54.0, ProgressSnapshot(49.0), 1.0), V.STALLED),
        (BUSY, Tick(54.0, ProgressSnapshot(53.0), 1.0), V.BUSY),
        (BUSY, Tick(90.0, ProgressSnapshot(49.0), None), V.BUSY),
        (BUSY, Tick(90.0, ProgressSnapshot(49.0), 85.1), V.BUSY),
        (BUSY, Tick(90.0, ProgressSnapshot(49.0), 85.0), V.STALLED),
        (STALLED, probe(Outcome.COMPLETE), V.GENERATING),
        (STALLED, UserRequestFinished(100.0), V.GENERATING),
        (STALLED, probe(Outcome.TIMEOUT, last=99.0), V.BUSY),
        (STALLED, probe(Outcome.ERROR), V.STALLED),
        (STALLED, Tick(100.0, ProgressSnapshot(99.0), 1.0), V.STALLED),
        (FAILING, probe(Outcome.ERROR), V.FAILING),
        (FAILING, probe(Outcome.COMPLETE), V.GENERATING),
        (FAILING, UserRequestFinished(100.0), V.FAILING),
        (FAILING, probe(Outcome.TIMEOUT, last=10.0), V.STALLED),
        (FAILING, probe(Outcome.TIMEOUT, last=99.0), V.BUSY),
        (WRONG, UserRequestFinished(100.0), V.FAILING),
        (WRONG, probe(Outcome.TIMEOUT, last=99.0), V.FAILING),
        (WRONG, probe(Outcome.TIMEOUT, last=10.0), V.STALLED),
        (WRONG, probe(Outcome.COMPLETE), V.GENERATING),
        (WRONG_AND_STALLED, UserRequestFinished(100.0), V.STALLED),
        (WRONG_AND_STALLED, probe(Outcome.TIMEOUT, last=99.0), V.FAILING),
        (WRONG_AND_STALLED, probe(Outcome.COMPLETE), V.GENERATING),
        (reset_for_new_probe(WRONG), probe(Outcome.TIMEOUT, last=99.0), V.BUSY),
        (DEAD, probe(Outcome.COMPLETE), V.DEAD),
        (DEAD, UserRequestFinished(100.0), V.DEAD),
    ],
)  # fmt: skip
def test_each_event_leads_to_the_documented_verdict(
    before: VerdictState, event: Event, after: Verdict
) -> None:
    assert next_state(before, event, RULES).verdict is after


def test_reasons_are_those_of_the_generating_condition() -> None:
    assert (STALLED.reason, DEAD.reason, FAILING.reason) == ("EngineStalled", "EngineDead", "ProbeFailed")
    unexpected = run(GENERATING, probe(Outcome.UNEXPECTED_ANSWER), probe(Outcome.UNEXPECTED_ANSWER))
    assert unexpected.reason == "UnexpectedAnswer"
    assert (GENERATING.reason, GENERATING.message) == ("", "")
    for state in (STALLED, DEAD, FAILING, BUSY):
        assert state.message.endswith(".")


def test_an_unexpected_answer_keeps_its_reason_until_a_probe_is_complete() -> None:
    """Under load: timeouts and finished user requests in between do not make the worker ready."""
    state = run(
        WRONG, probe(Outcome.TIMEOUT, last=99.0), UserRequestFinished(101.0), probe(Outcome.TIMEOUT, 102.0)
    )
    assert state.verdict is V.STALLED
    state = run(state, UserRequestFinished(103.0), probe(Outcome.TIMEOUT, 104.0, last=103.9))
    assert (state.verdict, state.reason, state.message) == (V.FAILING, "UnexpectedAnswer", WRONG.message)
    state = run(state, probe(Outcome.COMPLETE, 105.0), probe(Outcome.TIMEOUT, 110.0, last=109.0))
    assert state.verdict is V.BUSY


def test_failures_must_be_in_a_row() -> None:
    state = run(GENERATING, probe(Outcome.ERROR), probe(Outcome.COMPLETE), probe(Outcome.ERROR))
    assert state.verdict is V.GENERATING
    assert run(state, probe(Outcome.ERROR)).verdict is V.FAILING


@pytest.mark.parametrize("trouble", [STALLED, FAILING])
def test_a_failed_engine_recovers_only_after_the_success_threshold(trouble: VerdictState) -> None:
    state = trouble
    for _ in range(2):
        state = next_state(state, probe(Outcome.COMPLETE), STEADY)
        assert state.verdict is trouble.verdict
    assert next_state(state, probe(Outcome.COMPLETE), STEADY).verdict is V.GENERATING


def test_a_failure_resets_the_count_of_successes() -> None:
    state = run(
        STALLED, probe(Outcome.COMPLETE), probe(Outcome.COMPLETE), probe(Outcome.TIMEOUT), rules=STEADY
    )
    assert run(state, probe(Outcome.COMPLETE), probe(Outcome.COMPLETE), rules=STEADY).verdict is V.STALLED


def test_since_changes_only_with_the_verdict() -> None:
    again = next_state(STALLED, probe(Outcome.TIMEOUT, 80.0, last=10.0), RULES)
    assert again.since == STALLED.since == 50.0
    assert stalled_seconds(again, 90.0) == 40.0
    assert stalled_seconds(GENERATING, 90.0) == 0.0
    assert (
        again.message == STALLED.message
    )  # every change sends a line, so the message must not count seconds


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (START, V.STARTING),
        (GENERATING, V.GENERATING),
        (BUSY, V.BUSY),
        (STALLED, V.STARTING),
        (FAILING, V.STARTING),
        (WRONG, V.STARTING),
        (DEAD, V.DEAD),
    ],
)
def test_findings_from_before_probing_was_off_do_not_count(before: VerdictState, after: Verdict) -> None:
    state = reset_after_disabled(before, 300.0)
    assert state.verdict is after
    assert (state.failures, state.successes, state.timed_out, state.unexpected_message) == (0, 0, False, "")
    assert state.since == (300.0 if after is V.STARTING else before.since)


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("verdict", list(Verdict))
def test_only_a_serving_worker_with_a_healthy_engine_is_ready(
    verdict: Verdict, mode: Mode, stage: Stage
) -> None:
    fit = verdict is not V.DEAD and (mode is not Mode.ENFORCE or verdict in (V.GENERATING, V.BUSY))
    ready, reason = readiness(verdict, mode, stage)
    assert ready is (fit and stage is Stage.SERVING)
    assert bool(reason) is not ready


@pytest.mark.parametrize("mode", list(Mode))
def test_ping_is_never_200_over_a_stalled_or_dead_engine(mode: Mode) -> None:
    assert not is_healthy(V.STALLED, mode, serving=True)
    assert not is_healthy(V.DEAD, mode, serving=True)
    assert not is_healthy(V.GENERATING, mode, serving=False)
    assert is_healthy(V.BUSY, mode, serving=True)


moments = st.floats(0, 1000)
seen = st.builds(ProgressSnapshot, st.none() | moments, st.floats(0, 20))
events = st.one_of(
    st.builds(
        ProbeEnded, moments, st.sampled_from([o for o in Outcome if o is not Outcome.ENGINE_DEAD]), seen
    ),
    st.builds(UserRequestFinished, moments),
    st.builds(Tick, moments, seen, st.none() | moments),
)


@given(st.lists(events, max_size=30))
def test_an_engine_is_stalled_only_if_two_signals_agree(history: list[Event]) -> None:
    state = START
    for event in history:
        before, state = state, next_state(state, event, RULES)
        if state.verdict is V.STALLED and before.verdict is not V.STALLED:
            assert isinstance(event, ProbeEnded | Tick)
            last = event.progress.last_scheduled
            assert last is None or event.at - last >= max(RULES.timeout, 3 * event.progress.longest_step)
            assert isinstance(event, Tick) or event.outcome is Outcome.TIMEOUT
            assert isinstance(event, ProbeEnded) or event.traffic_since is not None
