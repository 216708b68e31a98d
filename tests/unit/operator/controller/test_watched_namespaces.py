"""A watched namespace that is deleted or forbidden does not affect the other ones."""

import asyncio
import contextlib

import pytest

import vllmendpoint_operator.cache.informer as informer_module
import vllmendpoint_operator.controller.watched_namespaces as watched_namespaces
from tests.unit.operator.raw_objects import list_stream
from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.controller.watched_namespaces import WatchedNamespaces
from vllmendpoint_operator.errors import Inaccessible, KubeError, NotFound, Rejected
from vllmendpoint_operator.kube.kinds import DEPLOYMENT, ENDPOINT, SERVICE
from vllmendpoint_operator.metrics import Metrics


class Api:
    """Empty namespaces. ``errors``: what lists and watches raise, by (namespace, kind or None for all)."""

    def __init__(self):
        self.errors = {}
        self.requests = []
        self.watches_end = asyncio.Event()

    def deny(self, namespace, error, *kinds):
        for kind in kinds or (None,):
            self.errors[namespace, kind] = error
        self.watches_end.set()

    def allow(self, namespace):
        self.errors = {key: error for key, error in self.errors.items() if key[0] != namespace}

    def _raise_error(self, kind, namespace):
        for key in ((namespace, None), (namespace, kind)):
            if key in self.errors:
                raise self.errors[key]

    @contextlib.asynccontextmanager
    async def list_stream(self, kind, namespace, **options):
        self.requests.append((kind, namespace))
        self._raise_error(kind, namespace)
        async with list_stream() as found:
            yield found

    async def watch(self, kind, namespace, version, **options):
        self._raise_error(kind, namespace)
        self.watches_end.clear()
        await self.watches_end.wait()
        self._raise_error(kind, namespace)
        await asyncio.Event().wait()
        yield


FORBIDDEN = Rejected(403, 'pods is forbidden: User "x" cannot list resource "pods"')


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    for name in ("_RECHECK_MIN_SECONDS", "_RECHECK_MAX_SECONDS"):
        monkeypatch.setattr(watched_namespaces, name, 0.02)
    for name in ("_FIRST_RETRY_SECONDS", "_MAX_RETRY_SECONDS"):
        monkeypatch.setattr(informer_module, name, 0.01)


class Setup:
    def __init__(self, *names):
        self.api, self.metrics, self.callbacks = Api(), Metrics(), []
        self.cache = Cache(self.api, names, on_change=lambda *_: None, on_reference_change=lambda *_: None)
        self.namespaces = WatchedNamespaces(
            self.api,
            self.cache,
            self.metrics,
            names,
            on_workload_synced=self.record("workload"),
            on_synced=lambda namespace: self.callbacks.append(("served", namespace.name)),
            on_access_lost=self.record("lost"),
        )

    def record(self, event):
        async def callback(namespace):
            self.callbacks.append((event, namespace.name))

        return callback

    def gauge(self, namespace):
        labels = {"watched_namespace": namespace}
        return self.metrics.registry.get_sample_value("vllmendpoint_operator_namespace_served", labels)


@pytest.fixture
async def start():
    tasks = []

    def create(*names, before=lambda setup: None):
        setup = Setup(*names)
        before(setup)
        tasks.append(asyncio.create_task(setup.namespaces.run()))
        return setup

    yield create
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def logged_failures(caplog):
    """The namespaces in the log lines about a namespace that is not served."""
    lines = [
        record for record in caplog.records if record.message.startswith("a watched namespace is not served")
    ]
    return [record.watched_namespace for record in lines]


@pytest.mark.parametrize("error", [FORBIDDEN, NotFound(404, "the namespace was not found")])
async def test_an_inaccessible_namespace_does_not_delay_the_others(start, caplog, error):
    setup = start("x", "y", before=lambda setup: setup.api.deny("y", error))
    await asyncio.wait_for(setup.namespaces.wait_until_ready(), 5)
    assert setup.namespaces.served == ("x",)
    assert setup.namespaces.serves("x")
    assert not setup.namespaces.serves("y")
    assert (setup.gauge("x"), setup.gauge("y")) == (1, 0)
    assert error.message in setup.namespaces.failures["y"]
    requests = len(setup.api.requests)
    await until(lambda: len(setup.api.requests) > requests + 2)
    assert logged_failures(caplog) == ["y"], "repeated checks log nothing more"


async def test_a_namespace_is_served_when_it_becomes_accessible(start):
    setup = start("x", "y", before=lambda setup: setup.api.deny("y", FORBIDDEN))
    await asyncio.wait_for(setup.namespaces.wait_until_ready(), 5)
    assert await setup.namespaces.wait_until_accessible() == ("x",)
    setup.api.allow("y")
    await asyncio.wait_for(setup.namespaces.wait_for_other_than(("x",)), 5)
    assert setup.namespaces.served == ("x", "y")
    assert setup.gauge("y") == 1
    assert setup.namespaces.failures == {}


async def test_losing_access_clears_the_caches_of_the_namespace(start, caplog):
    setup = start("x", "y")
    await asyncio.wait_for(setup.namespaces.wait_until_ready(), 5)
    assert await setup.namespaces.wait_until_accessible() == ("x", "y")
    setup.api.deny("y", FORBIDDEN)
    await asyncio.wait_for(setup.namespaces.wait_for_other_than(("x", "y")), 5)
    assert await setup.namespaces.wait_until_accessible() == ("x",)
    await until(lambda: ("lost", "y") in setup.callbacks)
    assert setup.namespaces.ready, "x is served"
    assert not any(informer.has_synced.is_set() for informer in setup.cache.informers_of("y"))
    setup.api.allow("y")
    await until(lambda: setup.callbacks.count(("served", "y")) == 2)
    assert logged_failures(caplog) == ["y"]


async def test_a_namespace_is_inaccessible_if_one_kind_is_forbidden(start):
    """A reconcile that cannot see a kind would create objects that exist."""
    setup = start("x", "y", before=lambda setup: setup.api.deny("y", FORBIDDEN, SERVICE))
    await asyncio.wait_for(setup.namespaces.wait_until_ready(), 5)
    assert setup.namespaces.served == ("x",)
    assert setup.namespaces.failures["y"].startswith("services: 403")


async def test_not_ready_if_no_namespace_is_accessible(start):
    setup = start(before=lambda setup: setup.api.deny(None, FORBIDDEN, SERVICE))
    await until(lambda: setup.namespaces.failures)
    assert not setup.namespaces.ready
    assert setup.gauge("*") == 0
    setup.api.allow(None)
    await asyncio.wait_for(setup.namespaces.wait_until_ready(), 5)
    assert setup.gauge("*") == 1
    assert setup.namespaces.serves("any")


async def test_a_namespace_whose_lists_fail_does_not_delay_the_others_forever(start, monkeypatch):
    """An object that the API server cannot decode fails the lists of its namespace only."""
    monkeypatch.setattr(watched_namespaces, "_SYNC_TIMEOUT_SECONDS", 0.1)
    setup = start(
        "x", "y", before=lambda setup: setup.api.deny("y", KubeError(500, "x"), SERVICE, DEPLOYMENT)
    )
    await until(lambda: setup.namespaces.served == ("x",))
    assert not setup.namespaces.ready, "the lists of y may still succeed"
    await asyncio.wait_for(setup.namespaces.wait_until_ready(), 5)
    assert "deployments, services could not be listed" in setup.namespaces.failures["y"]
    setup.api.allow("y")
    await until(lambda: setup.namespaces.served == ("x", "y"))


async def test_a_missing_crd_does_not_make_a_namespace_inaccessible(start):
    setup = start("x", before=lambda setup: setup.api.deny("x", NotFound(404, "no such resource"), ENDPOINT))
    await asyncio.wait_for(setup.namespaces.wait_until_ready(), 5)
    assert setup.namespaces.served == ("x",)


async def test_a_cancellation_while_access_is_lost_ends_the_watches():
    """A TaskGroup that waits for its other tasks after an error drops a cancellation in Python 3.11."""
    waiting, released = asyncio.Event(), asyncio.Event()

    class Slow(Api):
        async def watch(self, kind, namespace, version, **options):
            if kind is SERVICE:
                raise Inaccessible(SERVICE.plural, FORBIDDEN)
            try:
                await asyncio.Event().wait()
            finally:
                waiting.set()
                await released.wait()
            yield

    setup = Setup("ns")
    api = Slow()
    cache = Cache(api, ("ns",), on_change=lambda *_: None, on_reference_change=lambda *_: None)
    namespaces = WatchedNamespaces(api, cache, setup.metrics, ("ns",))
    running = asyncio.create_task(namespaces.run())
    async with asyncio.timeout(5):
        await waiting.wait()
    running.cancel()
    await asyncio.sleep(0)
    released.set()
    done, _ = await asyncio.wait({running}, timeout=2)
    assert done, "the watches go on after the cancellation"
    assert running.cancelled()
