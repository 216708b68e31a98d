"""Make the cluster agree with a plan: server-side apply of what differs, delete what is over."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Final

import msgspec

from vllmendpoint_api import Reason, names

from .cache import Cache
from .differences import differs
from .errors import Conflict, NotFound, PlanError, Rejected
from .kinds import (
    CLAIM,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    ENDPOINT,
    MANAGED,
    POD,
    ROLE_BINDING,
    SERVICE,
    Kind,
    by_name,
)
from .kube import Kube, Object
from .model import Endpoint
from .plan import Plan

__all__ = ["Applied", "apply_plan"]

log = logging.getLogger(__name__)

_APPLIED: Final = f"{names.GROUP}/applied-hash"
"""Annotation on every child: digest of what was last applied, to notice a field taken out."""
_SORTED: Final = msgspec.json.Encoder(order="deterministic")
"""Every look at an endpoint encodes all its children: the standard library's takes eight times as long."""
_NO_VERSION: Final = "1"
"""A resourceVersion that no object has: an apply with it makes what is not there and conflicts with what is.
Nothing has to be looked up before it is made."""
_NOT_THE_SPECS: Final = re.compile(r"exceeded quota|cannot \w+ resource|attempting to grant RBAC permissions")
"""Refusals that say nothing of the spec: a ResourceQuota, a right that the operator has not."""
_REFRESH_MANAGER: Final = "vllmendpoint-operator-refresh"
"""A field manager of its own for pods, which a ReplicaSet owns."""
_LEFT: Final = ",".join(kind.plural for kind in MANAGED)
"""For kubectl: the kinds of what an endpoint leaves that is deleted without its children."""


@dataclass(slots=True)
class Applied:
    writes: int = 0
    warnings: list[str] = field(default_factory=list)
    """What the API server warned of in what is new, and in pod templates that change; each once."""

    def warned(self, child: Object, text: str) -> None:
        said = f"{child['kind']} {child['metadata']['name']}: {text}"
        if said not in self.warnings:
            self.warnings.append(said)


async def apply_plan(
    kube: Kube,
    cache: Cache,
    endpoint: Endpoint,
    plan: Plan,
    wanted: Callable[[], bool] = lambda: True,
    *,
    observed: Mapping[tuple[str, str], Object] | None = None,
) -> Applied:
    """Raises PlanError where the API server refuses a child, or its name is taken; KubeError otherwise.

    A pod template that changes is verified by a dry run before anything is written.
    Ends early once the endpoint is no longer ``wanted``. What is missing may be missing because the
    garbage collector is at work and tells sooner than the endpoint's own watch: before anything is
    made, the API server is asked for the endpoint, but where nothing of it was ever made.
    ``observed``: children as the plan was made from; what of them is right is not looked up again.
    """
    done = Applied()
    await _verify(kube, cache, endpoint, plan.verify if wanted() else (), done)
    asked = endpoint.status is None and not any(
        (endpoint.namespace, child["metadata"]["name"])
        in cache.store(by_name(child["kind"]), endpoint.namespace)
        for child in plan.children
    )
    # What comes before these may have been made although others' children stand in the way of the rest.
    established = any(kind in (SERVICE.kind, DEPLOYMENT.kind) for kind, _ in observed or {})
    for child in plan.children:
        kind = by_name(child["kind"])
        store = cache.store(kind, endpoint.namespace)
        desired = _stamped(child)
        seen = (observed or {}).get((kind.kind, child["metadata"]["name"]))
        if seen is not None and _is_ours(seen, endpoint) and not differs(desired, seen):
            continue
        live = store.get((endpoint.namespace, child["metadata"]["name"]))
        if not wanted():
            return done
        if live is not None and _left_alone(kind, desired, live, endpoint, established):
            continue
        if live is None or _made_anew(kind, desired, live):
            if not asked and not await _stands(kube, endpoint):
                return done
            asked = True
            if live is not None:
                await _rehearse(kube, kind, child)
                await _delete(kube, cache, kind, live)
                done.writes += 1
            store.absorb(await _make(kube, kind, desired, partial(done.warned, child), established))
        else:
            # Scaling one that was warned of is no news.
            store.absorb(await _apply(kube, kind, desired, live))
        done.writes += 1
    for obj in plan.prune:
        await _delete(kube, cache, by_name(obj["kind"]), obj)
        done.writes += 1
    for name, settings_hash in plan.refresh.items():
        done.writes += await _refresh(kube, cache, endpoint.namespace, name, settings_hash)
    return done


async def _verify(
    kube: Kube, cache: Cache, endpoint: Endpoint, children: Iterable[Object], done: Applied
) -> None:
    for child in children:
        kind = by_name(child["kind"])
        live = cache.store(kind, endpoint.namespace).get((endpoint.namespace, child["metadata"]["name"]))
        if live is None or _is_ours(live, endpoint):
            await _apply(kube, kind, child, live, partial(done.warned, child), dry_run=True)


async def _apply(
    kube: Kube,
    kind: Kind,
    desired: Object,
    live: Object | None,
    warned: Callable[[str], None] | None = None,
    *,
    dry_run: bool = False,
) -> Object:
    body = desired
    if live is not None:
        # The very object that was looked at: one made anew under this name in between is refused.
        body = {**desired, "metadata": {**desired["metadata"], "uid": live["metadata"]["uid"]}}
    try:
        applied = await kube.apply(kind, body, dry_run=dry_run, warned=warned)
    except Rejected as error:
        name = f"{desired['kind']} {desired['metadata']['name']}"
        if error.status == 403 and _NOT_THE_SPECS.search(error.message):
            raise PlanError(
                Reason.PENDING, f"the API server refuses the {name}: {error.message}; it is tried again"
            ) from error
        if kind is CLAIM:
            # The first line: a difference of the two in Go's own notation follows.
            raise PlanError(
                Reason.INVALID_SPEC,
                f"cache.volumeClaimTemplate: the API server refuses the {name}: "
                f"{error.message.partition(chr(10))[0]}{_anew(live)}",
            ) from error
        reason = (
            Reason.INVALID_POD_TEMPLATE if kind in (DEPLOYMENT, CONTROLLER_REVISION) else Reason.INVALID_SPEC
        )
        raise PlanError(reason, f"the API server refuses the {name}: {error.message}") from error
    return applied


def _anew(claim: Object | None) -> str:
    if claim is None:
        return ""
    name, size = claim["metadata"]["name"], claim["spec"]["resources"]["requests"]["storage"]
    return (
        f"; it has {size}: set size to that again, or, if nothing of worth is in it, "
        f"`kubectl delete pvc {name}` has it made anew"
    )


async def _rehearse(kube: Kube, kind: Kind, child: Object) -> None:
    """Raises PlanError where it may not be made: asked under a free name, before the old one is deleted."""
    metadata = child["metadata"]
    await _apply(
        kube,
        kind,
        {**child, "metadata": {**metadata, "name": f"{metadata['name']}-next"}},
        None,
        dry_run=True,
    )


async def _delete(kube: Kube, cache: Cache, kind: Kind, obj: Object) -> None:
    metadata = obj["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    try:
        await kube.delete(kind, namespace, name, uid=metadata["uid"])
    except (NotFound, Conflict):
        log.debug("already gone: %s %s", kind.kind, name)
    cache.store(kind, namespace).drop((namespace, name))


async def _stands(kube: Kube, endpoint: Endpoint) -> bool:
    found, _ = await kube.list(ENDPOINT, endpoint.namespace, name=endpoint.name, metadata_only=True)
    return any(
        item["metadata"]["uid"] == endpoint.uid and "deletionTimestamp" not in item["metadata"]
        for item in found
    )


async def _make(
    kube: Kube, kind: Kind, desired: Object, warned: Callable[[str], None], established: bool
) -> Object:
    """Our cache holds labelled objects only: another's may stand under the name, and is left alone."""
    metadata = desired["metadata"]
    new = {**desired, "metadata": {**metadata, "resourceVersion": _NO_VERSION}}
    try:
        return await _apply(kube, kind, new, None, warned)
    except Conflict:
        found = await kube.get(kind, metadata["namespace"], metadata["name"])
    if not _is_owned(found, metadata["ownerReferences"][0]["uid"]):
        raise _taken(kind, desired, found, established)
    return await _apply(kube, kind, desired, found, warned)


def _taken(kind: Kind, child: Object, live: Object, established: bool) -> PlanError:
    """``established``: the endpoint has children of its own, which must not be deleted with what stands in
    the way."""
    name = child["metadata"]["name"]
    if "deletionTimestamp" in live["metadata"] or _was_ours(child, live):
        return PlanError(
            Reason.PENDING, f"the {kind.kind} {name!r} is being deleted; this goes on when it is gone."
        )
    if _was_orphaned(child, live) and not established:
        return PlanError(
            Reason.NAME_TAKEN,
            f"metadata.name: the {kind.kind} {name!r} was left by an earlier endpoint of this name, deleted "
            f"with --cascade=orphan; give this one another name, or delete all that was left: "
            f"kubectl delete -n {child['metadata']['namespace']} {_LEFT} -l {_mine(child)}",
        )
    return PlanError(
        Reason.NAME_TAKEN,
        f"metadata.name: the {kind.kind} {name!r} exists and is not this endpoint's; "
        f"delete it, or give the endpoint another name",
    )


async def _refresh(kube: Kube, cache: Cache, namespace: str, name: str, settings_hash: str) -> int:
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "annotations": {names.ANNOTATION_SETTINGS_HASH: settings_hash},
        },
    }
    live = cache.store(POD, namespace).get((namespace, name))
    if live is None:
        return 0
    body["metadata"] |= {"uid": live["metadata"]["uid"]}  # type: ignore[operator]
    try:
        cache.store(POD, namespace).absorb(await kube.apply(POD, body, manager=_REFRESH_MANAGER))
    except (NotFound, Conflict):
        log.debug("pod gone before its refresh: %s", name)
    return 1


def _stamped(child: Object) -> Object:
    annotations = {
        **child["metadata"].get("annotations", {}),
        _APPLIED: sha256(_SORTED.encode(child)).hexdigest()[:16],
    }
    return {**child, "metadata": {**child["metadata"], "annotations": annotations}}


def _left_alone(kind: Kind, desired: Object, live: Object, endpoint: Endpoint, established: bool) -> bool:
    """Nothing is to be done about it now. Raises PlanError where it is not ours."""
    if _is_ours(live, endpoint):
        return not differs(desired, live)
    if kind is CLAIM and _controller(live) == endpoint.uid:
        # Deleted by somebody, and held by the pods that mount it: the rest does not wait for their end.
        return True
    raise _taken(kind, desired, live, established)


def _made_anew(kind: Kind, desired: Object, live: Object) -> bool:
    """The API server lets nobody change a ``roleRef``: another role (another release's of the chart)
    takes another binding, made at once, so that the workers are without rights for a moment only."""
    return kind is ROLE_BINDING and differs(desired["roleRef"], live["roleRef"])


def _is_ours(live: Object, endpoint: Endpoint) -> bool:
    return _is_owned(live, endpoint.uid)


def _is_owned(live: Object, uid: str) -> bool:
    return _controller(live) == uid and "deletionTimestamp" not in live["metadata"]


def _was_ours(child: Object, live: Object) -> bool:
    """An endpoint that had this name before owns it: the garbage collector is on its way."""
    (wanted,) = child["metadata"]["ownerReferences"]
    return any(
        owner["kind"] == wanted["kind"] and owner["name"] == wanted["name"] and owner["uid"] != wanted["uid"]
        for owner in live["metadata"].get("ownerReferences") or []
    )


def _was_orphaned(child: Object, live: Object) -> bool:
    """It was made by this operator for this name, and nobody owns it."""
    return not live["metadata"].get("ownerReferences") and _mine(child) == _mine(live)


def _mine(obj: Object) -> str:
    labels = obj["metadata"].get("labels") or {}
    return ",".join(f"{key}={labels.get(key)}" for key in (names.LABEL_INSTANCE, names.LABEL_MANAGED_BY))


def _controller(obj: Object) -> str | None:
    for owner in obj["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            return str(owner["uid"])
    return None
