"""Which pods of an endpoint are workers, prefill workers and frontends, and which of them send reports."""

import pytest

from vllmendpoint_api import names
from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.kube.kinds import DEPLOYMENT, POD, REPLICA_SET
from vllmendpoint_operator.observe.observer import Observer
from vllmendpoint_operator.reports.streams import ReportStreams

COMPONENTS = ("worker", "prefill", "frontend", "other")


def owned(kind, name, owner, component, **more):
    labels = {names.LABEL_INSTANCE: "smollm", names.LABEL_COMPONENT: component}
    metadata = {"namespace": "team-a", "name": name, "uid": f"{kind.kind}-{name}", "resourceVersion": "1"}
    owners = [{"uid": owner, "controller": True}]
    return {"metadata": {**metadata, "labels": labels, "ownerReferences": owners}, **more}


@pytest.fixture
def cache():
    """The Deployment, the ReplicaSet and one running pod of each component, of the same name."""
    found = Cache(None, (), on_change=lambda owner, urgent: None, on_reference_change=lambda kind, key: None)
    for name in COMPONENTS:
        pod, next_pod = (
            {
                "containers": [{"name": "main"}],
                "volumes": [{"name": "v", "configMap": {"name": f"{when}-of-{name}"}}],
                "serviceAccountName": f"{when}-of-{name}",
            }
            for when in ("now", "later")
        )
        running = {"name": "main", "state": {"running": {}}}
        for kind, obj in (
            (DEPLOYMENT, owned(DEPLOYMENT, name, "uid-1", name, spec={})),
            (
                REPLICA_SET,
                owned(
                    REPLICA_SET,
                    name,
                    f"Deployment-{name}",
                    name,
                    spec={"replicas": 1, "template": {"spec": next_pod}},
                ),
            ),
            (
                POD,
                owned(
                    POD,
                    name,
                    f"ReplicaSet-{name}",
                    name,
                    spec=pod,
                    status={"podIP": "127.0.0.9", "containerStatuses": [running]},
                ),
            ),
        ):
            found.informer(kind, "team-a").apply_local_write(obj)
    return found


async def test_prefill_workers_are_observed_apart_and_send_reports(cache, make_endpoint):
    async with ReportStreams(lambda owner, urgent: None, port=1) as reports:
        observer, endpoint = Observer(None, cache, reports), make_endpoint(prefill={})
        workload = observer.workload(endpoint.key, "uid-1")
        observed = await observer.observe(endpoint, workload)
        streams = {stream.target.uid: stream.target for stream in reports._streams[endpoint.key]}
    assert [[pod.name for pod in pods] for pods in (observed.workers, observed.prefill)] == [
        ["worker"],
        ["prefill"],
    ]
    assert [pod.name for pod in observed.all_workers] == ["worker", "prefill"]
    assert set(streams) == {"Pod-worker", "Pod-prefill"}
    assert not any(target.is_frontend for target in streams.values())
    in_use = {f"{when}-of-{name}" for when in ("now", "later") for name in ("worker", "prefill")}
    assert observed.accounts_in_use == in_use
    assert in_use <= observed.settings_in_use
