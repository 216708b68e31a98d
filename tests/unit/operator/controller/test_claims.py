"""If two operators watch one namespace, one manages an endpoint and the other one does not change it."""

import contextlib
import itertools
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
from vllmendpoint_operator.plan.options import Options
from vllmendpoint_operator.reports.streams import ReportStreams

KEY = ("ns", "e")
FIRST, SECOND, THIRD = "a/vllm", "b/vllm", "c/vllm"


class Server:
    """An API server with one endpoint.

    A status write needs the newest resourceVersion. Each field manager owns its conditions.
    """

    def __init__(self):
        self.version = 5
        self.annotations = {}
        self.spec = {"model": {"uri": "hf://o/n"}}
        self.status_by_manager = {}
        self.writes = Counter()
        self.children = {}

    @property
    def object(self):
        status, conditions = {}, {}
        for part in self.status_by_manager.values():
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
    """The client of one operator."""

    def __init__(self, server, operator):
        self.server, self.operator = server, operator

    async def list(self, kind, namespace, **options):
        return [self.server.object], "1"

    async def get(self, kind, namespace, name):
        raise NotFound(404, "no")

    async def apply(self, kind, body, *, subresource=None, manager="", dry_run=False, on_warning=None):
        server = self.server
        if kind is not ENDPOINT:
            server.writes[self.operator, "children"] += 1
            server.version += 1
            metadata = {**body["metadata"], "uid": body["metadata"]["name"]}
            return {**body, "metadata": metadata | {"resourceVersion": str(server.version)}}
        assert subresource == "status"
        server.writes[self.operator, "status"] += 1
        if body["metadata"]["resourceVersion"] != str(server.version):
            raise Conflict(409, "the object has been modified")
        before = server.object
        server.status_by_manager[manager] = body["status"]
        if server.object != before:
            server.version += 1
        return server.object

    async def create(self, kind, body):
        self.server.writes[self.operator, "events"] += 1


class Operator:
    def __init__(self, server, name, streams, cache=None):
        self.server, self.endpoints, self.metrics = server, EndpointStore(), Metrics()
        api = Client(server, name)
        self.cache = cache = cache or Cache(
            api, (), on_change=lambda *_: None, on_reference_change=lambda *_: None
        )
        self.reconciler = Reconciler(
            kube=api,
            cache=cache,
            observer=Observer(api, cache, streams),
            endpoints=self.endpoints,
            options=Options("image", "image"),
            metrics=self.metrics,
            reporting_instance=name,
            operator=name,
            clock=itertools.count(0, 3600).__next__,
        )

    def receive(self):
        self.endpoints.upsert(self.server.object)

    async def reconcile(self):
        self.receive()
        return await self.reconciler.reconcile(KEY)

    @property
    def foreign_endpoints(self):
        return self.metrics.registry.get_sample_value("vllmendpoint_operator_foreign_endpoints")

    @property
    def exports_conditions(self):
        return b'name="e"' in b"".join(self.metrics.exposition())


@pytest.fixture
async def server_and_start():
    async with contextlib.AsyncExitStack() as stack:
        server = Server()

        async def start(name, cache=None):
            streams = await stack.enter_async_context(ReportStreams(lambda *_: None))
            return Operator(server, name, streams, cache)

        yield server, start


async def reconcile_until_stable(server, *operators):
    """Reconcile with each operator until none of them writes."""
    for _ in range(10):
        before = server.writes.total()
        for operator in operators:
            await operator.reconcile()
        if server.writes.total() == before:
            return
    raise AssertionError(server.writes)


async def test_the_first_operator_that_claims_an_endpoint_manages_it(server_and_start):
    server, start = server_and_start
    first, second = await start(FIRST), await start(SECOND)
    await reconcile_until_stable(server, first, second)
    assert server.object["status"]["operator"] == FIRST
    assert server.writes[FIRST, "children"] > 5
    assert server.writes[SECOND, "children"] == server.writes[SECOND, "events"] == 0
    assert server.writes[SECOND, "status"] == 1, "one condition, once"
    assert f"it is managed by {FIRST} (status.operator)" in server.conflict["message"]
    assert f"set its annotation serving.vllmendpoint.dev/operator={SECOND}" in server.conflict["message"]
    assert (first.foreign_endpoints, second.foreign_endpoints) == (0, 1)
    assert (first.exports_conditions, second.exports_conditions) == (True, False), (
        "only the managing operator exports the conditions"
    )


async def test_of_two_operators_that_claim_a_new_endpoint_one_creates_its_children(server_and_start):
    server, start = server_and_start
    first, second = await start(FIRST), await start(SECOND)
    first.receive()
    second.receive()
    await first.reconciler.reconcile(KEY)
    assert await second.reconciler.reconcile(KEY) is not None, "the claim conflicts and is tried again"
    assert server.writes[SECOND, "children"] == 0
    await reconcile_until_stable(server, first, second)
    assert server.object["status"]["operator"] == FIRST
    assert server.writes[SECOND, "children"] == 0


async def test_a_claim_keeps_the_status_that_an_earlier_version_wrote(server_and_start):
    server, start = server_and_start
    first = await start(FIRST)
    await reconcile_until_stable(server, first)
    (status,) = server.status_by_manager.values()
    conditions = status["conditions"]
    server.status_by_manager = {"vllmendpoint-operator": {k: v for k, v in status.items() if k != "operator"}}
    server.writes.clear()
    again = await start(FIRST, first.cache)
    await reconcile_until_stable(server, again)
    assert server.object["status"]["operator"] == FIRST
    assert server.object["status"]["conditions"] == conditions


async def test_the_first_status_of_an_invalid_spec_is_the_claim(server_and_start):
    server, start = server_and_start
    server.spec = {**server.spec, "novelty": 1}
    first, second = await start(FIRST), await start(SECOND)
    first.receive()
    second.receive()
    await first.reconciler.reconcile(KEY)
    assert server.writes[FIRST, "status"] == 1
    await second.reconciler.reconcile(KEY)
    await reconcile_until_stable(server, first, second)
    assert server.object["status"]["operator"] == FIRST
    assert f"it is managed by {FIRST}" in server.conflict["message"]
    assert server.writes[FIRST, "children"] == server.writes[SECOND, "children"] == 0


async def test_the_annotation_transfers_an_endpoint_and_back(server_and_start):
    server, start = server_and_start
    first, second = await start(FIRST), await start(SECOND)
    await reconcile_until_stable(server, first, second)
    for owner, other in ((SECOND, FIRST), (FIRST, SECOND)):
        server.annotate(owner)
        server.writes.clear()
        await reconcile_until_stable(server, first, second)
        assert server.object["status"]["operator"] == owner
        assert server.writes[other, "children"] == 0
        assert f"The operator {other} also watches this namespace" in server.conflict["message"]
        assert f"it is managed by {owner} (annotation)" in server.conflict["message"]
    server.annotate("")
    server.writes.clear()
    await reconcile_until_stable(server, first, second)
    assert server.object["status"]["operator"] == FIRST, "it stays with the operator that manages it"
    assert server.writes.total() == 0


async def test_the_new_manager_removes_the_conflict_of_an_operator_that_is_gone(server_and_start):
    server, start = server_and_start
    first, second = await start(FIRST), await start(SECOND)
    await reconcile_until_stable(server, first, second)
    server.annotate(SECOND)
    await reconcile_until_stable(server, second)
    assert server.object["status"]["operator"] == SECOND
    assert server.conflict is None


async def test_the_annotation_of_a_new_endpoint_decides(server_and_start):
    server, start = server_and_start
    server.annotate(SECOND)
    first, second = await start(FIRST), await start(SECOND)
    await reconcile_until_stable(server, first, second)
    assert server.object["status"]["operator"] == SECOND
    assert server.writes[FIRST, "children"] == 0


async def test_an_unknown_operator_in_the_annotation_is_reported_once(server_and_start):
    server, start = server_and_start
    server.annotate("typo/vllm")
    operators = [await start(name) for name in (FIRST, SECOND, THIRD)]
    await reconcile_until_stable(server, *operators)
    assert server.writes == {(FIRST, "status"): 1}, "one condition is enough"
    assert "it is managed by typo/vllm (annotation)" in server.conflict["message"]
    assert "operator" not in server.object["status"]


async def test_a_start_removes_the_conflict_until_another_operator_reports_it_again(server_and_start):
    server, start = server_and_start
    first, second = await start(FIRST), await start(SECOND)
    await reconcile_until_stable(server, first, second)
    again = await start(FIRST, first.cache)
    await reconcile_until_stable(server, again)
    assert server.conflict is None
    await reconcile_until_stable(server, again, second)
    assert server.conflict is not None, "the second operator still watches the namespace"


async def test_a_conflict_owned_by_another_field_manager_is_removed_only_once(server_and_start):
    """A user edited the status, so that the user's field manager owns the condition."""
    server, start = server_and_start
    first, second = await start(FIRST), await start(SECOND)
    await reconcile_until_stable(server, first, second)
    server.status_by_manager["kubectl-edit"] = {"conditions": [{**server.conflict, "message": "edited"}]}
    server.version += 1
    await reconcile_until_stable(server, first)
    assert server.conflict["message"] == "edited"


async def test_a_running_reconcile_writes_nothing_after_a_transfer(server_and_start):
    server, start = server_and_start
    first = await start(FIRST)
    apply = Client.apply
    applied = []

    async def apply_then_annotate(self, kind, body, **options):
        response = await apply(self, kind, body, **options)
        if kind is not ENDPOINT:
            applied.append(body["kind"])
            server.annotate(SECOND)
            first.receive()
        return response

    first.reconciler._kube.apply = apply_then_annotate.__get__(first.reconciler._kube)
    await first.reconcile()
    assert len(applied) == 1
    assert server.writes[FIRST, "events"] == 0
