"""What the stores hold, whom they tell, and when."""

import contextlib

import pytest

from tests.unit.operator.raw_objects import raw_object
from vllmendpoint_api import names
from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.controller.endpoint_store import EndpointStore
from vllmendpoint_operator.errors import Gone, Inaccessible, KubeError, NotFound, Rejected, Throttled
from vllmendpoint_operator.kube.kinds import CLAIM, CONFIG_MAP, MANAGED, POD, REPLICA_SET, SERVICE


def obj(name="s", *, instance="e", uid="u1", version=1, **more):
    labels = {names.LABEL_INSTANCE: instance, names.LABEL_MANAGED_BY: names.MANAGED_BY}
    metadata = {
        "namespace": "ns",
        "name": name,
        "uid": uid,
        "resourceVersion": str(version),
        "labels": labels,
    }
    return {"metadata": {**metadata, "managedFields": [{}]}, **more}


class Api:
    """Scripted answers: each list, then each watch, is the next in line."""

    def __init__(self, lists=(), watches=()):
        self.lists, self.watches = list(lists), list(watches)
        self.asked = []

    @contextlib.asynccontextmanager
    async def list_stream(self, kind, namespace, **options):
        self.asked.append(("list", None))
        if not self.lists:
            raise StopTest
        answer = self.lists.pop(0)
        if isinstance(answer, Exception):
            raise answer
        yield "10", self.items(answer)

    async def items(self, answer):
        for item in answer:
            if isinstance(item, Exception):
                raise item
            yield raw_object(item)

    async def watch(self, kind, namespace, version, **options):
        self.asked.append(("watch", version))
        if not self.watches:
            raise StopTest
        for item in self.watches.pop(0):
            if isinstance(item, Exception):
                raise item
            event, obj = item
            yield event, raw_object(obj)


class StopTest(Exception):
    pass


@pytest.fixture
def told():
    return []


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    """Seconds that were slept; none is."""
    found = []

    async def sleep(seconds):
        found.append(seconds)

    monkeypatch.setattr("vllmendpoint_operator.cache.informer.asyncio.sleep", sleep)
    return found


@pytest.fixture
def store(told):
    def make(api, kind=SERVICE):
        cache = Cache(
            api,
            (),
            on_change=lambda owner, urgent: told.append((owner, urgent)),
            on_reference_change=lambda kind, key: told.append((kind, key)),
        )
        api.cache = cache
        # Of the kinds that users refer to, the store of what is not ours.
        return [store for store in cache.informers if store.kind is kind][-1]

    return make


async def run(store):
    with pytest.raises(StopTest):
        await store.run()


async def test_lists_then_watches(store, told):
    changes = [("MODIFIED", obj(version=11)), ("DELETED", obj(version=12)), ("ADDED", obj("t", version=13))]
    services = store(api := Api([[obj()]], [changes]))
    assert not services.has_synced.is_set()
    await run(services)
    assert services.has_synced.is_set()
    assert [o["metadata"]["name"] for o in services.by_owner(("ns", "e"))] == ["t"]
    assert told == [(("ns", "e"), False)] * 4
    assert api.asked[-1] == ("watch", "13"), "it goes on from where the last stream ended"
    assert "managedFields" not in services.get(("ns", "t"))["metadata"]


async def test_half_a_list_says_nothing_of_what_is_not_in_it(store, told):
    cut = [obj("b", version=2), KubeError(0, "cut")]
    services = store(Api([[obj("a"), obj("b", version=2)], cut], [[Gone(410, "old")]]))
    await run(services)
    assert services.get(("ns", "a")) is not None
    assert len(told) == 2, "that they came"
    assert not services._list_slots.locked(), "room for others"


async def test_what_was_made_anew_ahead_of_the_watch_outlives_the_news_of_the_old_ones_end(store, told):
    services = store(Api([[obj(uid="u2", version=12)]], [[("DELETED", obj(uid="u1", version=11))]]))
    await run(services)
    assert services.get(("ns", "s"))["metadata"]["uid"] == "u2"
    assert len(told) == 1, "that it came"


async def test_what_vanished_during_a_gap_is_noticed(store, told):
    services = store(Api([[obj("a"), obj("b", version=2)], [obj("b", version=2)]], [[Gone(410, "old")]]))
    await run(services)
    assert services.get(("ns", "a")) is None
    assert len(told) == 3, "came, came, went"


async def test_a_failed_list_is_tried_again(store):
    services = store(Api([KubeError(500, "x"), KubeError(0, "y"), [obj()]]))
    await run(services)
    assert services.has_synced.is_set()


@pytest.mark.parametrize("refusal", [Rejected(403, "forbidden"), NotFound(404, "no such namespace")])
async def test_a_refusal_that_lasts_ends_it(store, refusal, caplog):
    with pytest.raises(Inaccessible, match=f"services: {refusal.status}: {refusal.message}"):
        await store(Api([[obj()]], [[refusal], [refusal], [refusal]])).run()
    assert caplog.text == "", "it is said of the whole namespace, and once"


async def test_refusals_now_and_then_end_nothing(store):
    """An API server that starts refuses what it will allow in a moment."""
    refusal, other = Rejected(403, "RBAC: role not found"), KubeError(500, "x")
    await run(store(Api([refusal, refusal, [obj()]], [[refusal], [refusal], [], [refusal], [other]])))


async def test_what_was_listed_can_be_forgotten(store, told):
    services = store(Api([[obj()]]))
    await run(services)
    told.clear()
    services.clear()
    assert not services.has_synced.is_set()
    assert services.get(("ns", "s")) is None
    assert list(services.by_owner(("ns", "e"))) == []
    assert told == []


async def test_streams_that_end_at_once_are_not_asked_for_in_a_tight_loop(store, slept):
    """Orderly, or as too old, as a server on its way up or down does."""
    await run(store(Api([[]] * 4, [[], [], [Gone(410, "old")], [Gone(410, "old")], [Gone(410, "old")], []])))
    assert len(slept) == 6
    for number, seconds in enumerate(slept):
        ceiling = min(30, 0.5 * 2**number)
        assert ceiling / 2 <= seconds <= ceiling
    slept.clear()
    news = [("MODIFIED", obj(version=11))]
    await run(store(Api([[]], [[], [], [], news, []])))
    assert slept[3] <= 0.5, "a stream that told something was a good one"


async def test_the_server_is_given_the_time_that_it_asks_for(store, slept):
    throttled = Throttled(429, "too many", retry_after=7)
    await run(store(Api([throttled, []], [[throttled], []])))
    assert slept[0] == slept[1] == 7
    assert slept[2] < 7


async def test_old_news_is_no_news(store, told):
    services = store(Api([[obj(version=5)]], [[("MODIFIED", obj(version=4)), ("MODIFIED", obj(version=5))]]))
    await run(services)
    assert len(told) == 1


async def test_the_answer_to_our_own_write_is_no_news(store, told):
    services = store(Api([[obj(version=5)]], [[("MODIFIED", obj(version=6))]]))
    services.apply_local_write(obj(version=6))
    await run(services)
    assert told == []


async def test_an_answer_that_comes_after_the_end_of_the_object_brings_nothing_back(store):
    services = store(Api([[obj(version=5)]], [[("DELETED", obj(version=7))]]))
    await run(services)
    services.apply_local_write(obj(version=6))
    assert services.get(("ns", "s")) is None
    services.apply_local_write(obj(uid="u2", version=8))
    assert services.get(("ns", "s"))["metadata"]["uid"] == "u2"


async def test_another_object_under_the_name_is_another(store, told):
    services = store(Api([[obj(version=5)]], [[("ADDED", obj(uid="u2", version=4))]]))
    await run(services)
    assert services.get(("ns", "s"))["metadata"]["uid"] == "u2"


async def test_an_object_whose_label_was_changed_is_told_to_both_and_left_by_none(store, told):
    taken = [("MODIFIED", obj(instance="other", version=6))]
    services = store(Api([[obj(version=5)]], [taken]))
    await run(services)
    assert told == [(("ns", "e"), False), (("ns", "other"), False), (("ns", "e"), False)]
    assert list(services.by_owner(("ns", "e"))) == []
    services = store(Api([[obj(version=5)]], [taken, [("DELETED", obj(instance="other", version=7))]]))
    await run(services)
    assert list(services.by_owner(("ns", "e"))) == []
    assert list(services.by_owner(("ns", "other"))) == []


@pytest.mark.parametrize(
    ("before", "after", "urgent"), [("False", "True", True), ("True", "False", True), ("True", "True", False)]
)
async def test_readiness_is_urgent(store, told, before, after, urgent):
    def pod(ready, version):
        return obj(version=version, status={"conditions": [{"type": "Ready", "status": ready}]})

    pods = store(Api([[pod(before, 1)]], [[("MODIFIED", pod(after, 11))]]), POD)
    await run(pods)
    assert told[-1] == (("ns", "e"), urgent)


async def test_references_and_replica_sets_are_trimmed(store, told):
    maps = store(api := Api([[obj("c", data={"secret": "x"})]]), CONFIG_MAP)
    await run(maps)
    assert set(maps.get(("ns", "c"))) == {"metadata"}
    assert set(maps.get(("ns", "c"))["metadata"]) == {"namespace", "name", "uid", "resourceVersion"}
    assert told == [("ConfigMap", ("ns", "c"))]
    assert api.cache.reference(CONFIG_MAP, ("ns", "c")) == "u1/1"
    assert api.cache.reference(CONFIG_MAP, ("ns", "d")) is None
    template = {"spec": {"volumes": [{"name": "v"}], "containers": [{"name": "main"}]}}
    sets = store(Api([[obj("r", spec={"replicas": 2, "template": template})]]), REPLICA_SET)
    await run(sets)
    assert sets.get(("ns", "r"))["spec"] == {
        "replicas": 2,
        "template": {"spec": {"volumes": [{"name": "v"}]}},
    }


def test_endpoints_take_only_what_is_newer():
    endpoints = EndpointStore()
    assert endpoints.upsert(obj("e", version=5, spec={}))
    assert not endpoints.upsert(obj("e", version=5, spec={}))
    assert not endpoints.upsert(obj("e", version=4, spec={}))
    assert endpoints.upsert(obj("e", uid="u2", version=9, spec={}))
    assert not endpoints.upsert(obj("e", uid="u1", version=7, spec={})), "late news of the one before"
    assert not endpoints.delete(("ns", "e"), "u1")
    assert endpoints.get(("ns", "e"))["metadata"]["uid"] == "u2"
    assert endpoints.delete(("ns", "e"), "u2")


@pytest.mark.parametrize(
    ("spec", "kind", "name"),
    [
        ({"model": {"uri": "pvc://c/p"}}, "PersistentVolumeClaim", "c"),
        (
            {"model": {"uri": "hf://o/n"}, "cache": {"persistentVolumeClaim": {"claimName": "c"}}},
            "PersistentVolumeClaim",
            "c",
        ),
        (
            {"model": {"uri": "hf://o/n"}, "engine": {"config": {"configMapKeyRef": {"name": "c"}}}},
            "ConfigMap",
            "c",
        ),
    ],
)
def test_who_refers_to_what(spec, kind, name):
    endpoints = EndpointStore()
    endpoints.upsert(obj("e", spec=spec))
    endpoints.upsert(obj("f", spec={"model": "unreadable"}))
    assert endpoints.referencing(kind, "ns", name) == [("ns", "e")]
    assert endpoints.referencing(kind, "ns", "other") == []
    assert endpoints.referencing(kind, "elsewhere", name) == []


@pytest.mark.parametrize("kind", [CONFIG_MAP, CLAIM])
async def test_users_may_refer_to_what_carries_our_label(store, told, kind):
    store(api := Api(), kind)
    ours = next(store for store in api.cache.informers if store.kind is kind)
    api.lists = [[obj("c", uid="u7", version=9)]]
    await run(ours)
    assert api.cache.reference(kind, ("ns", "c")) == "u7/9"
    assert told == [(("ns", "e"), False), (kind.kind, ("ns", "c"))]


@pytest.mark.parametrize("kind", [*MANAGED, POD])
async def test_all_of_what_is_compared_is_kept(store, kind):
    """Whatever its fields are called."""
    fields = {
        "apiVersion": "v1",
        "kind": "K",
        "data": {"a": "b"},
        "roleRef": {"n": 1},
        "anything": [None, 1.5],
    }
    store(api := Api([[obj(generateName="s-", **fields)]]), kind)
    ours = next(store for store in api.cache.informers if store.kind is kind)
    await run(ours)
    wanted = obj(generateName="s-", **fields)
    del wanted["metadata"]["managedFields"]
    assert ours.get(("ns", "s")) == wanted


async def test_what_belongs_to_an_endpoint_is_known_by_kind(store):
    store(api := Api())
    services, pods = (api.cache.informer(kind, "ns") for kind in (SERVICE, POD))
    for name in ("a", "b"):
        services.apply_local_write(obj(name))
    pods.apply_local_write(obj("a", instance="f"))
    pods.apply_local_write(obj("c"))
    services.apply_local_delete(("ns", "a"))

    def of(store, endpoint):
        return [found["metadata"]["name"] for found in store.by_owner(("ns", endpoint))]

    assert (of(services, "e"), of(pods, "e")) == (["b"], ["c"])
    assert (of(services, "f"), of(pods, "f")) == ([], ["a"])
    assert (("ns", "b") in services, ("ns", "a") in services, ("other", "b") in services) == (
        True,
        False,
        False,
    )
