"""Keeps two digests in annotations of a child: of the applied object, and of accepted differences. Pure.

A mutating admission policy changes a child again after every apply. The operator then accepts the differences
between the applied and the stored object, and records their digest in an annotation of the child, which
survives a restart of the operator. Design decision 17 explains the comparison
(docs/decisions/0017-differences-and-reverts.md).
"""

from collections.abc import Iterable
from hashlib import sha256
from operator import itemgetter
from typing import Any, Final

import msgspec

from vllmendpoint_api import names
from vllmendpoint_operator.kube.differences import differences, differs
from vllmendpoint_operator.observe.snapshot import Object

__all__ = [
    "APPLIED_HASH_PATH",
    "accepted_record",
    "difference_records",
    "is_in_sync",
    "with_accepted_record",
    "with_applied_hash",
]

_APPLIED_HASH: Final = f"{names.GROUP}/applied-hash"
"""Annotation of every child: digest of what was last applied. It shows that a field was removed."""
APPLIED_HASH_PATH: Final = ("metadata", "annotations", _APPLIED_HASH)
"""Path of that annotation among the differences of a child."""
_ACCEPTED_DIFFERENCES: Final = f"{names.GROUP}/accepted-differences"
"""Annotation of a child: digest of the differences between the applied and the stored object."""
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
"""Each reconcile encodes all children. The encoder of the standard library takes eight times as long."""

Difference = tuple[tuple[str, ...], Any]
"""Path of a field, and its value in the live object."""


def with_applied_hash(child: Object) -> Object:
    annotations = {
        **child["metadata"].get("annotations", {}),
        _APPLIED_HASH: sha256(_ENCODER.encode(child)).hexdigest()[:16],
    }
    return {**child, "metadata": {**child["metadata"], "annotations": annotations}}


def is_in_sync(desired: Object, live: Object) -> bool:
    """Whether all differences are accepted. ``desired`` has the applied hash."""
    if not differs(desired, live):
        return True
    record = accepted_record(live)
    return bool(record) and record in difference_records(differences(desired, live))


def accepted_record(live: Object) -> str:
    """The record of accepted differences; empty if there is none."""
    return str((live["metadata"].get("annotations") or {}).get(_ACCEPTED_DIFFERENCES, ""))


def with_accepted_record(desired: Object, record: str) -> Object:
    if not record:
        return desired
    metadata = desired["metadata"]
    annotations = {**metadata["annotations"], _ACCEPTED_DIFFERENCES: record}
    return {**desired, "metadata": {**metadata, "annotations": annotations}}


def difference_records(found: Iterable[Difference]) -> tuple[str, str]:
    """The two records that accept these differences; both are empty if there is no difference.

    The first accepts these fields with these values. After it, a change of such a field to another value is
    a new difference, which the operator reverts. The second accepts these fields with any value. It is for a
    policy that stores another value at each apply.
    """
    pairs = sorted(found, key=itemgetter(0))
    if not pairs:
        return "", ""
    return _digest(pairs), f"any-{_digest([path for path, _ in pairs])}"


def _digest(value: Any) -> str:
    return sha256(_ENCODER.encode(value)).hexdigest()[:16]
