"""The engine room: when the first reconcile may run, and when one that failed runs again."""

import asyncio
import contextlib

import pytest

import vllmendpoint_operator.controller.controller as controller_module
from tests.unit.operator.wire import listing
from vllmendpoint_operator.controller.controller import Controller
from vllmendpoint_operator.errors import KubeError, NotFound, Throttled
from vllmendpoint_operator.kube.kinds import ENDPOINT as ENDPOINT_KIND
from vllmendpoint_operator.kube.kinds import SERVICE
from vllmendpoint_operator.metrics import Metrics
from vllmendpoint_operator.settings import Settings

ENDPOINT = {
    "metadata": {"namespace": "ns", "name": "e", "uid": "u", "resourceVersion": "5", "generation": 1},
    "spec": {"model": {"uri": "hf://o/n"}},
}


class Api:
    """An empty cluster but for ``listed``, the endpoints. ``services`` holds their list back; ``fail`` is
    raised by the next write.
    """

    def __init__(self):
        self.services = asyncio.Event()
        self.services.set()
        self.fail = None
        self.listed = []
        self.asked = []
        self.version = 10

    async def list(self, kind, namespace, **options):
        return self.listed or [ENDPOINT], "1"

    @contextlib.asynccontextmanager
    async def listing(self, kind, namespace, **options):
        if kind is SERVICE:
            await self.services.wait()
        async with listing(*(self.listed if kind is ENDPOINT_KIND else [])) as found:
            yield found

    async def watch(self, kind, namespace, version, **options):
        await asyncio.Event().wait()
        yield

    async def get(self, kind, namespace, name):
        self.asked.append((asyncio.get_running_loop().time(), name))
        raise NotFound(404, "no")

    async def apply(self, kind, body, **options):
        self.asked.append((asyncio.get_running_loop().time(), body["metadata"]["name"]))
        if self.fail is not None:
            failure, self.fail = self.fail, None
            raise failure
        self.version += 1
        metadata = {"uid": body["metadata"]["name"], **body["metadata"], "resourceVersion": str(self.version)}
        if options.get("subresource"):
            metadata = {**ENDPOINT["metadata"], "resourceVersion": str(self.version)}
            return {**ENDPOINT, "metadata": metadata, "status": body["status"]}
        return {**body, "metadata": metadata}

    async def create(self, kind, body):
        self.asked.append((asyncio.get_running_loop().time(), body["reason"]))


@pytest.fixture
async def world(monkeypatch):
    monkeypatch.setattr(controller_module, "WATCH_LAG_SECONDS", 0)
    api = Api()
    controller = Controller(api, Settings(_cli_parse_args=["--worker-image=x"]), Metrics())
    running = []

    async def run():
        running.append(asyncio.create_task(controller.run()))
        await asyncio.sleep(0.05)

    yield api, controller, run
    for task in running:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(holds):
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)


async def test_no_reconcile_before_every_kind_is_listed(world):
    api, controller, run = world
    api.services.clear()
    controller.on_upsert(ENDPOINT)
    await run()
    assert not controller.ready
    assert api.asked == []
    api.services.set()
    await until(lambda: len(api.asked) > 12)
    assert controller.ready


@pytest.mark.parametrize(("kind", "code"), [(Throttled, 429), (KubeError, 503)])
async def test_retry_after_is_kept_whatever_comes_in(world, kind, code):
    api, controller, run = world
    api.fail = kind(code, "later", retry_after=1)
    controller.on_upsert(ENDPOINT)
    await run()
    await until(lambda: api.fail is None)
    before = len(api.asked)
    controller.on_upsert({**ENDPOINT, "metadata": {**ENDPOINT["metadata"], "resourceVersion": "6"}})
    await until(lambda: len(api.asked) > before)
    assert api.asked[before][0] - api.asked[before - 1][0] >= 1


async def test_an_endpoint_that_the_watch_missed_is_taken_in_soon(world, monkeypatch):
    """kopf takes a list that was cut off for whole."""
    monkeypatch.setattr(controller_module, "FIRST_RESYNC_SECONDS", 0.1)
    api, _, run = world
    api.listed = [ENDPOINT]
    await run()
    await until(lambda: "e" in [name for _, name in api.asked])


async def test_a_change_that_the_watch_missed_is_taken_in_soon(world, monkeypatch):
    monkeypatch.setattr(controller_module, "FIRST_RESYNC_SECONDS", 0.1)
    api, controller, run = world
    controller.on_upsert(ENDPOINT)
    newest = {**ENDPOINT["metadata"], "resourceVersion": "900", "generation": 2}
    api.listed = [{"metadata": newest, "spec": {**ENDPOINT["spec"], "replicas": 3}}]
    await run()
    await until(lambda: controller._endpoints.get(("ns", "e"))["spec"].get("replicas") == 3)


async def test_an_endpoint_that_went_unnoticed_is_dropped_soon(world, monkeypatch):
    monkeypatch.setattr(controller_module, "FIRST_RESYNC_SECONDS", 0.1)
    _, controller, run = world
    controller.on_upsert(ENDPOINT)
    await run()
    await until(lambda: ("ns", "e") not in controller._endpoints)


async def test_a_check_that_fails_drops_nothing(world, monkeypatch, caplog):
    monkeypatch.setattr(controller_module, "FIRST_RESYNC_SECONDS", 0.1)
    api, controller, run = world

    @contextlib.asynccontextmanager
    async def listed(kind, namespace, **options):
        if kind is ENDPOINT_KIND:
            raise KubeError(500, "etcd is away")
        async with listing() as found:
            yield found

    api.listing = listed
    controller.on_upsert(ENDPOINT)
    await run()
    await until(lambda: "etcd is away" in caplog.text)
    assert ("ns", "e") in controller._endpoints


async def test_workers_are_asked_for_reports_before_all_is_listed(world, monkeypatch):
    asked = []
    monkeypatch.setattr(
        controller_module.Observer, "workload", lambda self, *endpoint: asked.append(endpoint)
    )
    api, controller, run = world
    api.services.clear()
    controller.on_upsert(ENDPOINT)
    controller.on_upsert({"metadata": {**ENDPOINT["metadata"], "name": "going", "deletionTimestamp": "now"}})
    await run()
    await until(lambda: asked == [(("ns", "e"), "u")])
    assert not controller.ready
