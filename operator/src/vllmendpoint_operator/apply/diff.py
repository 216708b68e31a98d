"""Compares the desired children of an endpoint with the live objects; returns the actions to take. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from vllmendpoint_operator.desired_state import Plan, Scaling
from vllmendpoint_operator.errors import ConditionError
from vllmendpoint_operator.kube.differences import differences, differs
from vllmendpoint_operator.kube.kinds import CLAIM, DEPLOYMENT, ROLE_BINDING, SERVICE
from vllmendpoint_operator.observe.snapshot import Endpoint, Object, ObjectKey, Observed, object_key

from .acceptance import APPLIED_HASH_PATH, is_in_sync, with_applied_hash
from .edits import Path
from .ownership import is_controlled_by, name_conflict, owned_by_endpoint

__all__ = [
    "Abort",
    "Action",
    "ConfirmEndpoint",
    "Create",
    "Delete",
    "DryRun",
    "RefreshPod",
    "Scale",
    "Update",
    "diff",
    "diff_scaling",
]


@dataclass(frozen=True, slots=True)
class DryRun:
    """Let the API server validate an object without writing it."""

    desired: Object
    live: Object | None = None


@dataclass(frozen=True, slots=True)
class ConfirmEndpoint:
    """Stop unless the API server still has the endpoint.

    The garbage collector may delete the children before the watch reports the endpoint's deletion. A child
    that is missing for this reason must not be created again.
    """


@dataclass(frozen=True, slots=True)
class Create:
    """Create an object. If its name is taken: update the object if it is the endpoint's, else fail."""

    desired: Object
    has_own_children: bool
    """Whether the endpoint has a Service or a Deployment; see :func:`.ownership.name_conflict`."""


@dataclass(frozen=True, slots=True)
class Update:
    """Apply an object over a live one."""

    desired: Object
    live: Object
    reverts: tuple[Path, ...] = ()
    """Fields that another client changed; empty if the desired state itself changed."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Set the replicas of a Deployment and leave all its other fields as they are."""

    live: Object
    replicas: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a live object, unless another object has its name by now."""

    live: Object


@dataclass(frozen=True, slots=True)
class RefreshPod:
    """Annotate a pod, so that the kubelet updates its mounted ConfigMaps now and not within a minute."""

    live: Object
    settings_hash: str


@dataclass(frozen=True, slots=True)
class Abort:
    """Fail: the remaining children cannot be applied."""

    error: ConditionError


Action = DryRun | ConfirmEndpoint | Create | Update | Scale | Delete | RefreshPod | Abort


def diff(
    endpoint: Endpoint, plan: Plan, observed: Observed, others: Mapping[ObjectKey, Object]
) -> list[Action]:
    """The actions that make the children match ``plan``, in the order in which to execute them.

    ``others``: live objects under the names of children that ``observed`` does not have.
    """
    live = {**others, **observed.children}
    # Until it has a status, and while nothing exists under its names, nothing can have been deleted either.
    is_new = endpoint.status is None and not any(object_key(child) in live for child in plan.children)
    actions: list[Action] = [*_dry_runs(endpoint, plan.verify, live)]
    actions += _children(endpoint, plan.children, live, _has_own_children(observed), confirmed=is_new)
    actions += [Delete(obj) for obj in plan.prune]
    actions += [
        RefreshPod(pod.obj, plan.refresh[pod.name])
        for pod in (*observed.all_workers, *observed.frontends)
        if pod.name in plan.refresh
    ]
    return actions


def diff_scaling(
    endpoint: Endpoint, scaling: Scaling, observed: Observed, others: Mapping[ObjectKey, Object]
) -> list[Action]:
    """The actions that make the replica counts, and the children that depend on them, match ``scaling``."""
    live = {**others, **observed.children}
    actions: list[Action] = [
        Scale(deployment, replicas)
        for name, replicas in scaling.replicas.items()
        if (deployment := live.get((DEPLOYMENT.kind, name))) is not None
        and owned_by_endpoint(deployment, endpoint)
        and deployment["spec"].get("replicas") != replicas
    ]
    actions += _children(endpoint, scaling.children, live, _has_own_children(observed), confirmed=False)
    actions += [Delete(obj) for obj in scaling.prune]
    return actions


def _has_own_children(observed: Observed) -> bool:
    # The children that are applied before these may exist although the name of a later child is taken.
    return any(kind in (SERVICE.kind, DEPLOYMENT.kind) for kind, _ in observed.children)


def _dry_runs(
    endpoint: Endpoint, verify: Iterable[Object], live: Mapping[ObjectKey, Object]
) -> Iterator[DryRun]:
    for desired in verify:
        current = live.get(object_key(desired))
        if current is None or owned_by_endpoint(current, endpoint):
            yield DryRun(desired, current)


def _children(
    endpoint: Endpoint,
    children: Iterable[Object],
    live: Mapping[ObjectKey, Object],
    has_own_children: bool,
    *,
    confirmed: bool,
) -> Iterator[Action]:
    """``confirmed``: it is certain that the endpoint exists."""
    for child in children:
        desired, current = with_applied_hash(child), live.get(object_key(child))
        if current is not None and not owned_by_endpoint(current, endpoint):
            if child["kind"] == CLAIM.kind and is_controlled_by(current, endpoint.uid):
                # It is being deleted, which ends with the last pod that mounts it. Do not wait for that.
                continue
            yield Abort(name_conflict(desired, current, has_own_children))
            return
        if current is not None and is_in_sync(desired, current):
            continue
        if current is not None and not _requires_recreate(desired, current):
            yield Update(desired, current, _reverts(desired, current))
            continue
        if not confirmed:
            yield ConfirmEndpoint()
            confirmed = True
        if current is not None:
            # Under a free name: this name is not free before the deletion, which a rejection must prevent.
            yield DryRun(_renamed(child, f"{child['metadata']['name']}-next"))
            yield Delete(current)
        yield Create(desired, has_own_children)


def _reverts(desired: Object, current: Object) -> tuple[Path, ...]:
    paths = tuple(path for path, _ in differences(desired, current))
    return () if APPLIED_HASH_PATH in paths else paths


def _requires_recreate(desired: Object, current: Object) -> bool:
    """``roleRef`` is immutable. It changes with the name of the chart's release."""
    return desired["kind"] == ROLE_BINDING.kind and differs(desired["roleRef"], current["roleRef"])


def _renamed(obj: Object, name: str) -> Object:
    return {**obj, "metadata": {**obj["metadata"], "name": name}}
