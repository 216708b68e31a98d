"""Make the cluster agree with a plan: server-side apply of what differs, delete what is over."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from vllmendpoint_api import Reason, names
from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.desired_state import Plan, Scaling
from vllmendpoint_operator.errors import ConditionError, Conflict, NotFound, Rejected, TerminalError
from vllmendpoint_operator.kube.client import FIELD_MANAGER, Kube, Object
from vllmendpoint_operator.kube.differences import differences, differs
from vllmendpoint_operator.kube.kinds import (
    CLAIM,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    ENDPOINT,
    POD,
    ROLE_BINDING,
    SERVICE,
    Kind,
    by_name,
)
from vllmendpoint_operator.observe.snapshot import Endpoint

from .acceptance import APPLIED_PATH, accepted, accepting, records, settled, stamped
from .edits import Edit, is_owned_by, managers
from .ownership import controller, is_ours, is_owned, taken

__all__ = ["Applied", "apply_plan", "apply_scaling"]

log = logging.getLogger(__name__)

_NO_VERSION: Final = "1"
"""A resourceVersion that no object has: an apply with it makes what is not there and conflicts with what is.
Nothing has to be looked up before it is made."""
_NOT_THE_SPECS: Final = re.compile(r"exceeded quota|cannot \w+ resource|attempting to grant RBAC permissions")
"""Refusals that say nothing of the spec: a ResourceQuota, a right that the operator has not."""
_REFRESH_MANAGER: Final = f"{FIELD_MANAGER}-refresh"
"""A field manager of its own for pods, which a ReplicaSet owns."""
_SCALE_MANAGER: Final = f"{FIELD_MANAGER}-scale"
"""A field manager of its own for replicas, where all else that is applied must stay as it is."""


@dataclass(slots=True)
class Applied:
    writes: int = 0
    warnings: list[str] = field(default_factory=list)
    """What the API server warned of in what is new, and in pod templates that change; each once."""
    edits: list[Edit] = field(default_factory=list)
    """What others had changed, and was put back or accepted."""

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
    done: Applied | None = None,
) -> Applied:
    """Raises ConditionError where the API server refuses a child, or its name is taken; KubeError otherwise.

    A pod template that changes is verified by a dry run before anything is written.
    Ends early once the endpoint is no longer ``wanted``. What is missing may be missing because the
    garbage collector is at work and tells sooner than the endpoint's own watch: before anything is
    made, the API server is asked for the endpoint, but where nothing of it was ever made.
    ``observed``: children as the plan was made from; what of them is right is not looked up again.
    ``done``: takes up what is done, also where this raises.
    """
    done = Applied() if done is None else done
    await _verify(kube, cache, endpoint, plan.verify if wanted() else (), done)
    asked = endpoint.status is None and not any(
        (endpoint.namespace, child["metadata"]["name"])
        in cache.informer(by_name(child["kind"]), endpoint.namespace)
        for child in plan.children
    )
    run = _Run(kube, cache, endpoint, wanted, observed or {}, done, asked)
    for child in plan.children:
        if not await run.bring(child):
            return done
    for obj in plan.prune if wanted() else ():
        await run.delete(obj)
    for name, settings_hash in plan.refresh.items() if wanted() else ():
        done.writes += await _refresh(kube, cache, endpoint.namespace, name, settings_hash)
    return done


async def apply_scaling(
    kube: Kube,
    cache: Cache,
    endpoint: Endpoint,
    scaling: Scaling,
    wanted: Callable[[], bool] = lambda: True,
    *,
    done: Applied | None = None,
) -> Applied:
    """Replicas of the Deployments that exist, and what follows them; raises as :func:`apply_plan` does.

    By a field manager of its own: all else that the operator has applied to a Deployment stays as it is.
    """
    done = Applied() if done is None else done
    store = cache.informer(DEPLOYMENT, endpoint.namespace)
    for name, replicas in scaling.replicas.items():
        live = store.get((endpoint.namespace, name))
        if live is None or not is_ours(live, endpoint) or live["spec"].get("replicas") == replicas:
            continue
        if not wanted():
            return done
        body = {
            "apiVersion": DEPLOYMENT.api_version,
            "kind": DEPLOYMENT.kind,
            "metadata": {"namespace": endpoint.namespace, "name": name},
            "spec": {"replicas": replicas},
        }
        store.apply_local_write(await _apply(kube, DEPLOYMENT, body, live, manager=_SCALE_MANAGER))
        done.writes += 1
    run = _Run(kube, cache, endpoint, wanted, {}, done, asked=False)
    for child in scaling.children:
        if not await run.bring(child):
            return done
    for obj in scaling.prune if wanted() else ():
        await run.delete(obj)
    return done


@dataclass(slots=True)
class _Run:
    """One pass over an endpoint's children."""

    kube: Kube
    cache: Cache
    endpoint: Endpoint
    wanted: Callable[[], bool]
    observed: Mapping[tuple[str, str], Object]
    done: Applied
    asked: bool
    """The endpoint is known to exist, or nothing was ever made of it."""

    async def bring(self, child: Object) -> bool:
        """Make one child as it should be. False: the endpoint is gone, and nothing more is to be done."""
        kind, name = by_name(child["kind"]), child["metadata"]["name"]
        store = self.cache.informer(kind, self.endpoint.namespace)
        desired = stamped(child)
        seen = self.observed.get((kind.kind, name))
        if seen is not None and is_ours(seen, self.endpoint) and settled(desired, seen):
            return True
        live = store.get((self.endpoint.namespace, name))
        if not self.wanted():
            return False
        if live is not None and _left_alone(kind, desired, live, self.endpoint, self.established):
            return True
        if live is None or _made_anew(kind, desired, live):
            if not self.asked and not await _stands(self.kube, self.endpoint):
                return False
            self.asked = True
            if live is not None:
                await _rehearse(self.kube, kind, child)
                await self.delete(live | {"kind": kind.kind})
            warned = partial(self.done.warned, child)
            made = await _make(self.kube, kind, desired, warned, self.established)
            edit = None
        else:
            edit = await self._edit(kind, desired, live)
            # Scaling one that was warned of is no news.
            made = await _apply(self.kube, kind, accepting(desired, accepted(live)), live)
        self.done.writes += 1
        store.apply_local_write(await self._accept(kind, desired, made, edit))
        return True

    @property
    def established(self) -> bool:
        # What comes before these may have been made although others' children stand in the way of the rest.
        return any(kind in (SERVICE.kind, DEPLOYMENT.kind) for kind, _ in self.observed)

    async def delete(self, obj: Object) -> None:
        await _delete(self.kube, self.cache, by_name(obj["kind"]), obj)
        self.done.writes += 1

    async def _edit(self, kind: Kind, desired: Object, live: Object) -> Edit | None:
        """What of ``live`` others have changed since it was applied; None where the spec has changed."""
        paths = tuple(path for path, _ in differences(desired, live))
        if APPLIED_PATH in paths:
            return None
        try:
            found = await self.kube.get(kind, self.endpoint.namespace, desired["metadata"]["name"])
        except NotFound:
            return None
        # The replicas of a spec that was refused are ours: it has asked for those of before again.
        paths = tuple(path for path in paths if not is_owned_by(found, path, _SCALE_MANAGER))
        return _edit_of(desired, paths, managers(found, paths, FIELD_MANAGER)) if paths else None

    async def _accept(self, kind: Kind, desired: Object, made: Object, edit: Edit | None) -> Object:
        """What the API server has stored otherwise than it was applied is recorded, and not fought.

        Where it stores another value each time, the record is of the fields alone.
        """
        for record in range(2):
            found = list(differences(desired, made))
            if accepted(made) in records(found):
                break
            if found:
                edit = replace(_edit_of(desired, tuple(path for path, _ in found)), accepted=True)
            made = await _apply(self.kube, kind, accepting(desired, records(found)[record]), made)
            self.done.writes += 1
        if edit is not None:
            self.done.edits.append(edit)
        return made


def _edit_of(desired: Object, paths: tuple[tuple[str, ...], ...], by: tuple[str, ...] = ()) -> Edit:
    metadata = desired["metadata"]
    component = str((metadata.get("labels") or {}).get(names.LABEL_COMPONENT, ""))
    return Edit(desired["kind"], metadata["name"], component, paths, by)


async def _verify(
    kube: Kube, cache: Cache, endpoint: Endpoint, children: Iterable[Object], done: Applied
) -> None:
    """Raises ConditionError with all that is refused, so that one refusal does not hide the next."""
    refused: list[ConditionError] = []
    for child in children:
        kind = by_name(child["kind"])
        live = cache.informer(kind, endpoint.namespace).get((endpoint.namespace, child["metadata"]["name"]))
        if live is None or is_ours(live, endpoint):
            try:
                await _apply(kube, kind, child, live, partial(done.warned, child), dry_run=True)
            except ConditionError as error:
                refused.append(error)
    if refused:
        # One that refuses the spec goes before one that is tried again.
        refused.sort(key=lambda error: error.reason is Reason.PENDING)
        raise type(refused[0])(refused[0].reason, "; ".join(error.message for error in refused))


async def _apply(
    kube: Kube,
    kind: Kind,
    desired: Object,
    live: Object | None,
    warned: Callable[[str], None] | None = None,
    *,
    dry_run: bool = False,
    manager: str = FIELD_MANAGER,
) -> Object:
    body = desired
    if live is not None:
        # The very object that was looked at: one made anew under this name in between is refused.
        body = {**desired, "metadata": {**desired["metadata"], "uid": live["metadata"]["uid"]}}
    try:
        applied = await kube.apply(kind, body, manager=manager, dry_run=dry_run, on_warning=warned)
    except Rejected as error:
        name = f"{desired['kind']} {desired['metadata']['name']}"
        if error.status == 403 and _NOT_THE_SPECS.search(error.message):
            raise ConditionError(
                Reason.PENDING,
                f"the API server refuses the {name}: {error.message}{_room(kind, error)}; it is tried again",
            ) from error
        if kind is CLAIM:
            # The first line: a difference of the two in Go's own notation follows.
            raise TerminalError(
                Reason.INVALID_SPEC,
                f"cache.volumeClaimTemplate: the API server refuses the {name}: "
                f"{error.message.partition(chr(10))[0]}{_anew(live)}",
            ) from error
        reason = (
            Reason.INVALID_POD_TEMPLATE if kind in (DEPLOYMENT, CONTROLLER_REVISION) else Reason.INVALID_SPEC
        )
        raise TerminalError(reason, f"the API server refuses the {name}: {error.message}") from error
    return applied


def _room(kind: Kind, error: Rejected) -> str:
    """What makes room in a ResourceQuota."""
    if "exceeded quota" not in error.message:
        return ""
    less = ", or lower cache.volumeClaimTemplate.size" if kind is CLAIM else ""
    return f". Raise the ResourceQuota{less}"


def _anew(claim: Object | None) -> str:
    if claim is None:
        return ""
    name, size = claim["metadata"]["name"], claim["spec"]["resources"]["requests"]["storage"]
    return (
        f"; it has {size}: set size to that again, or, if nothing of worth is in it, "
        f"`kubectl delete pvc {name}` has it made anew"
    )


async def _rehearse(kube: Kube, kind: Kind, child: Object) -> None:
    """Raises ConditionError where it may not be made: a dry run under a free name, before the old one."""
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
    cache.informer(kind, namespace).apply_local_delete((namespace, name))


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
    if not is_owned(found, metadata["ownerReferences"][0]["uid"]):
        raise taken(kind, desired, found, established)
    return await _apply(kube, kind, desired, found, warned)


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
    live = cache.informer(POD, namespace).get((namespace, name))
    if live is None:
        return 0
    body["metadata"] |= {"uid": live["metadata"]["uid"]}  # type: ignore[operator]
    try:
        cache.informer(POD, namespace).apply_local_write(
            await kube.apply(POD, body, manager=_REFRESH_MANAGER)
        )
    except (NotFound, Conflict):
        log.debug("pod gone before its refresh: %s", name)
    return 1


def _left_alone(kind: Kind, desired: Object, live: Object, endpoint: Endpoint, established: bool) -> bool:
    """Nothing is to be done about it now. Raises ConditionError where it is not ours."""
    if is_ours(live, endpoint):
        return settled(desired, live)
    if kind is CLAIM and controller(live) == endpoint.uid:
        # Deleted by somebody, and held by the pods that mount it: the rest does not wait for their end.
        return True
    raise taken(kind, desired, live, established)


def _made_anew(kind: Kind, desired: Object, live: Object) -> bool:
    """The API server lets nobody change a ``roleRef``: another role (another release's of the chart)
    takes another binding, made at once, so that the workers are without rights for a moment only."""
    return kind is ROLE_BINDING and differs(desired["roleRef"], live["roleRef"])
