"""Observes, diffs and executes once, without a reconciler."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from vllmendpoint_operator.apply.diff import Action, diff, diff_scaling
from vllmendpoint_operator.apply.execute import Executor, Result
from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.desired_state import Plan, Scaling
from vllmendpoint_operator.kube.kinds import MANAGED
from vllmendpoint_operator.observe.observer import find_others
from vllmendpoint_operator.observe.snapshot import Endpoint, Observed, controller_of


def observe_children(cache: Cache, endpoint: Endpoint) -> Observed:
    """Return a snapshot with the endpoint's children in the cache."""
    children = {
        (kind.kind, obj["metadata"]["name"]): {"kind": kind.kind, **obj}
        for kind in MANAGED
        for obj in cache.informer(kind, endpoint.namespace).by_owner(endpoint.key)
        if (controller_of(obj) or {}).get("uid") == endpoint.uid
    }
    return Observed(now=datetime.now(UTC), children=children)


async def apply_plan(
    kube: Any,
    cache: Cache,
    endpoint: Endpoint,
    plan: Plan,
    is_current: Callable[[], bool] = lambda: True,
    *,
    observed: Observed | None = None,
) -> Result:
    observed = observe_children(cache, endpoint) if observed is None else observed
    others = find_others(cache, endpoint, observed, plan.children)
    return await _execute(kube, cache, endpoint, diff(endpoint, plan, observed, others), is_current)


async def apply_scaling(
    kube: Any, cache: Cache, endpoint: Endpoint, scaling: Scaling, observed: Observed
) -> Result:
    others = find_others(cache, endpoint, observed, scaling.children)
    return await _execute(kube, cache, endpoint, diff_scaling(endpoint, scaling, observed, others))


async def _execute(
    kube: Any,
    cache: Cache,
    endpoint: Endpoint,
    actions: Iterable[Action],
    is_current: Callable[[], bool] = lambda: True,
) -> Result:
    executor = Executor(kube, cache, endpoint, is_current)
    await executor.execute(actions)
    return executor.result
