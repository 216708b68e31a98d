"""Whether a live object is the endpoint's child, and the error if it is not but has a child's name. Pure."""

from typing import Final

from vllmendpoint_api import Reason, names
from vllmendpoint_operator.errors import ConditionError, TerminalError
from vllmendpoint_operator.kube.kinds import MANAGED
from vllmendpoint_operator.observe.snapshot import Endpoint, Object, controller_of

__all__ = ["is_controlled_by", "name_conflict", "owned_by_endpoint"]

_MANAGED_PLURALS: Final = ",".join(kind.plural for kind in MANAGED)
"""For ``kubectl delete``: the kinds of all children."""


def owned_by_endpoint(live: Object, endpoint: Endpoint) -> bool:
    """Whether the endpoint controls the object, and the object is not being deleted."""
    return is_controlled_by(live, endpoint.uid) and "deletionTimestamp" not in live["metadata"]


def is_controlled_by(live: Object, uid: str) -> bool:
    owner = controller_of(live)
    return owner is not None and owner["uid"] == uid


def name_conflict(desired: Object, live: Object, has_own_children: bool) -> ConditionError:
    """The error for ``live``, which has the name of ``desired`` and is not owned by the endpoint.

    ``has_own_children``: the endpoint has other children. Then the message must not advise to delete all
    objects with the endpoint's labels.
    """
    kind, name = desired["kind"], desired["metadata"]["name"]
    if "deletionTimestamp" in live["metadata"] or _will_be_collected(desired, live):
        return ConditionError(
            Reason.PENDING, f"The {kind} {name!r} is being deleted. The operator creates it again after that."
        )
    subject = f"metadata.name: The {kind} {name!r}"
    if _is_orphan(desired, live) and not has_own_children:
        namespace = desired["metadata"]["namespace"]
        return TerminalError(
            Reason.NAME_TAKEN,
            f"{subject} remains from an earlier endpoint of this name that was deleted with "
            "--cascade=orphan. Create this endpoint under another name, or delete all remaining objects: "
            f"`kubectl delete -n {namespace} {_MANAGED_PLURALS} -l {_selector(desired)}`.",
        )
    if (user := _user(desired, live)) is not None:
        return TerminalError(
            Reason.NAME_TAKEN, f"{subject} belongs to {user}. Create this endpoint under another name."
        )
    return TerminalError(
        Reason.NAME_TAKEN,
        f"{subject} exists and does not belong to this endpoint. Create the endpoint under another name, or "
        f"delete the {kind} if nothing needs it.",
    )


def _user(desired: Object, live: Object) -> str | None:
    """The object that needs ``live``, by its controller or its labels. It must not be deleted."""
    owner = controller_of(live)
    if owner is not None:
        return f"the {owner['kind']} {owner['name']!r}, which needs it"
    labels = live["metadata"].get("labels") or {}
    if labels.get(names.LABEL_MANAGED_BY) == names.MANAGED_BY and _selector(live) != _selector(desired):
        return f"the {names.KIND} {labels.get(names.LABEL_INSTANCE)!r}, whose labels it has"
    return None


def _will_be_collected(desired: Object, live: Object) -> bool:
    """Whether an earlier endpoint of the same name owns it; the garbage collector deletes it then."""
    (owner,) = desired["metadata"]["ownerReferences"]
    return any(
        other["kind"] == owner["kind"] and other["name"] == owner["name"] and other["uid"] != owner["uid"]
        for other in live["metadata"].get("ownerReferences") or []
    )


def _is_orphan(desired: Object, live: Object) -> bool:
    """Whether this operator created ``live`` for an endpoint of the same name, and nothing owns it now."""
    return not live["metadata"].get("ownerReferences") and _selector(desired) == _selector(live)


def _selector(obj: Object) -> str:
    """Label selector of the children of an endpoint with this name."""
    labels = obj["metadata"].get("labels") or {}
    return ",".join(f"{key}={labels.get(key)}" for key in (names.LABEL_INSTANCE, names.LABEL_MANAGED_BY))
