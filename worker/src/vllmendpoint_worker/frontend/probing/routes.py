"""The routes from this frontend to the discovered workers: their states, and when each is probed next. Pure.

Times are monotonic seconds.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from vllmendpoint_api import RouteState
from vllmendpoint_worker.frontend.discovery import Discovery, Instance
from vllmendpoint_worker.frontend.settings import ProbeRules

__all__ = [
    "ProbeEnd",
    "Route",
    "RouteOutcome",
    "Routes",
    "attempts",
    "next_probe_at",
    "partner",
    "readiness",
    "route_after_probe",
    "update_routes",
]

ACCEPT_SECONDS: Final = 3.0
"""A frontend reads a worker's model card after it has discovered its instance. During this time, a namespace
without accepted workers changes no state."""

RETRY_SECONDS: Final = 1.0
"""Time from the start of a failed probe to the next. A route that is not accepted is probed once per period
and when the number of accepted workers changes, because such a probe has up to ``MAX_ATTEMPTS`` requests."""

MAX_ATTEMPTS: Final = 200
_MISS_PROBABILITY: Final = 1e-6

Routes = Mapping[Instance, "Route"]


class RouteOutcome(StrEnum):
    """Results of probes, and values of the label ``outcome``."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """The router did not find the worker in any attempt."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ProbeEnd:
    started: float
    ended: float
    outcome: RouteOutcome
    message: str = ""
    """What the HTTP server responded, as a sentence. Empty if it answered."""
    partner: Instance | None = None
    """The worker of the other role, if the route was probed through one."""


@dataclass(frozen=True, slots=True)
class Route:
    instance: Instance
    discovered: float
    since: float
    state: RouteState = RouteState.PENDING
    message: str = ""
    last_answer: float | None = None
    last_probe: ProbeEnd | None = None
    failures: int = 0
    """Consecutive failed or refused probes."""
    accepted: int = 0
    """Number of workers of this role that the frontend accepts in the namespace."""
    unaccepted_since: float | None = None
    """Since when that number is 0."""


def attempts(share: float) -> int:
    """Number of requests after which a worker of a namespace with this share of the accepted workers was
    missed only with a probability of 1e-6.
    """
    if share <= 0.0:
        return MAX_ATTEMPTS
    if share >= 1.0:
        return 1
    return min(MAX_ATTEMPTS, math.ceil(math.log(_MISS_PROBABILITY) / math.log1p(-share)))


def update_routes(
    routes: Routes, discovery: Discovery, rules: ProbeRules, now: float
) -> dict[Instance, Route]:
    """The routes after a poll: new instances are pending, instances that disappeared are removed."""
    updated = {}
    for instance in discovery.instances:
        route = routes.get(instance) or Route(instance, discovered=now, since=now)
        if not rules.probing:
            route = _without_probes(route, discovery, now)
        updated[instance] = _with_acceptance(route, discovery, now)
    return updated


def _without_probes(route: Route, discovery: Discovery, now: float) -> Route:
    """While the health check is disabled, only the numbers of accepted workers are known."""
    route = replace(route, last_probe=None, failures=0)
    if route.state is RouteState.NOT_ACCEPTED and not discovery.accepted_like(route.instance):
        return route
    return _enter(route, RouteState.PENDING, "", now)


def _with_acceptance(route: Route, discovery: Discovery, now: float) -> Route:
    accepted = discovery.accepted_like(route.instance)
    if accepted != route.accepted:
        last_probe = route.last_probe if route.state is RouteState.ANSWERED else None  # probe immediately
        route = replace(route, accepted=accepted, last_probe=last_probe)
    if accepted:
        return replace(route, unaccepted_since=None)
    since = now if route.unaccepted_since is None else route.unaccepted_since
    route = replace(route, unaccepted_since=since)
    if now - since < ACCEPT_SECONDS:
        return route
    return _enter(route, RouteState.NOT_ACCEPTED, _not_accepted(route.instance, discovery), now)


def _not_accepted(instance: Instance, discovery: Discovery) -> str:
    where = f"the Dynamo namespace {instance.namespace}"
    if missing := discovery.missing.get(instance.namespace):
        return (
            f"The frontend sends no requests to {where}, because it has no {' and no '.join(missing)} worker."
        )
    return f"The frontend accepts no worker in {where}."


def partner(route: Route, routes: Iterable[Route]) -> Instance | None:
    """The worker of the other role, in the same namespace, through which the route is probed.

    Workers that answer come first. After a failed probe the partner changes, so that one bad worker does not
    fail the routes of all others.
    """
    others = {
        other.instance: other.state is RouteState.ANSWERED
        for other in routes
        if other.instance.namespace == route.instance.namespace
        and other.instance.prefill != route.instance.prefill
    }
    last = route.last_probe
    failed = None if last is None or last.outcome is RouteOutcome.ANSWERED else last.partner
    if failed is not None and len(others) > 1:
        others.pop(failed, None)
    best = sorted(other for other in others if others[other]) or sorted(others)
    return best[route.instance.id % len(best)] if best else None


def route_after_probe(route: Route, end: ProbeEnd, threshold: int) -> Route:
    """The route after a probe has ended. ``threshold`` consecutive probes change the state to a worse one."""
    if end.outcome is RouteOutcome.ANSWERED:
        route = replace(route, last_probe=end, last_answer=end.ended, failures=0)
        return _enter(route, RouteState.ANSWERED, "", end.ended)
    route = replace(route, last_probe=end, failures=route.failures + 1)
    if route.failures < threshold:
        # A new route shows the cause before the threshold.
        return replace(route, message=end.message) if route.state is RouteState.PENDING else route
    refused = end.outcome is RouteOutcome.REFUSED
    return _enter(route, RouteState.NOT_ACCEPTED if refused else RouteState.FAILING, end.message, end.ended)


def _enter(route: Route, state: RouteState, message: str, now: float) -> Route:
    since = route.since if route.state is state else now
    return replace(route, state=state, message=message, since=since)


def next_probe_at(route: Route, rules: ProbeRules, phase: float) -> float | None:
    """When the next probe of the route is due; None while no probe is useful.

    Probes of healthy routes are due at the times ``(n + phase) * period``, so that the probes of all routes
    spread over the period. ``phase``: from 0 to 1, constant for a route.
    """
    if not rules.probing or route.unaccepted_since is not None:
        return None
    last = route.last_probe
    if last is None:
        return route.discovered
    if last.outcome is RouteOutcome.ANSWERED:
        period = rules.period
        return (math.floor(last.ended / period - phase) + 1 + phase) * period
    retry = rules.period if route.state is RouteState.NOT_ACCEPTED else RETRY_SECONDS
    return max(last.ended, last.started + retry)


def readiness(routes: Iterable[Route], discovery: Discovery, rules: ProbeRules) -> tuple[bool, str]:
    """Whether the frontend has a route to at least one worker, and if not, the reason as a sentence.

    If the health check is not enforced, the numbers of accepted workers decide.
    """
    routes = list(routes)
    if not routes:
        return False, "The frontend has not discovered a worker."
    if not rules.enforced:
        if discovery.total_accepted:
            return True, ""
        return False, f"The frontend accepts none of {len(routes)} discovered workers."
    if any(route.state is RouteState.ANSWERED for route in routes if not route.instance.prefill):
        return True, ""
    states = [route.state for route in routes]
    counts = ", ".join(f"{states.count(state)} {state}" for state in RouteState if state in states)
    cause = next((route.message for route in routes if route.message), "")
    return False, f"None of {len(routes)} discovered workers has answered ({counts}). {cause}".strip()
