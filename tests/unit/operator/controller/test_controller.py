"""When the controller reconciles first, and when it reconciles again after a failure."""

import asyncio
import contextlib

import pytest

import vllmendpoint_operator.controller.controller as controller_module
from tests.unit.operator.raw_objects import list_stream
from vllmendpoint_operator.controller.controller import Controller
from vllmendpoint_operator.errors import KubeError, NotFound, Throttled
from vllmendpoint_operator.kube.kinds import SERVICE
from vllmendpoint_operator.metrics import Metrics
from vllmendpoint_operator.settings import Settings

ENDPOINT = {
    "metadata": {"namespace": "ns", "name": "e", "uid": "u", "resourceVersion": "5", "generation": 1},
    "spec": {"model": {"uri": "hf://o/n"}},
}


class Api:
    """A cluster with one endpoint and nothing else.

    ``services_listed`` delays the list of Services; ``failure`` is raised by the next write.
    """

    def __init__(self):
        self.services_listed = asyncio.Event()
        self.services_listed.set()
        self.failure = None
        self.requests = []
        """(time, name of the object) of each request except lists and watches."""
        self.version = 10

    async def list(self, kind, namespace, **options):
        return [ENDPOINT], "1"

    @contextlib.asynccontextmanager
    async def list_stream(self, kind, namespace, **options):
        if kind is SERVICE:
            await self.services_listed.wait()
        async with list_stream() as found:
            yield found

    async def watch(self, kind, namespace, version, **options):
        await asyncio.Event().wait()
        yield

    async def get(self, kind, namespace, name):
        self._record(name)
        raise NotFound(404, "no")

    async def apply(self, kind, body, **options):
        self._record(body["metadata"]["name"])
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self.version += 1
        metadata = {"uid": body["metadata"]["name"], **body["metadata"], "resourceVersion": str(self.version)}
        if options.get("subresource"):
            metadata = {**ENDPOINT["metadata"], "resourceVersion": str(self.version)}
            return {**ENDPOINT, "metadata": metadata, "status": body["status"]}
        return {**body, "metadata": metadata}

    async def create(self, kind, body):
        self._record(body["reason"])

    def _record(self, name):
        self.requests.append((asyncio.get_running_loop().time(), name))


@pytest.fixture
async def api_and_controller():
    """(API, controller, coroutine function that starts the controller)"""
    api = Api()
    controller = Controller(
        api, Settings(_cli_parse_args=["--worker-image=x", "--frontend-image=y"]), Metrics()
    )
    tasks = []

    async def start():
        tasks.append(asyncio.create_task(controller.run()))
        await asyncio.sleep(0.05)

    yield api, controller, start
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_nothing_is_reconciled_before_every_kind_is_listed(api_and_controller):
    api, controller, start = api_and_controller
    api.services_listed.clear()
    controller.on_upsert(ENDPOINT)
    await start()
    assert not controller.ready
    assert api.requests == []
    api.services_listed.set()
    await until(lambda: len(api.requests) > 12)
    assert controller.ready


async def test_an_endpoint_waits_while_its_namespace_is_not_served(api_and_controller, monkeypatch):
    api, controller, start = api_and_controller
    await start()
    monkeypatch.setattr(controller.namespaces, "serves", lambda namespace: namespace != "lost")
    for namespace in ("lost", "ns"):
        metadata = {**ENDPOINT["metadata"], "namespace": namespace, "name": namespace, "uid": namespace}
        controller.on_upsert({**ENDPOINT, "metadata": metadata})
    await until(lambda: len(api.requests) > 12)
    assert not [name for _, name in api.requests if name.startswith("lost")]


@pytest.mark.parametrize(("error", "status"), [(Throttled, 429), (KubeError, 503)])
async def test_a_change_does_not_shorten_retry_after(api_and_controller, error, status):
    api, controller, start = api_and_controller
    api.failure = error(status, "later", retry_after=1)
    controller.on_upsert(ENDPOINT)
    await start()
    await until(lambda: api.failure is None)
    count = len(api.requests)
    controller.on_upsert({**ENDPOINT, "metadata": {**ENDPOINT["metadata"], "resourceVersion": "6"}})
    await until(lambda: len(api.requests) > count)
    assert api.requests[count][0] - api.requests[count - 1][0] >= 1


async def test_report_streams_are_opened_before_every_kind_is_listed(api_and_controller, monkeypatch):
    opened = []
    monkeypatch.setattr(controller_module.Observer, "workload", lambda self, *args: opened.append(args))
    api, controller, start = api_and_controller
    api.services_listed.clear()
    controller.on_upsert(ENDPOINT)
    terminating = {**ENDPOINT["metadata"], "name": "terminating", "deletionTimestamp": "now"}
    controller.on_upsert({"metadata": terminating})
    await start()
    await until(lambda: opened == [(("ns", "e"), "u")])
    assert not controller.ready


async def test_known_versions_are_those_of_the_namespace(api_and_controller):
    _, controller, _ = api_and_controller
    controller.on_upsert(ENDPOINT)
    (version,) = controller.known_versions(None).values()
    assert (version.uid, version.resource_version) == ("u", 5)
    assert controller.known_versions("ns") == controller.known_versions(None)
    assert controller.known_versions("other") == {}
    controller.on_delete(("ns", "e"), "u")
    assert controller.known_versions(None) == {}
