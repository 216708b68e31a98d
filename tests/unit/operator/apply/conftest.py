"""A fake API server, and the cache of its objects."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.operator.fake_kube import FakeKube, Object
from vllmendpoint_api import names
from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.kube.kinds import by_name


@pytest.fixture
def kube() -> FakeKube:
    return FakeKube()


@pytest.fixture
def cache(kube: Any) -> Cache:
    return Cache(kube, (), on_change=lambda owner, urgent: None, on_reference_change=lambda kind, key: None)


@pytest.fixture
def put(kube: FakeKube, cache: Cache) -> Callable[..., Object]:
    """Put an object into the cluster and the cache, as the watch would."""

    def into(obj: Object, **metadata: Any) -> Object:
        kube.version += 1
        metadata = {**obj["metadata"], "uid": "x", "resourceVersion": str(kube.version), **metadata}
        live = {**obj, "metadata": metadata}
        kube.objects[obj["kind"], metadata["name"]] = live
        if metadata.get("labels", {}).get(names.LABEL_MANAGED_BY):
            cache.informer(by_name(obj["kind"]), "team-a").apply_local_write(live)
        return live

    return into
