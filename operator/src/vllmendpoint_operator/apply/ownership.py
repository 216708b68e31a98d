"""Whether an object under a child's name is the endpoint's, and what to say where it is not. Pure."""

from typing import Final

from vllmendpoint_api import Reason, names
from vllmendpoint_operator.errors import ConditionError, TerminalError
from vllmendpoint_operator.kube.kinds import MANAGED, Kind
from vllmendpoint_operator.observe.snapshot import Endpoint, Object

__all__ = ["controller", "is_ours", "is_owned", "taken"]

_LEFT: Final = ",".join(kind.plural for kind in MANAGED)
"""For kubectl: the kinds of what an endpoint leaves that is deleted without its children."""


def is_ours(live: Object, endpoint: Endpoint) -> bool:
    return is_owned(live, endpoint.uid)


def is_owned(live: Object, uid: str) -> bool:
    return controller(live) == uid and "deletionTimestamp" not in live["metadata"]


def controller(obj: Object) -> str | None:
    """UID of the object's controller."""
    owner = _controller(obj)
    return None if owner is None else str(owner["uid"])


def taken(kind: Kind, child: Object, live: Object, established: bool) -> ConditionError:
    """``established``: the endpoint has children of its own, which must not be deleted with what stands in
    the way."""
    name = child["metadata"]["name"]
    if "deletionTimestamp" in live["metadata"] or _was_ours(child, live):
        return ConditionError(
            Reason.PENDING, f"the {kind.kind} {name!r} is being deleted; this goes on when it is gone."
        )
    what = f"metadata.name: the {kind.kind} {name!r}"
    if _was_orphaned(child, live) and not established:
        return TerminalError(
            Reason.NAME_TAKEN,
            f"{what} was left by an earlier endpoint of this name, deleted "
            f"with --cascade=orphan; give this one another name, or delete all that was left: "
            f"kubectl delete -n {child['metadata']['namespace']} {_LEFT} -l {_mine(child)}",
        )
    if (user := _user(child, live)) is not None:
        return TerminalError(
            Reason.NAME_TAKEN,
            f"{what} belongs to {user}. Create this endpoint under another name",
        )
    return TerminalError(
        Reason.NAME_TAKEN,
        f"{what} exists and is not this endpoint's. Create the endpoint under another name, or delete the "
        f"{kind.kind} if nothing needs it",
    )


def _user(child: Object, live: Object) -> str | None:
    """Who needs it, as its controller or its labels say: nobody may be advised to delete it."""
    owner = _controller(live)
    if owner is not None:
        return f"the {owner['kind']} {owner['name']!r}, which needs it"
    labels = live["metadata"].get("labels") or {}
    instance = labels.get(names.LABEL_INSTANCE)
    if labels.get(names.LABEL_MANAGED_BY) == names.MANAGED_BY and _mine(live) != _mine(child):
        return f"the {names.KIND} {instance!r}, whose labels it has"
    return None


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


def _controller(obj: Object) -> Object | None:
    for owner in obj["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            found: Object = owner
            return found
    return None
