"""Informers: the objects they keep, and the changes they report."""

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
    """An API server with scripted responses to lists and watches."""

    def __init__(self, lists=(), watches=()):
        self.lists, self.watches = list(lists), list(watches)
        self.requests = []

    @contextlib.asynccontextmanager
    async def list_stream(self, kind, namespace, **options):
        self.requests.append(("list", None))
        if not self.lists:
            raise StopTest
        response = self.lists.pop(0)
        if isinstance(response, Exception):
            raise response
        yield "10", self.items(response)

    async def items(self, response):
        for item in response:
            if isinstance(item, Exception):
                raise item
            yield raw_object(item)

    async def watch(self, kind, namespace, version, **options):
        self.requests.append(("watch", version))
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
def changes():
    return []


@pytest.fixture(autouse=True)
def delays(monkeypatch):
    """The seconds of each requested sleep. The test does not sleep."""
    found = []

    async def sleep(seconds):
        found.append(seconds)

    monkeypatch.setattr("vllmendpoint_operator.cache.informer.asyncio.sleep", sleep)
    return found


@pytest.fixture
def make_informer(changes):
    def make(api, kind=SERVICE):
        cache = Cache(
            api,
            (),
            on_change=lambda owner, urgent: changes.append((owner, urgent)),
            on_reference_change=lambda kind, key: changes.append((kind, key)),
        )
        api.cache = cache
        # For ConfigMaps and claims, the informer of objects that users created.
        return [informer for informer in cache.informers if informer.kind is kind][-1]

    return make


async def run(informer):
    with pytest.raises(StopTest):
        await informer.run()


async def test_an_informer_lists_and_then_watches(make_informer, changes):
    events = [("MODIFIED", obj(version=11)), ("DELETED", obj(version=12)), ("ADDED", obj("t", version=13))]
    services = make_informer(api := Api([[obj()]], [events]))
    assert not services.has_synced.is_set()
    await run(services)
    assert services.has_synced.is_set()
    assert [o["metadata"]["name"] for o in services.by_owner(("ns", "e"))] == ["t"]
    assert changes == [(("ns", "e"), False)] * 4
    assert api.requests[-1] == ("watch", "13"), "the watch continues after the last event"
    assert "managedFields" not in services.get(("ns", "t"))["metadata"]


async def test_a_truncated_list_deletes_no_object(make_informer, changes):
    cut = [obj("b", version=2), KubeError(0, "cut")]
    services = make_informer(Api([[obj("a"), obj("b", version=2)], cut], [[Gone(410, "old")]]))
    await run(services)
    assert services.get(("ns", "a")) is not None
    assert len(changes) == 2, "only the two additions"
    assert not services._list_slots.locked(), "the slot of the failed list is free again"


async def test_a_late_deletion_event_does_not_delete_a_recreated_object(make_informer, changes):
    services = make_informer(Api([[obj(uid="u2", version=12)]], [[("DELETED", obj(uid="u1", version=11))]]))
    await run(services)
    assert services.get(("ns", "s"))["metadata"]["uid"] == "u2"
    assert len(changes) == 1, "only the addition"


async def test_a_deletion_that_the_watch_missed_is_found_by_the_next_list(make_informer, changes):
    services = make_informer(
        Api([[obj("a"), obj("b", version=2)], [obj("b", version=2)]], [[Gone(410, "old")]])
    )
    await run(services)
    assert services.get(("ns", "a")) is None
    assert len(changes) == 3, "two additions and a deletion"


async def test_a_failed_list_is_retried(make_informer):
    services = make_informer(Api([KubeError(500, "x"), KubeError(0, "y"), [obj()]]))
    await run(services)
    assert services.has_synced.is_set()


@pytest.mark.parametrize("rejection", [Rejected(403, "forbidden"), NotFound(404, "no such namespace")])
async def test_three_consecutive_rejections_raise_inaccessible(make_informer, rejection, caplog):
    with pytest.raises(Inaccessible, match=f"services: {rejection.status}: {rejection.message}"):
        await make_informer(Api([[obj()]], [[rejection], [rejection], [rejection]])).run()
    assert caplog.text == "", "the watched namespace logs it once"


async def test_single_rejections_are_retried(make_informer):
    """An API server that starts rejects requests that it allows a moment later."""
    rejection, other = Rejected(403, "RBAC: role not found"), KubeError(500, "x")
    await run(
        make_informer(
            Api([rejection, rejection, [obj()]], [[rejection], [rejection], [], [rejection], [other]])
        )
    )


async def test_clear_removes_all_objects_without_notification(make_informer, changes):
    services = make_informer(Api([[obj()]]))
    await run(services)
    changes.clear()
    services.clear()
    assert not services.has_synced.is_set()
    assert services.get(("ns", "s")) is None
    assert list(services.by_owner(("ns", "e"))) == []
    assert changes == []


async def test_watches_that_end_immediately_are_retried_with_backoff(make_informer, delays):
    """Watches end normally or with 410 Gone while an API server starts or shuts down."""
    await run(
        make_informer(Api([[]] * 4, [[], [], [Gone(410, "old")], [Gone(410, "old")], [Gone(410, "old")], []]))
    )
    assert len(delays) == 6
    for number, seconds in enumerate(delays):
        ceiling = min(30, 0.5 * 2**number)
        assert ceiling / 2 <= seconds <= ceiling
    delays.clear()
    events = [("MODIFIED", obj(version=11))]
    await run(make_informer(Api([[]], [[], [], [], events, []])))
    assert delays[3] <= 0.5, "an event resets the backoff"


async def test_retry_after_delays_the_next_request(make_informer, delays):
    throttled = Throttled(429, "too many", retry_after=7)
    await run(make_informer(Api([throttled, []], [[throttled], []])))
    assert delays[0] == delays[1] == 7
    assert delays[2] < 7


async def test_older_versions_are_ignored(make_informer, changes):
    services = make_informer(
        Api([[obj(version=5)]], [[("MODIFIED", obj(version=4)), ("MODIFIED", obj(version=5))]])
    )
    await run(services)
    assert len(changes) == 1


async def test_a_local_write_causes_no_notification(make_informer, changes):
    services = make_informer(Api([[obj(version=5)]], [[("MODIFIED", obj(version=6))]]))
    services.apply_local_write(obj(version=6))
    await run(services)
    assert changes == []


async def test_a_late_response_does_not_restore_a_deleted_object(make_informer):
    services = make_informer(Api([[obj(version=5)]], [[("DELETED", obj(version=7))]]))
    await run(services)
    services.apply_local_write(obj(version=6))
    assert services.get(("ns", "s")) is None
    services.apply_local_write(obj(uid="u2", version=8))
    assert services.get(("ns", "s"))["metadata"]["uid"] == "u2"


async def test_an_object_with_another_uid_replaces_the_old_one(make_informer, changes):
    services = make_informer(Api([[obj(version=5)]], [[("ADDED", obj(uid="u2", version=4))]]))
    await run(services)
    assert services.get(("ns", "s"))["metadata"]["uid"] == "u2"


async def test_a_changed_label_notifies_both_owners_and_moves_the_object(make_informer, changes):
    relabeled = [("MODIFIED", obj(instance="other", version=6))]
    services = make_informer(Api([[obj(version=5)]], [relabeled]))
    await run(services)
    assert changes == [(("ns", "e"), False), (("ns", "other"), False), (("ns", "e"), False)]
    assert list(services.by_owner(("ns", "e"))) == []
    services = make_informer(
        Api([[obj(version=5)]], [relabeled, [("DELETED", obj(instance="other", version=7))]])
    )
    await run(services)
    assert list(services.by_owner(("ns", "e"))) == []
    assert list(services.by_owner(("ns", "other"))) == []


@pytest.mark.parametrize(
    ("before", "after", "urgent"), [("False", "True", True), ("True", "False", True), ("True", "True", False)]
)
async def test_a_change_of_readiness_is_urgent(make_informer, changes, before, after, urgent):
    def pod(ready, version):
        return obj(version=version, status={"conditions": [{"type": "Ready", "status": ready}]})

    pods = make_informer(Api([[pod(before, 1)]], [[("MODIFIED", pod(after, 11))]]), POD)
    await run(pods)
    assert changes[-1] == (("ns", "e"), urgent)


async def test_references_and_replica_sets_keep_only_the_fields_that_are_read(make_informer, changes):
    maps = make_informer(api := Api([[obj("c", data={"secret": "x"})]]), CONFIG_MAP)
    await run(maps)
    assert set(maps.get(("ns", "c"))) == {"metadata"}
    assert set(maps.get(("ns", "c"))["metadata"]) == {"namespace", "name", "uid", "resourceVersion"}
    assert changes == [("ConfigMap", ("ns", "c"))]
    assert api.cache.reference(CONFIG_MAP, ("ns", "c")) == "u1/1"
    assert api.cache.reference(CONFIG_MAP, ("ns", "d")) is None
    template = {"spec": {"volumes": [{"name": "v"}], "containers": [{"name": "main"}]}}
    sets = make_informer(Api([[obj("r", spec={"replicas": 2, "template": template})]]), REPLICA_SET)
    await run(sets)
    assert sets.get(("ns", "r"))["spec"] == {
        "replicas": 2,
        "template": {"spec": {"volumes": [{"name": "v"}]}},
    }


def test_the_endpoint_store_ignores_older_versions():
    endpoints = EndpointStore()
    assert endpoints.upsert(obj("e", version=5, spec={}))
    assert not endpoints.upsert(obj("e", version=5, spec={}))
    assert not endpoints.upsert(obj("e", version=4, spec={}))
    assert endpoints.upsert(obj("e", uid="u2", version=9, spec={}))
    assert not endpoints.upsert(obj("e", uid="u1", version=7, spec={})), "a late event of the old object"
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
def test_the_endpoint_store_finds_endpoints_by_reference(spec, kind, name):
    endpoints = EndpointStore()
    endpoints.upsert(obj("e", spec=spec))
    endpoints.upsert(obj("f", spec={"model": "unreadable"}))
    assert endpoints.referencing(kind, "ns", name) == [("ns", "e")]
    assert endpoints.referencing(kind, "ns", "other") == []
    assert endpoints.referencing(kind, "other-namespace", name) == []


@pytest.mark.parametrize("kind", [CONFIG_MAP, CLAIM])
async def test_a_reference_may_be_an_object_of_the_operator(make_informer, changes, kind):
    make_informer(api := Api(), kind)
    informer = next(each for each in api.cache.informers if each.kind is kind)
    api.lists = [[obj("c", uid="u7", version=9)]]
    await run(informer)
    assert api.cache.reference(kind, ("ns", "c")) == "u7/9"
    assert changes == [(("ns", "e"), False), (kind.kind, ("ns", "c"))]


@pytest.mark.parametrize("kind", [*MANAGED, POD])
async def test_children_keep_all_fields_except_managed_fields(make_informer, kind):
    fields = {
        "apiVersion": "v1",
        "kind": "K",
        "data": {"a": "b"},
        "roleRef": {"n": 1},
        "anything": [None, 1.5],
    }
    make_informer(api := Api([[obj(generateName="s-", **fields)]]), kind)
    informer = next(each for each in api.cache.informers if each.kind is kind)
    await run(informer)
    expected = obj(generateName="s-", **fields)
    del expected["metadata"]["managedFields"]
    assert informer.get(("ns", "s")) == expected


async def test_by_owner_returns_the_objects_of_one_kind_and_endpoint(make_informer):
    make_informer(api := Api())
    services, pods = (api.cache.informer(kind, "ns") for kind in (SERVICE, POD))
    for name in ("a", "b"):
        services.apply_local_write(obj(name))
    pods.apply_local_write(obj("a", instance="f"))
    pods.apply_local_write(obj("c"))
    services.apply_local_delete(("ns", "a"))

    def names_of(informer, endpoint):
        return [found["metadata"]["name"] for found in informer.by_owner(("ns", endpoint))]

    assert (names_of(services, "e"), names_of(pods, "e")) == (["b"], ["c"])
    assert (names_of(services, "f"), names_of(pods, "f")) == ([], ["a"])
    assert (("ns", "b") in services, ("ns", "a") in services, ("other", "b") in services) == (
        True,
        False,
        False,
    )
