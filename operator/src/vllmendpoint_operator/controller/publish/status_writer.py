"""Writes the status of an endpoint, on condition that the version that was read is still the newest."""

from collections.abc import Callable
from typing import Final

from vllmendpoint_api import names
from vllmendpoint_operator.cache.caches import Key
from vllmendpoint_operator.controller.endpoint_store import EndpointStore, endpoint_key
from vllmendpoint_operator.errors import Conflict, NotFound
from vllmendpoint_operator.kube.client import FIELD_MANAGER, Kube, Object
from vllmendpoint_operator.kube.kinds import ENDPOINT

__all__ = ["CONFLICT_RETRY_SECONDS", "StatusWriter"]

CONFLICT_RETRY_SECONDS: Final = 1.0
"""Time until the next attempt. As a rule, the event of the newer version triggers one earlier."""


class StatusWriter:
    """Fetches an endpoint whose newer version, or whose deletion, the watch has missed.

    ``on_deleted`` is called with the key of an endpoint that does not exist any more.
    """

    def __init__(self, kube: Kube, endpoints: EndpointStore, on_deleted: Callable[[Key], None]) -> None:
        self._kube = kube
        self._endpoints = endpoints
        self._on_deleted = on_deleted
        self._conflicts: dict[Key, str] = {}
        """Endpoint -> resourceVersion of its last write that the API server answered with a conflict."""

    async def write(self, obj: Object, status: Object, manager: str = FIELD_MANAGER) -> float | None:
        """Apply ``status`` to ``obj``, and store the response.

        Return None if it is written, or if the endpoint does not exist any more; otherwise the seconds after
        which to try again.
        """
        metadata = obj["metadata"]
        key, uid, version = endpoint_key(obj), metadata["uid"], metadata["resourceVersion"]
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                # A conflict if the endpoint has changed or has been recreated since it was read.
                "uid": uid,
                "resourceVersion": version,
            },
            "status": status,
        }
        try:
            written = await self._kube.apply(ENDPOINT, body, subresource="status", manager=manager)
        except Conflict:
            if self._conflicts.get(key) == version:
                await self._fetch(key, uid)  # the watch has not delivered the newer version
            self._conflicts[key] = version
            return CONFLICT_RETRY_SECONDS
        except NotFound:
            await self._fetch(key, uid)
            return CONFLICT_RETRY_SECONDS if key in self._endpoints else None
        # Do not store an endpoint that was deleted while the response was on its way.
        if self._endpoints.is_active(key, uid):
            self._endpoints.upsert(written)
            self._conflicts.pop(key, None)
        return None

    def forget(self, key: Key) -> None:
        self._conflicts.pop(key, None)

    async def _fetch(self, key: Key, uid: str) -> None:
        """Store the newest version, or the deletion.

        Uses a list, because a get also returns 404 if the CRD is missing.
        """
        found, _ = await self._kube.list(ENDPOINT, key[0], name=key[1])
        exists = any(item["metadata"]["uid"] == uid for item in found)
        if not exists and self._endpoints.delete(key, uid):
            self._on_deleted(key)
        for newest in found:
            self._endpoints.upsert(newest)
