"""The engine room: when the first reconcile may run, and when one that failed runs again."""

import asyncio
import contextlib

import pytest

from vllmendpoint_operator.errors import KubeError, NotFound, Throttled
from vllmendpoint_operator.kinds import SERVICE
from vllmendpoint_operator.metrics import Metrics
from vllmendpoint_operator.operator import Operator
from vllmendpoint_operator.settings import Settings

ENDPOINT = {
    "metadata": {"namespace": "ns", "name": "e", "uid": "u", "resourceVersion": "5", "generation": 1},
    "spec": {"model": {"uri": "hf://o/n"}},
}


class Api:
    """An empty cluster. ``services`` holds their list back; ``fail`` is raised by the next write."""

    def __init__(self):
        self.services = asyncio.Event()
        self.services.set()
        self.fail = None
        self.asked = []
        self.version = 10

    async def list(self, kind, namespace, **options):
        return ([ENDPOINT], "1") if options.get("name") else ([], "1")

    async def watch(self, kind, namespace, version, **options):
        if kind is SERVICE:
            await self.services.wait()
        yield "LISTED", {"metadata": {"resourceVersion": "1"}}
        await asyncio.Event().wait()

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
async def world():
    api = Api()
    operator = Operator(api, Settings(_cli_parse_args=["--worker-image=x"]), Metrics())
    running = []

    async def run():
        running.append(asyncio.create_task(operator.run()))
        await asyncio.sleep(0.05)

    yield api, operator, run
    for task in running:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(holds):
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)


async def test_no_reconcile_before_every_kind_is_listed(world):
    api, operator, run = world
    api.services.clear()
    operator.seen(ENDPOINT)
    await run()
    assert not operator.ready
    assert api.asked == []
    api.services.set()
    await until(lambda: len(api.asked) > 12)
    assert operator.ready


@pytest.mark.parametrize(("kind", "code"), [(Throttled, 429), (KubeError, 503)])
async def test_retry_after_is_kept_whatever_comes_in(world, kind, code):
    api, operator, run = world
    api.fail = kind(code, "later", retry_after=1)
    operator.seen(ENDPOINT)
    await run()
    await until(lambda: api.fail is None)
    before = len(api.asked)
    operator.seen({**ENDPOINT, "metadata": {**ENDPOINT["metadata"], "resourceVersion": "6"}})
    await until(lambda: len(api.asked) > before)
    assert api.asked[before][0] - api.asked[before - 1][0] >= 1
