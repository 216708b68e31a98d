"""Finds upserts and deletions that the watch of VLLMEndpoints missed, by comparing with a list.

If a streamed list is interrupted, kopf continues with the events that follow, and never reports the objects
that the list had not sent yet.
"""

import asyncio
import logging
import random
from typing import Final

from vllmendpoint_operator.errors import KubeError
from vllmendpoint_operator.kube.client import Kube
from vllmendpoint_operator.kube.kinds import ENDPOINT
from vllmendpoint_operator.kube.object_meta import Key, keep_version, parse_meta

from .handler import EndpointHandler, KnownVersion, Namespaces

__all__ = ["MissedEvents"]

log = logging.getLogger(__name__)

FIRST_CHECK_SECONDS: Final = 30.0
"""Time after the start until the first comparison, which repairs an interrupted first list."""
WATCH_LAG_SECONDS: Final = 5.0
"""Time in which the watch delivers what a list already shows."""


class MissedEvents:
    """Compares the handler's versions with a list every ``interval`` seconds, and reports the differences."""

    def __init__(
        self, kube: Kube, handler: EndpointHandler, namespaces: Namespaces, *, interval: float
    ) -> None:
        self._kube = kube
        self._handler = handler
        self._namespaces = namespaces
        self._interval = interval

    async def run(self) -> None:
        """Compare until cancelled."""
        await self._namespaces.wait_until_ready()
        await asyncio.sleep(FIRST_CHECK_SECONDS)
        while True:
            for namespace in self._namespaces.served:
                try:
                    await self._compare(namespace)
                except KubeError as error:
                    log.warning(
                        "cannot check for missed events",
                        extra={"watched_namespace": namespace or "*", "error": str(error)},
                    )
            await asyncio.sleep(self._interval * random.uniform(0.9, 1.1))

    async def _compare(self, namespace: str | None) -> None:
        known = self._handler.known_versions(namespace)
        listed = await self._list(namespace)
        await asyncio.sleep(WATCH_LAG_SECONDS)
        current = self._handler.known_versions(namespace)
        for key, version in listed.items():
            if key not in current or current[key].resource_version < version.resource_version:
                missed, _ = await self._kube.list(ENDPOINT, key[0], name=key[1])
                for obj in missed:
                    self._handler.on_upsert(obj)
        existing = {version.uid for version in listed.values()}
        for key, version in known.items():
            if version.uid not in existing:
                self._handler.on_delete(key, version.uid)

    async def _list(self, namespace: str | None) -> dict[Key, KnownVersion]:
        versions = {}
        async with self._kube.list_stream(ENDPOINT, namespace, metadata_only=True) as (_, items):
            async for item in items:
                found = parse_meta(keep_version(item))
                versions[found.key] = KnownVersion(found.uid, found.version)
        return versions
