"""The states of routes, when they are probed, and the readiness of the frontend."""

from dataclasses import replace

import pytest

from vllmendpoint_api import Mode, RouteState
from vllmendpoint_worker.frontend.discovery import Discovery, Instance
from vllmendpoint_worker.frontend.probing.routes import (
    ACCEPT_SECONDS,
    MAX_ATTEMPTS,
    RETRY_SECONDS,
    ProbeEnd,
    Route,
    RouteOutcome,
    attempts,
    next_probe_at,
    readiness,
    route_after_probe,
    update_routes,
)
from vllmendpoint_worker.frontend.settings import ProbeRules

ONE, TWO = Instance("ns", 1), Instance("other", 2)
NEW = Route(ONE, discovered=100.0, since=100.0)
RULES = ProbeRules(period=10.0)
DISABLED = replace(RULES, mode=Mode.DISABLED)

ANSWERED, REFUSED, FAILED = RouteOutcome.ANSWERED, RouteOutcome.REFUSED, RouteOutcome.FAILED


def ended(outcome: RouteOutcome, at: float = 101.0, took: float = 0.0) -> ProbeEnd:
    return ProbeEnd(at - took, at, outcome, "" if outcome is ANSWERED else f"{outcome}.")


def discovered(*instances: Instance, **accepted: int) -> Discovery:
    return Discovery(instances, ("m",), {name: {"aggregated": count} for name, count in accepted.items()})


@pytest.mark.parametrize(
    ("share", "expected"),
    [(1.0, 1), (0.5, 20), (0.9, 6), (0.1, 132), (0.01, MAX_ATTEMPTS), (0.0, MAX_ATTEMPTS)],
)
def test_enough_attempts_miss_a_worker_once_in_a_million(share: float, expected: int) -> None:
    assert attempts(share) == expected
    if 0.0 < share < 1.0 and expected < MAX_ATTEMPTS:
        assert (1 - share) ** expected <= 1e-6 < (1 - share) ** (expected - 1)


@pytest.mark.parametrize(
    ("outcomes", "state", "message"),
    [
        ([], RouteState.PENDING, ""),
        ([ANSWERED], RouteState.ANSWERED, ""),
        ([FAILED], RouteState.PENDING, "failed."),
        ([FAILED, FAILED], RouteState.FAILING, "failed."),
        ([REFUSED], RouteState.PENDING, "refused."),
        ([REFUSED, REFUSED], RouteState.NOT_ACCEPTED, "refused."),
        ([REFUSED, FAILED], RouteState.FAILING, "failed."),
        ([ANSWERED, FAILED], RouteState.ANSWERED, ""),
        ([ANSWERED, FAILED, FAILED], RouteState.FAILING, "failed."),
        ([ANSWERED, FAILED, ANSWERED, FAILED], RouteState.ANSWERED, ""),
        ([FAILED, FAILED, ANSWERED], RouteState.ANSWERED, ""),
        ([REFUSED, REFUSED, FAILED], RouteState.FAILING, "failed."),
    ],
)
def test_consecutive_failures_change_the_state_and_one_answer_restores_it(
    outcomes: list[RouteOutcome], state: RouteState, message: str
) -> None:
    route = NEW
    for at, outcome in enumerate(outcomes):
        route = route_after_probe(route, ended(outcome, 101.0 + at), threshold=2)
    assert (route.state, route.message) == (state, message)


def test_since_is_the_time_of_the_change() -> None:
    route = NEW
    for at, outcome in enumerate([ANSWERED, ANSWERED, FAILED, FAILED, FAILED]):
        route = route_after_probe(route, ended(outcome, 101.0 + at), threshold=2)
    assert (route.since, route.last_answer) == (104.0, 102.0)


def test_new_workers_are_pending_and_workers_that_have_left_are_removed() -> None:
    routes = update_routes({}, discovered(ONE, TWO, ns=1, other=1), RULES, 100.0)
    assert [(route.state, route.since) for route in routes.values()] == [(RouteState.PENDING, 100.0)] * 2
    assert list(update_routes(routes, discovered(TWO, other=1), RULES, 101.0)) == [TWO]


def test_a_namespace_without_accepted_workers_is_not_accepted_after_a_delay() -> None:
    seen = discovered(ONE)
    routes = update_routes({}, seen, RULES, 100.0)
    routes = update_routes(routes, seen, RULES, 99.9 + ACCEPT_SECONDS)
    assert routes[ONE].state is RouteState.PENDING
    assert next_probe_at(routes[ONE], RULES, 0.0) is None, "a probe would be refused"
    routes = update_routes(routes, seen, RULES, 100.0 + ACCEPT_SECONDS)
    assert routes[ONE].state is RouteState.NOT_ACCEPTED
    assert "accepts no worker in the Dynamo namespace ns" in routes[ONE].message


def test_an_answered_route_stays_answered_while_the_namespace_is_only_briefly_empty() -> None:
    routes = {ONE: route_after_probe(NEW, ended(ANSWERED), threshold=2)}
    routes = update_routes(routes, discovered(ONE), RULES, 102.0)
    assert routes[ONE].state is RouteState.ANSWERED
    assert update_routes(routes, discovered(ONE), RULES, 106.0)[ONE].state is RouteState.NOT_ACCEPTED


def test_a_route_is_probed_immediately_when_its_namespace_is_accepted_again() -> None:
    routes = {ONE: route_after_probe(NEW, ended(ANSWERED), threshold=2)}
    for now, accepted in ((102.0, 0), (106.0, 0), (107.0, 1)):
        routes = update_routes(routes, discovered(ONE, ns=accepted), RULES, now)
    due = next_probe_at(routes[ONE], RULES, 0.5)
    assert due is not None
    assert due <= 107.0
    assert routes[ONE].state is RouteState.NOT_ACCEPTED, "until the probe is answered"


def test_a_refused_route_is_probed_immediately_when_the_number_of_accepted_workers_changes() -> None:
    routes = update_routes({}, discovered(ONE, ns=1), RULES, 100.0)
    for at in (101.0, 102.0):
        routes[ONE] = route_after_probe(routes[ONE], ended(REFUSED, at), threshold=2)
    assert routes[ONE].state is RouteState.NOT_ACCEPTED
    unchanged = update_routes(routes, discovered(ONE, ns=1), RULES, 103.0)[ONE]
    changed = update_routes(routes, discovered(ONE, ns=2), RULES, 103.0)[ONE]
    assert next_probe_at(unchanged, RULES, 0.0) == 112.0
    assert next_probe_at(changed, RULES, 0.0) == 100.0


def test_without_probes_the_accepted_workers_decide() -> None:
    failing = route_after_probe(NEW, ended(FAILED), threshold=1)
    routes = update_routes({ONE: failing}, discovered(ONE, ns=1), DISABLED, 102.0)
    assert (routes[ONE].state, routes[ONE].message) == (RouteState.PENDING, "")
    for now in (103.0, 107.0, 108.0):
        routes = update_routes(routes, discovered(ONE), DISABLED, now)
    assert (routes[ONE].state, routes[ONE].since) == (RouteState.NOT_ACCEPTED, 107.0)
    routes = update_routes(routes, discovered(ONE, ns=1), DISABLED, 109.0)
    assert routes[ONE].state is RouteState.PENDING


@pytest.mark.parametrize(
    ("end", "state", "due"),
    [
        (None, RouteState.PENDING, 100.0),
        (ended(ANSWERED, 101.0), RouteState.ANSWERED, 103.0),
        (ended(ANSWERED, 102.9), RouteState.ANSWERED, 103.0),
        (ended(ANSWERED, 103.1), RouteState.ANSWERED, 113.0),
        (ended(FAILED, 101.0), RouteState.ANSWERED, 101.0 + RETRY_SECONDS),
        (ended(FAILED, 101.0), RouteState.FAILING, 101.0 + RETRY_SECONDS),
        (ended(FAILED, 106.0, took=5.0), RouteState.FAILING, 106.0),
        (ended(REFUSED, 101.0), RouteState.PENDING, 101.0 + RETRY_SECONDS),
        (ended(REFUSED, 101.0), RouteState.NOT_ACCEPTED, 101.0 + RULES.period),
    ],
)
def test_when_a_probe_is_due(end: ProbeEnd | None, state: RouteState, due: float) -> None:
    route = replace(NEW, last_probe=end, state=state)
    assert next_probe_at(route, RULES, phase=0.3) == pytest.approx(due)
    assert next_probe_at(route, DISABLED, phase=0.3) is None


@pytest.mark.parametrize("phase", [0.0, 0.25, 0.999])
def test_the_interval_of_answered_probes_is_at_most_one_period(phase: float) -> None:
    for at in (0.0, 0.1, 3.3, 29.99, 30.0, 1e6 + 0.7):
        due = next_probe_at(replace(NEW, last_probe=ended(ANSWERED, at)), RULES, phase)
        assert due is not None
        assert at < due <= at + RULES.period + 1e-6


@pytest.mark.parametrize(
    ("states", "mode", "accepted", "ready", "reason"),
    [
        ([], Mode.ENFORCE, 1, False, "not discovered"),
        (
            [RouteState.PENDING],
            Mode.ENFORCE,
            1,
            False,
            "None of 1 discovered workers has answered",
        ),
        ([RouteState.ANSWERED], Mode.ENFORCE, 1, True, ""),
        ([RouteState.FAILING, RouteState.ANSWERED], Mode.ENFORCE, 1, True, ""),
        ([RouteState.NOT_ACCEPTED, RouteState.FAILING], Mode.ENFORCE, 1, False, "1 NotAccepted, 1 Failing"),
        ([RouteState.FAILING], Mode.OBSERVE, 1, True, ""),
        ([RouteState.PENDING], Mode.DISABLED, 1, True, ""),
        ([RouteState.PENDING], Mode.DISABLED, 0, False, "accepts none of 1"),
        ([], Mode.DISABLED, 0, False, "not discovered"),
    ],
)
def test_the_frontend_is_ready_with_a_route_to_one_worker(
    states: list[RouteState], mode: Mode, accepted: int, ready: bool, reason: str
) -> None:
    routes = [replace(NEW, state=state) for state in states]
    result = readiness(routes, discovered(ONE, ns=accepted), replace(RULES, mode=mode))
    assert result[0] is ready
    assert reason in result[1]
    assert bool(result[1]) is not ready
