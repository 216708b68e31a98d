"""Upserts and deletions that the watch missed are reported soon after the start, and at each interval."""

import asyncio
import contextlib

import pytest

import vllmendpoint_operator.source.missed_events as missed_events
from tests.unit.operator.raw_objects import list_stream
from vllmendpoint_operator.controller.endpoint_store import EndpointStore
from vllmendpoint_operator.errors import KubeError
from vllmendpoint_operator.source.handler import KnownVersion
from vllmendpoint_operator.source.missed_events import MissedEvents

KEY = ("ns", "e")


def endpoint(version=5, **spec):
    metadata = {"namespace": "ns", "name": "e", "uid": "u", "resourceVersion": str(version), "generation": 1}
    return {"metadata": metadata, "spec": {"model": {"uri": "hf://o/n"}, **spec}}


class Api:
    """A cluster with the endpoints ``objects``; its lists raise ``failure``."""

    def __init__(self):
        self.objects = []
        self.failure = None

    @contextlib.asynccontextmanager
    async def list_stream(self, kind, namespace, **options):
        if self.failure is not None:
            raise self.failure
        async with list_stream(*self.objects) as found:
            yield found

    async def list(self, kind, namespace, *, name):
        return [obj for obj in self.objects if obj["metadata"]["name"] == name], "1"


class Handler:
    """Stores endpoints as the controller does."""

    def __init__(self):
        self.store = EndpointStore()
        self.on_upsert, self.on_delete = self.store.upsert, self.store.delete

    def known_versions(self, namespace):
        return {
            key: KnownVersion(self.store.uid(key), self.store.resource_version(key)) for key in self.store
        }


class Namespaces:
    served = (None,)

    async def wait_until_ready(self):
        pass


@pytest.fixture
async def api_and_store(monkeypatch):
    monkeypatch.setattr(missed_events, "FIRST_CHECK_SECONDS", 0.05)
    monkeypatch.setattr(missed_events, "WATCH_LAG_SECONDS", 0)
    api, handler = Api(), Handler()
    task = asyncio.create_task(MissedEvents(api, handler, Namespaces(), interval=600).run())
    yield api, handler.store
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_an_endpoint_that_the_watch_missed_is_upserted(api_and_store):
    api, store = api_and_store
    api.objects = [endpoint()]
    await until(lambda: KEY in store)


async def test_a_change_that_the_watch_missed_is_upserted(api_and_store):
    api, store = api_and_store
    store.upsert(endpoint())
    api.objects = [endpoint(900, replicas=3)]
    await until(lambda: store.get(KEY)["spec"].get("replicas") == 3)


async def test_an_endpoint_whose_deletion_the_watch_missed_is_deleted(api_and_store):
    _, store = api_and_store
    store.upsert(endpoint())
    await until(lambda: KEY not in store)


async def test_a_list_that_fails_deletes_nothing(api_and_store, caplog):
    api, store = api_and_store
    api.failure = KubeError(500, "etcd is unavailable")
    store.upsert(endpoint())
    await until(lambda: caplog.records)
    assert caplog.records[0].error == "500: etcd is unavailable"
    assert KEY in store
