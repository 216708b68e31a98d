"""What is recorded on a child of what was applied, and of what the API server stored otherwise. Pure."""

from collections.abc import Iterable
from hashlib import sha256
from operator import itemgetter
from typing import Any, Final

import msgspec

from vllmendpoint_api import names
from vllmendpoint_operator.kube.differences import differences, differs
from vllmendpoint_operator.observe.snapshot import Object

__all__ = ["APPLIED_PATH", "accepted", "accepting", "records", "settled", "stamped"]

_APPLIED: Final = f"{names.GROUP}/applied-hash"
"""Annotation on every child: digest of what was last applied, to notice a field taken out."""
APPLIED_PATH: Final = ("metadata", "annotations", _APPLIED)
_ACCEPTED: Final = f"{names.GROUP}/accepted-differences"
"""Annotation on a child: digest of what the API server stores otherwise than it is applied.

A mutating admission policy would change the object again after every apply. As the record is on the object,
it outlives the operator; a later change of such a field to another value has another digest.
"""
_SORTED: Final = msgspec.json.Encoder(order="deterministic")
"""Every look at an endpoint encodes all its children: the standard library's takes eight times as long."""

Difference = tuple[tuple[str, ...], Any]


def stamped(child: Object) -> Object:
    """With the digest of what is applied."""
    annotations = {
        **child["metadata"].get("annotations", {}),
        _APPLIED: sha256(_SORTED.encode(child)).hexdigest()[:16],
    }
    return {**child, "metadata": {**child["metadata"], "annotations": annotations}}


def settled(desired: Object, live: Object) -> bool:
    """Nothing differs but what is recorded as accepted. ``desired`` is stamped."""
    if not differs(desired, live):
        return True
    record = accepted(live)
    return bool(record) and record in records(differences(desired, live))


def accepted(live: Object) -> str:
    """The record on a live object; empty where it has none."""
    return str((live["metadata"].get("annotations") or {}).get(_ACCEPTED, ""))


def accepting(desired: Object, record: str) -> Object:
    """With this record, or none."""
    if not record:
        return desired
    metadata = desired["metadata"]
    return {
        **desired,
        "metadata": {**metadata, "annotations": {**metadata["annotations"], _ACCEPTED: record}},
    }


def records(found: Iterable[Difference]) -> tuple[str, str]:
    """Those that accept these differences: exactly, and whatever their values; empty where there are none."""
    pairs = sorted(found, key=itemgetter(0))
    if not pairs:
        return "", ""
    return _digest(pairs), f"any-{_digest([path for path, _ in pairs])}"


def _digest(value: Any) -> str:
    return sha256(_SORTED.encode(value)).hexdigest()[:16]
