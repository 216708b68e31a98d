"""Writes an endpoint's status over the very object that was looked at, and takes in what was missed."""

from collections.abc import Callable
from typing import Final

from vllmendpoint_api import names
from vllmendpoint_operator.cache.caches import Key
from vllmendpoint_operator.errors import Conflict, NotFound
from vllmendpoint_operator.kube.client import FIELD_MANAGER, Kube, Object
from vllmendpoint_operator.kube.kinds import ENDPOINT

from .endpoint_store import EndpointStore

__all__ = ["CONFLICT_RETRY_SECONDS", "StatusWriter"]

CONFLICT_RETRY_SECONDS: Final = 1.0
"""What is newer comes by the watch, as a rule sooner; this does not depend on it."""


class StatusWriter:
    """``on_gone`` is called with the key of an endpoint that turns out to be gone."""

    def __init__(self, kube: Kube, endpoints: EndpointStore, on_gone: Callable[[Key], None]) -> None:
        self._kube = kube
        self._endpoints = endpoints
        self._on_gone = on_gone
        self._conflicts: dict[Key, str] = {}
        """The resourceVersion with which a status was last refused."""

    async def write(self, obj: Object, status: Object, manager: str = FIELD_MANAGER) -> float | None:
        """Seconds after which to look again where it was not written, because ``obj`` is not the newest."""
        metadata = obj["metadata"]
        key, uid, version = (
            (metadata["namespace"], metadata["name"]),
            metadata["uid"],
            metadata["resourceVersion"],
        )
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": uid,
                # Of the very object that was looked at: one changed or deleted since is looked at again.
                "resourceVersion": version,
            },
            "status": status,
        }
        try:
            written = await self._kube.apply(ENDPOINT, body, subresource="status", manager=manager)
        except Conflict:
            if self._conflicts.get(key) == version:
                await self._fetch(key, uid)  # the watch has not brought what is newer
            self._conflicts[key] = version
            return CONFLICT_RETRY_SECONDS
        except NotFound:
            await self._fetch(key, uid)
            return CONFLICT_RETRY_SECONDS if key in self._endpoints else None
        # Deleted while the answer was on its way, it must not come back to life here.
        if self._endpoints.is_active(key, uid):
            self._endpoints.upsert(written)
            self._conflicts.pop(key, None)
        return None

    def forget(self, key: Key) -> None:
        self._conflicts.pop(key, None)

    async def _fetch(self, key: Key, uid: str) -> None:
        """A change, or its end, was lost in a gap of the watch. A 404 alone may mean that the CRD is not
        served.
        """
        found, _ = await self._kube.list(ENDPOINT, key[0], name=key[1])
        stands = any(item["metadata"]["uid"] == uid for item in found)
        if not stands and self._endpoints.delete(key, uid):
            self._on_gone(key)
        for newest in found:
            self._endpoints.upsert(newest)
