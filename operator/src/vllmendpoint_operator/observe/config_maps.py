"""Reads the ConfigMaps that specs refer to, each version once."""

from collections.abc import Mapping
from weakref import WeakValueDictionary

from vllmendpoint_operator.cache.caches import Cache, Key
from vllmendpoint_operator.errors import NotFound
from vllmendpoint_operator.kube.client import Kube
from vllmendpoint_operator.kube.kinds import CONFIG_MAP

from .references import config_map_references
from .snapshot import ConfigMapContent, Endpoint

__all__ = ["ReferencedConfigMaps"]


class ReferencedConfigMaps:
    """Keeps the content of a ConfigMap while the spec of an endpoint refers to it."""

    def __init__(self, kube: Kube, cache: Cache) -> None:
        self._kube = kube
        self._cache = cache
        self.contents: WeakValueDictionary[tuple[str, str, str], ConfigMapContent] = WeakValueDictionary()
        """(namespace, name, uid/resourceVersion) -> content."""
        self._referenced: dict[Key, Mapping[str, ConfigMapContent]] = {}
        """Endpoint -> the content that its spec refers to; these references keep ``contents`` alive."""

    async def read(self, endpoint: Endpoint) -> dict[str, ConfigMapContent]:
        """Name -> content of each ConfigMap that exists. Raises KubeError if one cannot be read."""
        namespace = endpoint.namespace
        found = {}
        for name in config_map_references(endpoint.spec):
            newest = self._cache.reference(CONFIG_MAP, (namespace, name))
            if newest is None:
                continue
            version = (namespace, name, newest)
            content = self.contents.get(version)
            if content is None:
                try:
                    obj = await self._kube.get(CONFIG_MAP, namespace, name)
                except NotFound:
                    continue
                content = self.contents[version] = ConfigMapContent(obj.get("data") or {})
            found[name] = content
        if found:
            self._referenced[endpoint.key] = found
        else:
            self.forget(endpoint.key)
        return found

    def forget(self, key: Key) -> None:
        self._referenced.pop(key, None)
