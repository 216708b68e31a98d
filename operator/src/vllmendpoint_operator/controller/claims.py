"""Claims endpoints for this operator, and reports conflicts with other operators."""

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
from .endpoint_store import EndpointStore, endpoint_key
from .publish.status_writer import CONFLICT_RETRY_SECONDS, StatusWriter

__all__ = ["EndpointClaims"]

log = logging.getLogger(__name__)


class EndpointClaims:
    """``operator`` is the name in the claims; all replicas of an operator share it."""

    def __init__(
        self, endpoints: EndpointStore, writer: StatusWriter, metrics: Metrics, operator: str
    ) -> None:
        self._endpoints = endpoints
        self._writer = writer
        self._metrics = metrics
        self._operator = operator
        self._logged_managers: dict[Key, str] = {}
        """Endpoint -> managing operator in the last log line about it."""
        self._removed_messages: dict[Key, str] = {}
        """Endpoint -> message of the last conflict that this process removed; empty if there was none."""

    def manages(self, key: Key) -> bool:
        """Whether no other operator manages the endpoint."""
        return self._endpoints.managing_operator(key) in ("", self._operator)

    def is_conflict_logged(self, key: Key) -> bool:
        """Whether the log names the operator that manages the endpoint now."""
        return self._logged_managers.get(key) == self._endpoints.managing_operator(key)

    async def claim(self, obj: Object) -> float | None:
        """Claim the endpoint, before anything else is written.

        Return None if the endpoint is claimed; otherwise the seconds after which to try again.
        """
        key = endpoint_key(obj)
        self._logged_managers.pop(key, None)
        self._metrics.foreign.discard(key)
        if obj["status"].get("operator") != self._operator:
            # Of two operators that claim it at the same time, one succeeds: the write is conditional on the
            # version that was read.
            claimed = {**without_conflict(obj["status"]), "operator": self._operator}
            requeue_after = await self._writer.write(obj, claimed)
            if requeue_after is not None:
                return requeue_after
            log.info("endpoint claimed", extra={"operator": self._operator})
            obj = self._endpoints.get(key) or obj
        return await self._remove_stale_conflict(obj)

    async def report_conflict(self, obj: Object) -> float | None:
        """Report once, in the log and in a condition, that another operator manages the endpoint."""
        key = endpoint_key(obj)
        manager = self._endpoints.managing_operator(key)
        if self._logged_managers.get(key) != manager:
            self._logged_managers[key] = manager
            log.warning(
                "another operator manages the endpoint; set the annotation to transfer it to this operator",
                extra={
                    "managing_operator": manager,
                    "operator": self._operator,
                    "annotation": names.ANNOTATION_OPERATOR,
                },
            )
        self._metrics.foreign.add(key)
        condition = conflict_condition(obj, self._operator, datetime.now(UTC))
        if condition is None:
            return None
        return await self._writer.write(obj, {"conditions": [condition]}, CONFLICT_FIELD_MANAGER)

    def forget(self, key: Key) -> None:
        self._logged_managers.pop(key, None)
        self._removed_messages.pop(key, None)

    async def _remove_stale_conflict(self, obj: Object) -> float | None:
        """Remove the condition of another operator if it names another manager than this operator.

        Also remove it once after each start: another operator that still watches the namespace writes it
        again, one that no longer exists does not. Do not remove the same condition twice, because a field
        manager other than the operators' may own it.
        """
        key = endpoint_key(obj)
        condition = existing_conflict(obj["status"])
        message = "" if condition is None else condition["message"]
        removed = self._removed_messages.get(key)
        is_current = condition is not None and names_manager(condition, self._operator)
        if condition is None or (removed is not None and is_current) or removed == message:
            self._removed_messages.setdefault(key, "")
            return None
        self._removed_messages[key] = message
        requeue_after = await self._writer.write(obj, {}, CONFLICT_FIELD_MANAGER)
        return CONFLICT_RETRY_SECONDS if requeue_after is None else requeue_after
