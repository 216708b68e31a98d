"""Which changes of its world an endpoint is looked at for at once, and which together."""

import asyncio
import contextlib

import pytest

from tests.unit.operator.wire import listing, parts
from vllmendpoint_api import names
from vllmendpoint_operator.controller.controller import Controller
from vllmendpoint_operator.kube.kinds import POD, SERVICE
from vllmendpoint_operator.metrics import Metrics
from vllmendpoint_operator.settings import Settings

GOING = {
    "metadata": {
        "namespace": "ns",
        "name": "e",
        "uid": "u",
        "resourceVersion": "5",
        "deletionTimestamp": "2026-01-01T00:00:00Z",
    }
}
"""An endpoint that a look does nothing about."""


class Api:
    """An empty cluster; ``changes`` is what the watches bring."""

    def __init__(self):
        self.changes = {kind: asyncio.Queue() for kind in (SERVICE, POD)}

    def listing(self, kind, namespace, **options):
        return listing()

    async def watch(self, kind, namespace, version, **options):
        while kind in self.changes:
            yield "MODIFIED", parts(await self.changes[kind].get())
        await asyncio.Event().wait()
        yield

    def change(self, kind, version, **more):
        labels = {names.LABEL_INSTANCE: "e", names.LABEL_MANAGED_BY: names.MANAGED_BY}
        metadata = {"namespace": "ns", "name": "x", "uid": "x", "resourceVersion": str(version)}
        self.changes[kind].put_nowait({"metadata": {**metadata, "labels": labels}, **more})


@pytest.fixture
async def world():
    """The API, and how many looks there were."""
    api, metrics = Api(), Metrics()
    controller = Controller(api, Settings(_cli_parse_args=["--worker-image=x"]), metrics)
    name = "vllmendpoint_operator_reconcile_total"
    running = asyncio.create_task(controller.run())
    controller.on_upsert(GOING)

    def looks():
        return metrics.registry.get_sample_value(name, {"result": "success"}) or 0

    await until(lambda: looks() == 1)
    api.controller = controller
    yield api, looks
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def until(holds):
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.01)


async def test_a_bunch_of_changes_is_one_look(world, monkeypatch):
    monkeypatch.setattr("vllmendpoint_operator.controller.controller.DEBOUNCE_SECONDS", 0.5)
    api, looks = world
    for version in range(20, 25):
        api.change(SERVICE, version)
        await asyncio.sleep(0)
    assert looks() == 1
    await until(lambda: looks() == 2)
    await asyncio.sleep(0.2)
    assert looks() == 2


async def test_readiness_does_not_wait(world, monkeypatch):
    monkeypatch.setattr("vllmendpoint_operator.controller.controller.DEBOUNCE_SECONDS", 3600)
    api, looks = world
    for version, ready in ((30, "False"), (31, "True")):
        api.change(POD, version, status={"conditions": [{"type": "Ready", "status": ready}]})
    await until(lambda: looks() == 2)


async def test_many_looks_leave_room_for_others(world):
    """For the renewal of the lease, for one."""
    api, looks = world
    for number in range(100):
        metadata = {**GOING["metadata"], "name": f"e-{number}", "uid": f"u-{number}"}
        api.controller.on_upsert({"metadata": metadata})
    seen = set()
    while looks() < 101:
        seen.add(looks())
        await asyncio.sleep(0)
    assert len(seen) > 10
