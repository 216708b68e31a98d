"""What a reconcile does with news that come in while it waits for an answer."""

import pytest

import vllmendpoint_operator.reports.streams as reports
from vllmendpoint_api import names
from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.controller.endpoint_store import EndpointStore
from vllmendpoint_operator.controller.reconcile import Reconciler
from vllmendpoint_operator.errors import Conflict, KubeError, NotFound
from vllmendpoint_operator.kube.kinds import CONFIG_MAP, DEPLOYMENT, POD, REPLICA_SET
from vllmendpoint_operator.metrics import Metrics
from vllmendpoint_operator.observe.observer import Observer
from vllmendpoint_operator.plan import Options
from vllmendpoint_operator.reports.streams import ReportStreams

KEY = ("ns", "e")
OPERATOR = "ops/vllm"


def endpoint(**spec):
    metadata = {"namespace": "ns", "name": "e", "uid": "u", "resourceVersion": "5", "generation": 1}
    return {
        "metadata": metadata,
        "spec": {"model": {"uri": "hf://o/n"}, **spec},
        "status": {"operator": OPERATOR},
    }


class Api:
    """Takes everything; ``meanwhile`` is called while a status is on its way."""

    def __init__(self):
        self.version = 10
        self.events = []
        self.status = None
        self.meanwhile = lambda: None
        self.listed = [endpoint()]
        self.warn = lambda warned: None
        self.fail = lambda kind: None

    async def list(self, kind, namespace, **options):
        return self.listed, "1"

    async def get(self, kind, namespace, name):
        raise NotFound(404, "no")

    async def apply(self, kind, body, *, subresource=None, manager="", dry_run=False, on_warning=None):
        self.fail(kind)
        if on_warning is not None and kind is DEPLOYMENT:
            self.warn(on_warning)
        self.version += 1
        if subresource == "status":
            self.status = body
            self.meanwhile()
            body = {**endpoint(), "status": body["status"]}
        metadata = {"uid": body["metadata"]["name"], **body["metadata"], "resourceVersion": str(self.version)}
        return {**body, "metadata": metadata}

    async def create(self, kind, body):
        self.events.append(body["reason"])
        self.event = body


@pytest.fixture
async def world():
    api, endpoints, metrics = Api(), EndpointStore(), Metrics()
    cache = Cache(api, (), on_change=lambda owner, urgent: None, on_reference_change=lambda kind, key: None)
    async with ReportStreams(lambda owner, urgent: None) as streams:
        reconciler = Reconciler(
            kube=api,
            cache=cache,
            observer=Observer(api, cache, streams),
            endpoints=endpoints,
            options=Options("image"),
            metrics=metrics,
            reporting_instance="test",
            operator=OPERATOR,
        )
        yield api, endpoints, metrics, reconciler


def series(metrics):
    return [line for line in b"".join(metrics.exposition()).splitlines() if b'name="' in line]


async def test_status_is_written_over_what_was_looked_at(world):
    api, endpoints, _, reconciler = world
    endpoints.upsert(endpoint())
    assert await reconciler.reconcile(KEY) is None
    metadata = api.status["metadata"]
    assert (metadata["uid"], metadata["resourceVersion"]) == ("u", "5")
    api.status = None
    await reconciler.reconcile(KEY)
    assert api.status is None, "the second one writes nothing"


async def test_deleted_while_its_status_is_on_its_way_it_stays_deleted(world):
    api, endpoints, metrics, reconciler = world
    endpoints.upsert(endpoint(engine={"args": ["--model"]}))
    api.meanwhile = lambda: endpoints.delete(KEY, "u")
    await reconciler.reconcile(KEY)
    assert endpoints.get(KEY) is None
    assert api.events == []
    assert series(metrics)
    await reconciler.reconcile(KEY)
    assert series(metrics) == []


@pytest.mark.parametrize("answer", [Conflict(409, "changed"), NotFound(404, "the CRD is not served")])
async def test_changed_while_its_status_is_on_its_way_is_no_failure(world, answer):
    api, endpoints, _, reconciler = world
    endpoints.upsert(endpoint())

    def refuse():
        raise answer

    api.meanwhile = refuse
    assert await reconciler.reconcile(KEY) == 1
    assert endpoints.get(KEY) is not None, "it stands, and the watch brings what is newer"


async def test_what_changed_in_a_gap_of_the_watch_is_fetched_at_the_second_refusal(world):
    api, endpoints, _, reconciler = world
    endpoints.upsert(endpoint())
    newest = endpoint(replicas=4)
    newest["metadata"]["resourceVersion"] = "900"
    api.listed = [newest]

    def refuse():
        raise Conflict(409, "changed")

    api.meanwhile = refuse
    assert await reconciler.reconcile(KEY) == 1
    assert endpoints.resource_version(KEY) == 5, "as a rule the watch brings it"
    assert await reconciler.reconcile(KEY) == 1
    assert endpoints.get(KEY)["spec"]["replicas"] == 4


@pytest.mark.parametrize("now", [[], ["another"]])
async def test_what_went_in_a_gap_of_the_watch_is_forgotten(world, now):
    api, endpoints, metrics, reconciler = world
    endpoints.upsert(endpoint())

    def refuse():
        api.listed = [endpoint() | {"metadata": endpoint()["metadata"] | {"uid": uid}} for uid in now]
        raise NotFound(404, "gone")

    api.meanwhile = refuse
    assert await reconciler.reconcile(KEY) == (1 if now else None)
    assert [endpoints.uid(key) for key in endpoints] == now
    assert series(metrics) == []


async def test_a_warning_of_the_api_server_is_an_event(world):
    api, endpoints, _, reconciler = world
    api.warn = lambda warned: warned("spec.template.spec.x: odd")
    endpoints.upsert(endpoint())
    await reconciler.reconcile(KEY)
    said = "the API server warns of the Deployment e-frontend: spec.template.spec.x: odd"
    assert (api.event["type"], api.event["message"]) == ("Warning", said)
    await reconciler.reconcile(KEY)
    assert api.events == ["APIServerWarning"] * 2, "one for each of the two, and no more"


async def test_what_fails_for_long_is_told(world):
    api, endpoints, _, reconciler = world

    def fail(kind):
        if kind is DEPLOYMENT:
            raise KubeError(500, "failed calling webhook: refused")

    api.fail = fail
    endpoints.upsert(endpoint())
    for _ in range(2):
        with pytest.raises(KubeError):
            await reconciler.reconcile(KEY)
    assert api.status is None, "one or two are weather"
    with pytest.raises(KubeError):
        await reconciler.reconcile(KEY)
    conditions = {c["type"]: c for c in api.status["status"]["conditions"]}
    assert conditions["Ready"]["status"] == "False"
    assert "failed calling webhook: refused; it is tried again" in conditions["Ready"]["message"]
    assert conditions["UpToDate"]["status"] == "Unknown"
    api.status = None
    with pytest.raises(KubeError):
        await reconciler.reconcile(KEY)
    assert api.status is None, "it is told once"
    api.fail = lambda kind: None
    reconciler._limiters.clear()
    await reconciler.reconcile(KEY)
    assert "webhook" not in str(api.status["status"]["conditions"])
    api.fail, api.status = fail, None
    reconciler._cache.informer(DEPLOYMENT, "ns").apply_local_delete(("ns", "e-workers"))
    with pytest.raises(KubeError):
        await reconciler.reconcile(KEY)
    assert api.status is None, "failures count from the last success"


async def test_nothing_for_what_is_being_deleted(world):
    api, endpoints, _, reconciler = world
    going = endpoint()
    going["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
    endpoints.upsert(going)
    await reconciler.reconcile(KEY)
    assert api.version == 10


async def test_a_spec_of_another_version_is_told(world):
    api, endpoints, _, reconciler = world
    endpoints.upsert(endpoint(novelty=1))
    await reconciler.reconcile(KEY)
    (accepted,) = [c for c in api.status["status"]["conditions"] if c["type"] == "Accepted"]
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert "novelty" in accepted["message"]
    assert "the operator and the CRD to the same version" in accepted["message"]
    assert api.events == ["InvalidSpec", "NotReady"]


async def test_paused_applies_nothing_and_reports(world):
    api, endpoints, _, reconciler = world
    endpoints.upsert(endpoint(paused=True))
    assert await reconciler.reconcile(KEY) is None
    assert api.version == 11, "the status, and nothing else"
    conditions = {c["type"]: c for c in api.status["status"]["conditions"]}
    assert (conditions["UpToDate"]["status"], conditions["UpToDate"]["reason"]) == ("False", "Paused")
    assert conditions["Reconciling"]["status"] == conditions["Stalled"]["status"] == "False"
    assert "revision" not in api.status["status"], "no revision is in force"


def child(name, owner, *, version, **more):
    """An object of the endpoint's, made by the object of the UID ``owner``."""
    labels = {
        names.LABEL_INSTANCE: "e",
        names.LABEL_COMPONENT: "worker",
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
    }
    owners = [{"kind": "x", "name": "x", "uid": owner, "controller": True}]
    metadata = {"namespace": "ns", "name": name, "uid": name, "resourceVersion": version, "labels": labels}
    return {"metadata": {**metadata, "ownerReferences": owners}, **more}


async def test_a_worker_that_has_just_been_asked_is_waited_for(world, monkeypatch):
    """One look with its report, not one without it before: after a start that is so for every endpoint."""
    api, endpoints, _, reconciler = world
    endpoints.upsert(endpoint())
    await reconciler.reconcile(KEY)
    spec = {"replicas": 1, "template": {"spec": {}}}
    reconciler._cache.informer(REPLICA_SET, "ns").apply_local_write(
        child("rs", "e-workers", version="900", spec=spec)
    )
    main = {"name": "main", "state": {"running": {}}}
    status = {"phase": "Running", "podIP": "127.0.0.1", "containerStatuses": [main]}
    reconciler._cache.informer(POD, "ns").apply_local_write(child("pod", "rs", version="901", status=status))
    api.status, version = None, api.version
    for _ in range(2):
        assert await reconciler.reconcile(KEY) == 0.5
        assert (api.status, api.version) == (None, version)
    edited = endpoint(replicas=2)
    edited["metadata"] |= {"generation": 2, "resourceVersion": "902"}
    endpoints.upsert(edited | {"status": endpoints.get(KEY)["status"]})
    await reconciler.reconcile(KEY)
    assert api.version > version, "what the user changes waits for no worker"
    monkeypatch.setattr(reports, "FIRST_REPORT_SECONDS", 0)
    await reconciler.reconcile(KEY)
    assert endpoints.get(KEY)["status"]["replicas"] == 0, "a step that waits"
    reconciler._limiters.clear()
    await reconciler.reconcile(KEY)
    assert api.status["status"]["replicas"] == 1


async def test_a_config_map_is_read_once_and_kept_for_as_long_as_it_is_referred_to(world):
    api, endpoints, _, reconciler = world
    script = {"script": {"configMapKeyRef": {"name": "h", "key": "model.py"}}}
    read = []

    async def get(kind, namespace, name):
        read.append(name)
        return {"data": {"model.py": f"x = {len(read)}"}}

    api.get = get
    references = reconciler._cache.informers[-2]
    assert references.kind is CONFIG_MAP
    contents = reconciler._observer._contents
    for version, name in ((1, "h"), (2, "h"), (3, "i")):
        script["script"]["configMapKeyRef"]["name"] = name
        named = endpoint(handlers=script)
        named["metadata"]["resourceVersion"] = str(100 + version)
        endpoints.upsert(named)
        references.apply_local_write(
            {"metadata": {"namespace": "ns", "name": name, "uid": name, "resourceVersion": str(version)}}
        )
        await reconciler.reconcile(KEY)
        await reconciler.reconcile(KEY)
        assert len(read) == version, "each version is read once"
        assert [key[:2] for key in contents] == [("ns", name)], "and what nobody refers to is let go"
    endpoints.delete(KEY, "u")
    await reconciler.reconcile(KEY)
    assert not contents
