"""Creates the Events of an endpoint."""

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from vllmendpoint_operator.errors import Conflict, KubeError
from vllmendpoint_operator.kube.client import Kube
from vllmendpoint_operator.kube.kinds import EVENT
from vllmendpoint_operator.observe.snapshot import Endpoint

from .events import PendingEvent, event_body

__all__ = ["EventRecorder"]

log = logging.getLogger(__name__)


class EventRecorder:
    """``may_write``: whether this operator may still write for an endpoint; checked before each request."""

    def __init__(self, kube: Kube, may_write: Callable[[Endpoint], bool], reporting_instance: str) -> None:
        self._kube = kube
        self._may_write = may_write
        self._reporting_instance = reporting_instance

    async def record(self, endpoint: Endpoint, events: Iterable[PendingEvent]) -> None:
        """Create the Events. An error is only logged, because the log or a condition has the same text."""
        for event in events:
            if not self._may_write(endpoint):
                return
            fields = {"reason": event.reason, "note": event.message}
            log.info("recording an Event", extra=fields)
            body = event_body(endpoint, event, datetime.now(UTC), self._reporting_instance)
            try:
                await self._kube.create(EVENT, body)
            except Conflict:
                log.debug("the Event exists already", extra=fields)
            except KubeError as error:
                log.warning("cannot create an Event", extra={"reason": event.reason, "error": str(error)})
