"""Two operators that watch one namespace: one manages an endpoint, the other one leaves it alone."""

import contextlib
from collections import Counter

import pytest

from vllmendpoint_api import names
from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.controller.endpoint_store import EndpointStore
from vllmendpoint_operator.controller.reconcile import Reconciler
from vllmendpoint_operator.errors import Conflict, NotFound
from vllmendpoint_operator.kube.kinds import ENDPOINT
from vllmendpoint_operator.metrics import Metrics
from vllmendpoint_operator.observe.observer import Observer
from vllmendpoint_operator.plan import Options
from vllmendpoint_operator.reports.streams import ReportStreams

KEY = ("ns", "e")
FIRST, SECOND, THIRD = "a/vllm", "b/vllm", "c/vllm"


class Server:
    """One endpoint as the API server keeps it: a status apply needs the newest version, and each field
    manager has its own conditions."""

    def __init__(self):
        self.version = 5
        self.annotations = {}
        self.spec = {"model": {"uri": "hf://o/n"}}
        self.by_manager = {}
        self.writes = Counter()
        self.children = {}

    @property
    def object(self):
        status, conditions = {}, {}
        for part in self.by_manager.values():
            status |= part
            conditions |= {entry["type"]: entry for entry in part.get("conditions", [])}
        if conditions:
            status["conditions"] = list(conditions.values())
        metadata = {"namespace": "ns", "name": "e", "uid": "u", "generation": 1}
        metadata |= {"resourceVersion": str(self.version), "annotations": dict(self.annotations)}
        return {"metadata": metadata, "spec": self.spec, "status": status}

    @property
    def conflict(self):
        found = [entry for entry in self.object["status"].get("conditions", []) if entry["type"] == CONFLICT]
        return found[0] if found else None

    def annotate(self, operator):
        self.version += 1
        self.annotations = {names.ANNOTATION_OPERATOR: operator} if operator else {}


CONFLICT = names.CONDITION_OPERATOR_CONFLICT


class Client:
    """The API as one operator has it."""

    def __init__(self, server, who):
        self.server, self.who = server, who

    async def list(self, kind, namespace, **options):
        return [self.server.object], "1"

    async def get(self, kind, namespace, name):
        raise NotFound(404, "no")

    async def apply(self, kind, body, *, subresource=None, manager="", dry_run=False, on_warning=None):
        server = self.server
        if kind is not ENDPOINT:
            server.writes[self.who, "children"] += 1
            server.version += 1
            metadata = {**body["metadata"], "uid": body["metadata"]["name"]}
            return {**body, "metadata": metadata | {"resourceVersion": str(server.version)}}
        assert subresource == "status"
        server.writes[self.who, "status"] += 1
        if body["metadata"]["resourceVersion"] != str(server.version):
            raise Conflict(409, "the object has been modified")
        before = server.object
        server.by_manager[manager] = body["status"]
        if server.object != before:
            server.version += 1
        return server.object

    async def create(self, kind, body):
        self.server.writes[self.who, "events"] += 1


class Operator:
    def __init__(self, server, who, streams, cache=None):
        self.server, self.endpoints, self.metrics = server, EndpointStore(), Metrics()
        api = Client(server, who)
        self.cache = cache = cache or Cache(
            api, (), on_change=lambda *_: None, on_reference_change=lambda *_: None
        )
        self.reconciler = Reconciler(
            kube=api,
            cache=cache,
            observer=Observer(api, cache, streams),
            endpoints=self.endpoints,
            options=Options("image"),
            metrics=self.metrics,
            reporting_instance=who,
            operator=who,
        )

    def see(self):
        self.endpoints.upsert(self.server.object)

    async def look(self):
        self.see()
        return await self.reconciler.reconcile(KEY)

    @property
    def foreign(self):
        return self.metrics.registry.get_sample_value("vllmendpoint_operator_foreign_endpoints")

    @property
    def shows(self):
        return b'name="e"' in b"".join(self.metrics.exposition())


@pytest.fixture
async def world():
    async with contextlib.AsyncExitStack() as stack:
        server = Server()

        async def start(who, cache=None):
            streams = await stack.enter_async_context(ReportStreams(lambda *_: None))
            return Operator(server, who, streams, cache)

        yield server, start


async def settle(server, *operators):
    """Every look of each, until none writes anything more."""
    for _ in range(10):
        before = server.writes.total()
        for operator in operators:
            await operator.look()
            operator.reconciler._limiters.clear()
        if server.writes.total() == before:
            return
    raise AssertionError(server.writes)


async def test_the_first_to_claim_it_manages_it(world):
    server, start = world
    first, second = await start(FIRST), await start(SECOND)
    await settle(server, first, second)
    assert server.object["status"]["operator"] == FIRST
    assert server.writes[FIRST, "children"] > 5
    assert server.writes[SECOND, "children"] == server.writes[SECOND, "events"] == 0
    assert server.writes[SECOND, "status"] == 1, "one condition, once"
    assert f"it is managed by {FIRST} (status.operator)" in server.conflict["message"]
    assert f"annotate it with serving.vllmendpoint.dev/operator={SECOND}" in server.conflict["message"]
    assert (first.foreign, second.foreign) == (0, 1)
    assert (first.shows, second.shows) == (True, False), "one of them exports the endpoint's conditions"


async def test_of_two_that_see_a_new_endpoint_at_one_time_one_makes_its_children(world):
    server, start = world
    first, second = await start(FIRST), await start(SECOND)
    first.see()
    second.see()
    await first.reconciler.reconcile(KEY)
    assert await second.reconciler.reconcile(KEY) is not None, "it looks again: its claim conflicts"
    assert server.writes[SECOND, "children"] == 0
    await settle(server, first, second)
    assert server.object["status"]["operator"] == FIRST
    assert server.writes[SECOND, "children"] == 0


async def test_an_endpoint_of_an_earlier_version_is_claimed_with_the_status_that_it_has(world):
    server, start = world
    first = await start(FIRST)
    await settle(server, first)
    (status,) = server.by_manager.values()
    conditions = status["conditions"]
    server.by_manager = {"vllmendpoint-operator": {k: v for k, v in status.items() if k != "operator"}}
    server.writes.clear()
    again = await start(FIRST, first.cache)
    await settle(server, again)
    assert server.object["status"]["operator"] == FIRST
    assert server.object["status"]["conditions"] == conditions


async def test_the_first_status_of_a_refused_spec_is_the_claim(world):
    server, start = world
    server.spec = {**server.spec, "novelty": 1}
    first, second = await start(FIRST), await start(SECOND)
    first.see()
    second.see()
    await first.reconciler.reconcile(KEY)
    assert server.writes[FIRST, "status"] == 1
    await second.reconciler.reconcile(KEY)
    await settle(server, first, second)
    assert server.object["status"]["operator"] == FIRST
    assert f"it is managed by {FIRST}" in server.conflict["message"]
    assert server.writes[FIRST, "children"] == server.writes[SECOND, "children"] == 0


async def test_the_annotation_hands_it_over_and_back(world):
    server, start = world
    first, second = await start(FIRST), await start(SECOND)
    await settle(server, first, second)
    for owner, other in ((SECOND, FIRST), (FIRST, SECOND)):
        server.annotate(owner)
        server.writes.clear()
        await settle(server, first, second)
        assert server.object["status"]["operator"] == owner
        assert server.writes[other, "children"] == 0
        assert f"The operator {other} watches this namespace too" in server.conflict["message"]
        assert f"it is managed by {owner} (annotation)" in server.conflict["message"]
    server.annotate("")
    server.writes.clear()
    await settle(server, first, second)
    assert server.object["status"]["operator"] == FIRST, "it stays with the one that has it"
    assert server.writes.total() == 0


async def test_handed_over_to_the_one_that_is_left_the_old_condition_goes(world):
    server, start = world
    first, second = await start(FIRST), await start(SECOND)
    await settle(server, first, second)
    server.annotate(SECOND)
    await settle(server, second)
    assert server.object["status"]["operator"] == SECOND
    assert server.conflict is None


async def test_assigned_from_the_beginning(world):
    server, start = world
    server.annotate(SECOND)
    first, second = await start(FIRST), await start(SECOND)
    await settle(server, first, second)
    assert server.object["status"]["operator"] == SECOND
    assert server.writes[FIRST, "children"] == 0


async def test_assigned_to_nobody_it_says_so_and_nobody_fights(world):
    server, start = world
    server.annotate("typo/vllm")
    operators = [await start(who) for who in (FIRST, SECOND, THIRD)]
    await settle(server, *operators)
    assert server.writes == {(FIRST, "status"): 1}, "the first one speaks for all"
    assert "it is managed by typo/vllm (annotation)" in server.conflict["message"]
    assert "operator" not in server.object["status"]


async def test_the_condition_goes_at_the_next_start_when_the_other_operator_is_gone(world):
    server, start = world
    first, second = await start(FIRST), await start(SECOND)
    await settle(server, first, second)
    again = await start(FIRST, first.cache)
    await settle(server, again)
    assert server.conflict is None
    await settle(server, again, second)
    assert server.conflict is not None, "one that watches still says so again"


async def test_a_condition_that_cannot_be_removed_is_tried_once(world):
    """Somebody edited the status by hand, and owns it now."""
    server, start = world
    first, second = await start(FIRST), await start(SECOND)
    await settle(server, first, second)
    server.by_manager["kubectl-edit"] = {"conditions": [{**server.conflict, "message": "edited"}]}
    server.version += 1
    await settle(server, first)
    assert server.conflict["message"] == "edited"


async def test_a_reconcile_under_way_writes_no_child_after_it_was_handed_over(world):
    server, start = world
    first = await start(FIRST)
    apply = Client.apply
    done = []

    async def apply_then_annotate(self, kind, body, **options):
        answer = await apply(self, kind, body, **options)
        if kind is not ENDPOINT:
            done.append(body["kind"])
            server.annotate(SECOND)
            first.see()
        return answer

    first.reconciler._kube.apply = apply_then_annotate.__get__(first.reconciler._kube)
    await first.look()
    assert len(done) == 1
    assert server.writes[FIRST, "events"] == 0
