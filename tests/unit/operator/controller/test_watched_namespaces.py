"""Watched namespaces: one that is gone, or closed to the operator, stops no other."""

import asyncio
import contextlib

import pytest

import vllmendpoint_operator.cache.informer as store_module
import vllmendpoint_operator.controller.watched_namespaces as watched_namespaces
from tests.unit.operator.raw_objects import list_stream
from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.controller.watched_namespaces import WatchedNamespaces
from vllmendpoint_operator.errors import KubeError, NotFound, Rejected
from vllmendpoint_operator.kube.kinds import DEPLOYMENT, ENDPOINT, SERVICE
from vllmendpoint_operator.metrics import Metrics


class Api:
    """Empty namespaces. ``answers``: what lists and watches of a namespace raise, by namespace and kind."""

    def __init__(self):
        self.answers = {}
        self.asked = []
        self.broken = asyncio.Event()

    def close(self, namespace, error, *kinds):
        for kind in kinds or (None,):
            self.answers[namespace, kind] = error
        self.broken.set()

    def open(self, namespace):
        self.answers = {key: error for key, error in self.answers.items() if key[0] != namespace}

    def _answer(self, kind, namespace):
        for key in ((namespace, None), (namespace, kind)):
            if key in self.answers:
                raise self.answers[key]

    @contextlib.asynccontextmanager
    async def list_stream(self, kind, namespace, **options):
        self.asked.append((kind, namespace))
        self._answer(kind, namespace)
        async with list_stream() as found:
            yield found

    async def watch(self, kind, namespace, version, **options):
        self._answer(kind, namespace)
        self.broken.clear()
        await self.broken.wait()
        self._answer(kind, namespace)
        await asyncio.Event().wait()
        yield


FORBIDDEN = Rejected(403, 'pods is forbidden: User "x" cannot list resource "pods"')


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    for name in ("_RECHECK_MIN_SECONDS", "_RECHECK_MAX_SECONDS"):
        monkeypatch.setattr(watched_namespaces, name, 0.02)
    for name in ("_FIRST_RETRY_SECONDS", "_MAX_RETRY_SECONDS"):
        monkeypatch.setattr(store_module, name, 0.01)


class World:
    def __init__(self, *names):
        self.api, self.metrics, self.heard = Api(), Metrics(), []
        self.cache = Cache(self.api, names, on_change=lambda *_: None, on_reference_change=lambda *_: None)
        self.namespaces = WatchedNamespaces(
            self.api,
            self.cache,
            self.metrics,
            names,
            on_workload_synced=self.hear("workload"),
            on_synced=lambda namespace: self.heard.append(("served", namespace.name)),
            on_access_lost=self.hear("lost"),
        )

    def hear(self, what):
        async def heard(namespace):
            self.heard.append((what, namespace.name))

        return heard

    def gauge(self, namespace):
        labels = {"watched_namespace": namespace}
        return self.metrics.registry.get_sample_value("vllmendpoint_operator_namespace_served", labels)


@pytest.fixture
async def world():
    tasks = []

    def make(*names, before=lambda world: None):
        made = World(*names)
        before(made)
        tasks.append(asyncio.create_task(made.namespaces.run()))
        return made

    yield make
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(holds):
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("error", [FORBIDDEN, NotFound(404, "the namespace was not found")])
async def test_a_namespace_that_is_gone_at_the_start_stops_no_other(world, caplog, error):
    made = world("x", "y", before=lambda made: made.api.close("y", error))
    await asyncio.wait_for(made.namespaces.wait_until_ready(), 5)
    assert made.namespaces.served == ("x",)
    assert made.namespaces.serves("x")
    assert not made.namespaces.serves("y")
    assert (made.gauge("x"), made.gauge("y")) == (1, 0)
    assert error.message in made.namespaces.failures["y"]
    asked = len(made.api.asked)
    await until(lambda: len(made.api.asked) > asked + 2)
    assert caplog.text.count("the namespace y is not served") == 1, "said once, whatever is asked meanwhile"


async def test_it_is_served_again_when_it_returns(world):
    made = world("x", "y", before=lambda made: made.api.close("y", FORBIDDEN))
    await asyncio.wait_for(made.namespaces.wait_until_ready(), 5)
    assert await made.namespaces.wait_until_accessible() == ("x",)
    made.api.open("y")
    await asyncio.wait_for(made.namespaces.wait_for_other_than(("x",)), 5)
    assert made.namespaces.served == ("x", "y")
    assert made.gauge("y") == 1
    assert made.namespaces.failures == {}


async def test_one_that_is_lost_while_it_is_served_is_forgotten(world, caplog):
    made = world("x", "y")
    await asyncio.wait_for(made.namespaces.wait_until_ready(), 5)
    assert await made.namespaces.wait_until_accessible() == ("x", "y")
    made.api.close("y", FORBIDDEN)
    await asyncio.wait_for(made.namespaces.wait_for_other_than(("x", "y")), 5)
    assert await made.namespaces.wait_until_accessible() == ("x",)
    await until(lambda: ("lost", "y") in made.heard)
    assert made.namespaces.ready, "the rest is served"
    assert not any(store.has_synced.is_set() for store in made.cache.informers_of("y"))
    made.api.open("y")
    await until(lambda: made.heard.count(("served", "y")) == 2)
    assert caplog.text.count("the namespace y is not served") == 1


async def test_one_kind_that_is_refused_is_enough(world):
    """A reconcile that does not see it would make what is there already."""
    made = world("x", "y", before=lambda made: made.api.close("y", FORBIDDEN, SERVICE))
    await asyncio.wait_for(made.namespaces.wait_until_ready(), 5)
    assert made.namespaces.served == ("x",)
    assert made.namespaces.failures["y"].startswith("services: 403")


async def test_it_is_not_ready_where_nothing_can_be_served(world):
    made = world(before=lambda made: made.api.close(None, FORBIDDEN, SERVICE))
    await until(lambda: made.namespaces.failures)
    assert not made.namespaces.ready
    assert made.gauge("*") == 0
    made.api.open(None)
    await asyncio.wait_for(made.namespaces.wait_until_ready(), 5)
    assert made.gauge("*") == 1
    assert made.namespaces.serves("any")


async def test_one_whose_lists_fail_is_not_waited_for(world, monkeypatch):
    """An object that cannot be decoded fails the lists of its namespace, and of no other."""
    monkeypatch.setattr(watched_namespaces, "_SYNC_TIMEOUT_SECONDS", 0.1)
    made = world("x", "y", before=lambda made: made.api.close("y", KubeError(500, "x"), SERVICE, DEPLOYMENT))
    await until(lambda: made.namespaces.served == ("x",))
    assert not made.namespaces.ready, "it may be listed in a moment"
    await asyncio.wait_for(made.namespaces.wait_until_ready(), 5)
    assert "deployments, services could not be listed" in made.namespaces.failures["y"]
    made.api.open("y")
    await until(lambda: made.namespaces.served == ("x", "y"))


async def test_a_crd_that_is_missing_says_nothing_of_the_namespace(world):
    made = world("x", before=lambda made: made.api.close("x", NotFound(404, "no such resource"), ENDPOINT))
    await asyncio.wait_for(made.namespaces.wait_until_ready(), 5)
    assert made.namespaces.served == ("x",)
