"""Executes the actions that :mod:`.diff` returns. The only module that writes children."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from vllmendpoint_api import Reason, names
from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.errors import ConditionError, Conflict, NotFound, Rejected
from vllmendpoint_operator.kube.client import FIELD_MANAGER, Kube
from vllmendpoint_operator.kube.differences import differences
from vllmendpoint_operator.kube.kinds import DEPLOYMENT, ENDPOINT, POD, by_name
from vllmendpoint_operator.observe.snapshot import Endpoint, Object, ObjectKey, Observed, object_key

from .acceptance import accepted_record, difference_records, with_accepted_record
from .diff import Abort, Action, ConfirmEndpoint, Create, Delete, DryRun, RefreshPod, Scale, Update
from .edits import Edit, Path, field_managers, is_managed_by
from .ownership import name_conflict, owned_by_endpoint
from .rejections import rejection

__all__ = ["Executor", "Result"]

log = logging.getLogger(__name__)

_MUST_NOT_EXIST: Final = "1"
"""A resourceVersion that no object has. An apply with it creates the object, or fails with a conflict if an
object of that name exists, so that no GET is needed before."""
_REFRESH_MANAGER: Final = f"{FIELD_MANAGER}-refresh"
"""Field manager for pods: a ReplicaSet owns them."""
_SCALE_MANAGER: Final = f"{FIELD_MANAGER}-scale"
"""Field manager for replicas alone. An apply by FIELD_MANAGER would remove all other fields."""


@dataclass(slots=True)
class Result:
    """What the executed actions did."""

    writes: int = 0
    """Objects written or deleted; dry runs do not count."""
    warnings: list[str] = field(default_factory=list)
    """Warnings of the API server about new objects and changed pod templates; no duplicates."""
    edits: list[Edit] = field(default_factory=list)
    """Changes by other clients, reverted or accepted."""
    written: dict[ObjectKey, Object] = field(default_factory=dict)
    """(kind, name) -> child as the API server returned it."""
    deleted: set[ObjectKey] = field(default_factory=set)
    """(kind, name) of deleted children."""

    def update(self, observed: Observed) -> Observed:
        """``observed`` with the children as they are after the writes."""
        if not self.written and not self.deleted:
            return observed
        kept = {key: obj for key, obj in observed.children.items() if key not in self.deleted}
        return replace(observed, children={**kept, **self.written})


class Executor:
    """Executes actions for one endpoint in one reconcile. ``result`` is valid also after an exception.

    ``is_current`` is called before each action; execution ends when it returns False.
    """

    def __init__(
        self, kube: Kube, cache: Cache, endpoint: Endpoint, is_current: Callable[[], bool] = lambda: True
    ) -> None:
        self.result = Result()
        self._kube = kube
        self._cache = cache
        self._endpoint = endpoint
        self._is_current = is_current

    async def execute(self, actions: Iterable[Action]) -> None:
        """Raises ConditionError if the API server rejects an object or its name is taken, else KubeError.

        Rejections by consecutive dry runs are raised together, before the next write.
        """
        rejections: list[ConditionError] = []
        for action in actions:
            if rejections and not isinstance(action, DryRun):
                break
            if not self._is_current():
                return
            if isinstance(action, DryRun):
                try:
                    await self._dry_run(action.desired, action.live)
                except ConditionError as error:
                    rejections.append(error)
            elif isinstance(action, ConfirmEndpoint):
                if not await self._endpoint_exists():
                    return
            else:
                await self._write(action)
        if rejections:
            raise _joined(rejections)

    async def _write(self, action: Create | Update | Scale | Delete | RefreshPod | Abort) -> None:
        match action:
            case Create(desired, has_own_children):
                await self._create(desired, has_own_children)
            case Update(desired, live, reverts):
                await self._update(desired, live, reverts)
            case Scale(live, replicas):
                await self._scale(live, replicas)
            case Delete(live):
                await self._delete(live)
            case RefreshPod(live, settings_hash):
                await self._refresh(live, settings_hash)
            case Abort(error):
                raise error

    async def _dry_run(self, desired: Object, live: Object | None) -> None:
        await self._apply(desired, live, dry_run=True, on_warning=partial(self._warn, desired))

    async def _endpoint_exists(self) -> bool:
        found, _ = await self._kube.list(
            ENDPOINT, self._endpoint.namespace, name=self._endpoint.name, metadata_only=True
        )
        return any(
            item["metadata"]["uid"] == self._endpoint.uid and "deletionTimestamp" not in item["metadata"]
            for item in found
        )

    async def _create(self, desired: Object, has_own_children: bool) -> None:
        warn = partial(self._warn, desired)
        metadata = desired["metadata"]
        new = {**desired, "metadata": {**metadata, "resourceVersion": _MUST_NOT_EXIST}}
        try:
            created = await self._apply(new, None, on_warning=warn)
        except Conflict:
            # The cache holds only objects with the operator's label. This one may have lost it.
            live = await self._kube.get(by_name(desired["kind"]), metadata["namespace"], metadata["name"])
            if not owned_by_endpoint(live, self._endpoint):
                raise name_conflict(desired, live, has_own_children) from None
            created = await self._apply(desired, live, on_warning=warn)
        self._record(created)
        self._record_edit(await self._accept_differences(desired, created))

    async def _update(self, desired: Object, live: Object, reverts: Sequence[Path]) -> None:
        edit = await self._find_edit(desired, reverts) if reverts else None
        # No warnings: the API server repeats those of the pod template whenever the replicas change.
        updated = await self._apply(with_accepted_record(desired, accepted_record(live)), live)
        self._record(updated)
        self._record_edit(await self._accept_differences(desired, updated) or edit)

    async def _find_edit(self, desired: Object, reverts: Sequence[Path]) -> Edit | None:
        """Who changed ``reverts``; None if the operator did, or if the object is gone."""
        metadata = desired["metadata"]
        try:
            live = await self._kube.get(by_name(desired["kind"]), metadata["namespace"], metadata["name"])
        except NotFound:
            return None
        # The replicas of a rejected spec, applied by Scale, differ from those of the spec before it.
        paths = tuple(path for path in reverts if not is_managed_by(live, path, _SCALE_MANAGER))
        return Edit.of(desired, paths, field_managers(live, paths, FIELD_MANAGER)) if paths else None

    async def _accept_differences(self, desired: Object, stored: Object) -> Edit | None:
        """Record what the API server stored otherwise than it was applied; None if it stored nothing new.

        An admission policy changes the object again after every apply. The first record is of the values.
        If the policy stores other values each time, the second record is of the fields alone.
        """
        edit = None
        for exactness in range(2):
            found = list(differences(desired, stored))
            matching = difference_records(found)
            if accepted_record(stored) in matching:
                break
            if found:
                edit = Edit.of(desired, tuple(path for path, _ in found), accepted=True)
            stored = await self._apply(with_accepted_record(desired, matching[exactness]), stored)
            self._record(stored)
        return edit

    async def _scale(self, live: Object, replicas: int) -> None:
        metadata = live["metadata"]
        body = {
            "apiVersion": DEPLOYMENT.api_version,
            "kind": DEPLOYMENT.kind,
            "metadata": {"namespace": metadata["namespace"], "name": metadata["name"]},
            "spec": {"replicas": replicas},
        }
        self._record(await self._apply(body, live, manager=_SCALE_MANAGER))

    async def _delete(self, live: Object) -> None:
        kind, metadata = by_name(live["kind"]), live["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        try:
            await self._kube.delete(kind, namespace, name, uid=metadata["uid"])
        except (NotFound, Conflict):
            log.debug("the object is already deleted", extra={"kind": kind.kind, "object": name})
        self._cache.informer(kind, namespace).apply_local_delete((namespace, name))
        self.result.writes += 1
        self.result.written.pop(object_key(live), None)
        self.result.deleted.add(object_key(live))

    async def _refresh(self, pod: Object, settings_hash: str) -> None:
        metadata = pod["metadata"]
        body = {
            "apiVersion": POD.api_version,
            "kind": POD.kind,
            "metadata": {
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
                "annotations": {names.ANNOTATION_SETTINGS_HASH: settings_hash},
            },
        }
        try:
            annotated = await self._kube.apply(POD, body, manager=_REFRESH_MANAGER)
        except (NotFound, Conflict):
            log.debug("the pod was deleted before its refresh", extra={"pod": metadata["name"]})
        else:
            self._cache.informer(POD, metadata["namespace"]).apply_local_write(annotated)
        self.result.writes += 1

    async def _apply(
        self,
        desired: Object,
        live: Object | None,
        *,
        dry_run: bool = False,
        manager: str = FIELD_MANAGER,
        on_warning: Callable[[str], None] | None = None,
    ) -> Object:
        kind, body = by_name(desired["kind"]), desired
        if live is not None:
            # The precondition: another object that has the name by now stays as it is.
            body = {**desired, "metadata": {**desired["metadata"], "uid": live["metadata"]["uid"]}}
        try:
            return await self._kube.apply(kind, body, manager=manager, dry_run=dry_run, on_warning=on_warning)
        except Rejected as error:
            raise rejection(kind, desired, live, error) from error

    def _record(self, obj: Object) -> None:
        """Add to the result and to the cache, which the next reconcile may read before the watch."""
        kind, metadata = by_name(obj["kind"]), obj["metadata"]
        self._cache.informer(kind, metadata["namespace"]).apply_local_write(obj)
        self.result.writes += 1
        self.result.written[object_key(obj)] = obj

    def _record_edit(self, edit: Edit | None) -> None:
        if edit is not None:
            self.result.edits.append(edit)

    def _warn(self, obj: Object, text: str) -> None:
        warning = f"{obj['kind']} {obj['metadata']['name']}: {text}"
        if warning not in self.result.warnings:
            self.result.warnings.append(warning)


def _joined(rejections: Iterable[ConditionError]) -> ConditionError:
    """One error with all messages. The first terminal rejection, if any, determines the reason."""
    ordered = sorted(rejections, key=lambda error: error.reason is Reason.PENDING)
    return type(ordered[0])(ordered[0].reason, " ".join(error.message for error in ordered))
