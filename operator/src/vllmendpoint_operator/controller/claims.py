"""Claims endpoints for this operator, and leaves alone those that another one manages."""

import logging
from datetime import UTC, datetime

from vllmendpoint_api import names
from vllmendpoint_operator.cache.caches import Key
from vllmendpoint_operator.kube.client import Object
from vllmendpoint_operator.metrics import Metrics

from .assignment import (
    CONFLICT_FIELD_MANAGER,
    conflict_condition,
    existing_conflict,
    names_manager,
    without_conflict,
)
from .endpoint_store import EndpointStore
from .status_writer import CONFLICT_RETRY_SECONDS, StatusWriter

__all__ = ["EndpointClaims"]

log = logging.getLogger(__name__)


class EndpointClaims:
    """``operator`` is the name by which endpoints are claimed; all replicas of one have it."""

    def __init__(
        self, endpoints: EndpointStore, writer: StatusWriter, metrics: Metrics, operator: str
    ) -> None:
        self._endpoints = endpoints
        self._writer = writer
        self._metrics = metrics
        self._operator = operator
        self._reported: dict[Key, str] = {}
        """Endpoints that are left to another operator, and to which; that was logged."""
        self._removed_conflicts: dict[Key, str] = {}
        """Message of the last condition of another operator that was removed; empty: there was none."""

    def manages(self, key: Key) -> bool:
        """Unless another one does."""
        return self._endpoints.managing_operator(key) in ("", self._operator)

    def is_reported(self, key: Key) -> bool:
        """It is left to the operator that manages it now, and that was said."""
        return self._reported.get(key) == self._endpoints.managing_operator(key)

    async def claim(self, obj: Object) -> float | None:
        """Before anything else is written. Returns seconds after which to look again before that is done, and
        None where the endpoint is this operator's.
        """
        key = _key(obj)
        self._reported.pop(key, None)
        self._metrics.foreign.discard(key)
        if obj["status"].get("operator") != self._operator:
            # Of two operators that see it at one time, one succeeds: it is written over what was looked at.
            claimed = {**without_conflict(obj["status"]), "operator": self._operator}
            again = await self._writer.write(obj, claimed)
            if again is not None:
                return again
            log.info("the operator %s manages it", self._operator)
            obj = self._endpoints.get(key) or obj
        return await self._remove_stale_conflict(obj)

    async def report_conflict(self, obj: Object) -> float | None:
        """Leave the endpoint to the operator that manages it, and say so once."""
        key = _key(obj)
        owner = self._endpoints.managing_operator(key)
        if self._reported.get(key) != owner:
            self._reported[key] = owner
            log.warning(
                "the operator %s manages it, so %s leaves it alone; to hand it over, annotate it with %s=%s",
                owner,
                self._operator,
                names.ANNOTATION_OPERATOR,
                self._operator,
            )
        self._metrics.foreign.add(key)
        entry = conflict_condition(obj, self._operator, datetime.now(UTC))
        if entry is None:
            return None
        return await self._writer.write(obj, {"conditions": [entry]}, CONFLICT_FIELD_MANAGER)

    def forget(self, key: Key) -> None:
        self._reported.pop(key, None)
        self._removed_conflicts.pop(key, None)

    async def _remove_stale_conflict(self, obj: Object) -> float | None:
        """Remove the condition of an operator that stepped back, where it names another than this one.

        Once after a start in any case: an operator that still watches writes it again, one that is gone does
        not. Never the same one twice: whoever else owns it would keep it.
        """
        key = _key(obj)
        entry = existing_conflict(obj["status"])
        message = "" if entry is None else entry["message"]
        before = self._removed_conflicts.get(key)
        if (
            entry is None
            or (before is not None and names_manager(entry, self._operator))
            or before == message
        ):
            self._removed_conflicts.setdefault(key, "")
            return None
        self._removed_conflicts[key] = message
        again = await self._writer.write(obj, {}, CONFLICT_FIELD_MANAGER)
        return CONFLICT_RETRY_SECONDS if again is None else again


def _key(obj: Object) -> Key:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]
