"""Reconciles of one endpoint: conditional status writes, missed events, Events, and retries."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

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
from vllmendpoint_operator.plan.options import Options
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
    """Accepts all writes.

    ``listed``: the endpoints; ``events``: the created Events; ``status_write``: body of the last status
    write. Tests set ``on_status_write``, which is called during a status write, ``warn``, which receives the
    callback for warnings about Deployments, and ``fail``, which is called with the kind of each object.
    """

    def __init__(self):
        self.version = 10
        self.events = []
        self.status_write = None
        self.listed = [endpoint()]
        self.on_status_write = lambda: None
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
            self.status_write = body
            self.on_status_write()
            body = {**endpoint(), "status": body["status"]}
        metadata = {"uid": body["metadata"]["name"], **body["metadata"], "resourceVersion": str(self.version)}
        return {**body, "metadata": metadata}

    async def create(self, kind, body):
        self.events.append(body)

    @property
    def conditions(self):
        """The conditions of the last status write, by type."""
        return {entry["type"]: entry for entry in self.status_write["status"]["conditions"]}

    @property
    def event_reasons(self):
        return [event["reason"] for event in self.events]


@pytest.fixture
async def setup():
    """The reconciler and its collaborators; ``now`` is its clock."""
    api, endpoints, metrics = Api(), EndpointStore(), Metrics()
    cache = Cache(api, (), on_change=lambda owner, urgent: None, on_reference_change=lambda kind, key: None)
    async with ReportStreams(lambda owner, urgent: None) as streams:
        created = SimpleNamespace(
            now=1000.0,
            api=api,
            endpoints=endpoints,
            metrics=metrics,
            cache=cache,
            observer=Observer(api, cache, streams),
        )
        reconciler = Reconciler(
            kube=api,
            cache=cache,
            observer=created.observer,
            endpoints=endpoints,
            options=Options("image", "image"),
            metrics=metrics,
            reporting_instance="test",
            operator=OPERATOR,
            clock=lambda: created.now,
        )
        created.reconcile = lambda: reconciler.reconcile(KEY)
        yield created


def series(metrics):
    """The exported series of endpoints."""
    return [line for line in b"".join(metrics.exposition()).splitlines() if b'name="' in line]


async def test_a_status_write_is_conditional_on_the_version_that_was_read(setup):
    setup.endpoints.upsert(endpoint())
    assert await setup.reconcile() is None
    metadata = setup.api.status_write["metadata"]
    assert (metadata["uid"], metadata["resourceVersion"]) == ("u", "5")
    setup.api.status_write = None
    await setup.reconcile()
    assert setup.api.status_write is None, "an unchanged status is not written"


async def test_an_endpoint_deleted_during_its_status_write_stays_deleted(setup):
    setup.endpoints.upsert(endpoint(engine={"args": ["--model"]}))
    setup.api.on_status_write = lambda: setup.endpoints.delete(KEY, "u")
    await setup.reconcile()
    assert setup.endpoints.get(KEY) is None
    assert setup.api.events == []
    assert series(setup.metrics)
    await setup.reconcile()
    assert series(setup.metrics) == []


@pytest.mark.parametrize("error", [Conflict(409, "changed"), NotFound(404, "the CRD is not served")])
async def test_a_conflicting_status_write_is_retried_after_a_second(setup, error):
    setup.endpoints.upsert(endpoint())

    def raise_error():
        raise error

    setup.api.on_status_write = raise_error
    assert await setup.reconcile() == 1
    assert setup.endpoints.get(KEY) is not None


async def test_a_change_that_the_watch_missed_is_fetched_after_the_second_conflict(setup):
    setup.endpoints.upsert(endpoint())
    newest = endpoint(replicas=4)
    newest["metadata"]["resourceVersion"] = "900"
    setup.api.listed = [newest]

    def conflict():
        raise Conflict(409, "changed")

    setup.api.on_status_write = conflict
    assert await setup.reconcile() == 1
    assert setup.endpoints.resource_version(KEY) == 5, "as a rule, the watch delivers it"
    assert await setup.reconcile() == 1
    assert setup.endpoints.get(KEY)["spec"]["replicas"] == 4


@pytest.mark.parametrize("uids", [[], ["another"]])
async def test_a_deletion_that_the_watch_missed_is_found_by_a_status_write(setup, uids):
    setup.endpoints.upsert(endpoint())

    def not_found():
        setup.api.listed = [endpoint() | {"metadata": endpoint()["metadata"] | {"uid": uid}} for uid in uids]
        raise NotFound(404, "deleted")

    setup.api.on_status_write = not_found
    assert await setup.reconcile() == (1 if uids else None)
    assert [setup.endpoints.uid(key) for key in setup.endpoints] == uids
    assert series(setup.metrics) == []


async def test_a_warning_of_the_api_server_is_recorded_as_an_event_once(setup):
    setup.api.warn = lambda warned: warned("spec.template.spec.x: odd")
    setup.endpoints.upsert(endpoint())
    await setup.reconcile()
    message = "The API server returned a warning for the Deployment e-frontend: spec.template.spec.x: odd"
    assert (setup.api.events[-1]["type"], setup.api.events[-1]["message"]) == ("Warning", message)
    await setup.reconcile()
    assert setup.api.event_reasons == ["APIServerWarning"] * 2, "one for each Deployment"


async def test_an_error_that_persists_is_reported_in_the_status_once(setup):
    api = setup.api

    def fail(kind):
        if kind is DEPLOYMENT:
            raise KubeError(500, "failed calling webhook: connection refused")

    api.fail = fail
    setup.endpoints.upsert(endpoint())
    for _ in range(2):
        with pytest.raises(KubeError):
            await setup.reconcile()
    assert api.status_write is None, "two failures are not reported"
    with pytest.raises(KubeError):
        await setup.reconcile()
    assert api.conditions["Ready"]["status"] == "False"
    expected = "failed calling webhook: connection refused. The operator retries."
    assert expected in api.conditions["Ready"]["message"]
    assert api.conditions["UpToDate"]["status"] == "Unknown"
    api.status_write = None
    with pytest.raises(KubeError):
        await setup.reconcile()
    assert api.status_write is None
    api.fail = lambda kind: None
    setup.now += 3600
    await setup.reconcile()
    assert "webhook" not in str(api.conditions)
    api.fail, api.status_write = fail, None
    setup.cache.informer(DEPLOYMENT, "ns").apply_local_delete(("ns", "e-workers"))
    with pytest.raises(KubeError):
        await setup.reconcile()
    assert api.status_write is None, "a success resets the number of failures"


async def test_nothing_is_written_for_an_endpoint_that_is_being_deleted(setup):
    terminating = endpoint()
    terminating["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
    setup.endpoints.upsert(terminating)
    await setup.reconcile()
    assert setup.api.version == 10


async def test_a_spec_of_another_version_is_reported(setup):
    setup.endpoints.upsert(endpoint(novelty=1))
    await setup.reconcile()
    accepted = setup.api.conditions["Accepted"]
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert "novelty" in accepted["message"]
    assert "install the same version of the operator and of the CRD" in accepted["message"]
    assert setup.api.event_reasons == ["InvalidSpec", "NotReady"]


async def test_a_paused_endpoint_is_reported_and_not_applied(setup):
    setup.endpoints.upsert(endpoint(paused=True))
    assert await setup.reconcile() is None
    assert setup.api.version == 11, "only the status is written"
    conditions = setup.api.conditions
    assert (conditions["UpToDate"]["status"], conditions["UpToDate"]["reason"]) == ("False", "Paused")
    assert conditions["Reconciling"]["status"] == conditions["Stalled"]["status"] == "False"
    assert "revision" not in setup.api.status_write["status"], "no revision is in effect"


def child(name, owner_uid, *, version, component="worker", **more):
    """An object that the object with the UID ``owner_uid`` controls."""
    labels = {
        names.LABEL_INSTANCE: "e",
        names.LABEL_COMPONENT: component,
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
    }
    owners = [{"kind": "x", "name": "x", "uid": owner_uid, "controller": True}]
    metadata = {"namespace": "ns", "name": name, "uid": name, "resourceVersion": version, "labels": labels}
    return {"metadata": {**metadata, "ownerReferences": owners}, **more}


async def test_a_reconcile_waits_for_the_first_report_of_a_worker(setup, monkeypatch):
    """After a start, each endpoint is then reconciled once, with its reports, and not also without them."""
    api, endpoints = setup.api, setup.endpoints
    endpoints.upsert(endpoint())
    await setup.reconcile()
    spec = {"replicas": 1, "template": {"spec": {}}}
    setup.cache.informer(REPLICA_SET, "ns").apply_local_write(
        child("rs", "e-workers", version="900", spec=spec)
    )
    main = {"name": "main", "state": {"running": {}}}
    status = {"phase": "Running", "podIP": "127.0.0.1", "containerStatuses": [main]}
    setup.cache.informer(POD, "ns").apply_local_write(child("pod", "rs", version="901", status=status))
    api.status_write, version = None, api.version
    for _ in range(2):
        assert await setup.reconcile() == 0.5
        assert (api.status_write, api.version) == (None, version)
    edited = endpoint(replicas=2)
    edited["metadata"] |= {"generation": 2, "resourceVersion": "902"}
    endpoints.upsert(edited | {"status": endpoints.get(KEY)["status"]})
    await setup.reconcile()
    assert api.version > version, "a change of the spec does not wait"
    monkeypatch.setattr(reports, "FIRST_REPORT_SECONDS", 0)
    await setup.reconcile()
    assert endpoints.get(KEY)["status"]["replicas"] == 0, "a change of a count is not urgent"
    setup.now += 3600
    await setup.reconcile()
    assert api.status_write["status"]["replicas"] == 1


@pytest.fixture
def add_frontend(setup):
    """``await add_frontend(ports, status)``: a frontend pod of an endpoint that was reconciled once."""

    async def add(ports, status):
        setup.endpoints.upsert(endpoint())
        await setup.reconcile()
        spec = {"replicas": 1, "template": {"spec": {}}}
        owned = child("rs", "e-frontend", version="900", component="frontend", spec=spec)
        setup.cache.informer(REPLICA_SET, "ns").apply_local_write(owned)
        spec = {"containers": [{"name": "main", "ports": [{"name": name} for name in ports]}]}
        pod = child("pod", "rs", version="901", component="frontend", spec=spec, status=status)
        setup.cache.informer(POD, "ns").apply_local_write(pod)

    return add


@pytest.mark.parametrize(("ports", "seconds"), [(["http", "report"], 0.5), (["http"], None)])
async def test_a_reconcile_waits_for_the_first_report_of_a_frontend_that_reports(
    setup, add_frontend, ports, seconds
):
    main = {"name": "main", "state": {"running": {}}}
    await add_frontend(ports, {"podIP": "127.0.0.1", "containerStatuses": [main]})
    setup.now += 3600
    assert await setup.reconcile() == seconds


async def test_a_reconcile_follows_when_the_routes_of_a_new_pod_are_due(setup, add_frontend):
    since = (datetime.now(UTC) - timedelta(seconds=4)).isoformat()
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": since}
    await add_frontend(["report"], {"conditions": [ready]})
    setup.now += 3600
    assert 4 < await setup.reconcile() <= 6


async def test_each_version_of_a_config_map_is_read_once_and_kept_while_it_is_referenced(setup):
    script = {"script": {"configMapKeyRef": {"name": "h", "key": "model.py"}}}
    read = []

    async def get(kind, namespace, name):
        read.append(name)
        return {"data": {"model.py": f"x = {len(read)}"}}

    setup.api.get = get
    references = setup.cache.informers[-2]
    assert references.kind is CONFIG_MAP
    contents = setup.observer.config_maps.contents
    for version, name in ((1, "h"), (2, "h"), (3, "i")):
        script["script"]["configMapKeyRef"]["name"] = name
        changed = endpoint(handlers=script)
        changed["metadata"]["resourceVersion"] = str(100 + version)
        setup.endpoints.upsert(changed)
        references.apply_local_write(
            {"metadata": {"namespace": "ns", "name": name, "uid": name, "resourceVersion": str(version)}}
        )
        await setup.reconcile()
        await setup.reconcile()
        assert len(read) == version
        assert [key[:2] for key in contents] == [("ns", name)], "the content of other ConfigMaps is dropped"
    setup.endpoints.delete(KEY, "u")
    await setup.reconcile()
    assert not contents
