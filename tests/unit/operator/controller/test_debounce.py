"""Which changes of an endpoint's objects are reconciled without delay, and which are debounced."""

import asyncio
import contextlib

import pytest

import vllmendpoint_operator.controller.controller as controller_module
from tests.unit.operator.raw_objects import list_stream, raw_object
from vllmendpoint_api import names
from vllmendpoint_operator.controller.controller import Controller
from vllmendpoint_operator.kube.kinds import POD, SERVICE
from vllmendpoint_operator.metrics import Metrics
from vllmendpoint_operator.settings import Settings

TERMINATING = {
    "metadata": {
        "namespace": "ns",
        "name": "e",
        "uid": "u",
        "resourceVersion": "5",
        "deletionTimestamp": "2026-01-01T00:00:00Z",
    }
}
"""An endpoint whose reconcile makes no request."""


class Api:
    """An empty cluster; :meth:`change` adds an event to a watch."""

    def __init__(self):
        self.events = {kind: asyncio.Queue() for kind in (SERVICE, POD)}

    def list_stream(self, kind, namespace, **options):
        return list_stream()

    async def watch(self, kind, namespace, version, **options):
        while kind in self.events:
            yield "MODIFIED", raw_object(await self.events[kind].get())
        await asyncio.Event().wait()
        yield

    def change(self, kind, version, **more):
        labels = {names.LABEL_INSTANCE: "e", names.LABEL_MANAGED_BY: names.MANAGED_BY}
        metadata = {"namespace": "ns", "name": "x", "uid": "x", "resourceVersion": str(version)}
        self.events[kind].put_nowait({"metadata": {**metadata, "labels": labels}, **more})


@pytest.fixture
async def running():
    """(API, controller, function that counts the reconciles); the endpoint has been reconciled once."""
    api, metrics = Api(), Metrics()
    controller = Controller(
        api, Settings(_cli_parse_args=["--worker-image=x", "--frontend-image=y"]), metrics
    )
    task = asyncio.create_task(controller.run())
    controller.on_upsert(TERMINATING)

    def reconciles():
        name, labels = "vllmendpoint_operator_reconcile_total", {"result": "success"}
        return metrics.registry.get_sample_value(name, labels) or 0

    await until(lambda: reconciles() == 1)
    yield api, controller, reconciles
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_changes_in_a_short_time_cause_one_reconcile(running, monkeypatch):
    monkeypatch.setattr(controller_module, "DEBOUNCE_SECONDS", 0.5)
    api, _, reconciles = running
    for version in range(20, 25):
        api.change(SERVICE, version)
        await asyncio.sleep(0)
    assert reconciles() == 1
    await until(lambda: reconciles() == 2)
    await asyncio.sleep(0.2)
    assert reconciles() == 2


async def test_a_change_of_readiness_is_not_debounced(running, monkeypatch):
    monkeypatch.setattr(controller_module, "DEBOUNCE_SECONDS", 3600)
    api, _, reconciles = running
    for version, ready in ((30, "False"), (31, "True")):
        api.change(POD, version, status={"conditions": [{"type": "Ready", "status": ready}]})
    await until(lambda: reconciles() == 2)


async def test_many_reconciles_let_other_tasks_run(running):
    """The renewal of the lease is such a task."""
    _, controller, reconciles = running
    for number in range(100):
        metadata = {**TERMINATING["metadata"], "name": f"e-{number}", "uid": f"u-{number}"}
        controller.on_upsert({"metadata": metadata})
    counts = set()
    while reconciles() < 101:
        counts.add(reconciles())
        await asyncio.sleep(0)
    assert len(counts) > 10
