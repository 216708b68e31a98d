"""``spec.prefill`` with the real controllers: its objects, its rollouts, its scaling and its removal."""

import pytest

from tests.integration.simulated_node import SimulatedNode

REVISION = "serving.vllmendpoint.dev/revision"
KINDS = ("Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget")


@pytest.fixture
def serving(shared, make_endpoint):
    """``serving(**spec)``: an endpoint that is Ready, and its simulated node."""

    def create(**spec):
        node = SimulatedNode(make_endpoint().create(**spec))
        node.run()
        return node.endpoint, node

    return create


def ready_revisions(endpoint):
    """Revisions of the ready workers, and of the ready prefill workers, in one list of the pods."""
    found = {"worker": set(), "prefill": set(), "frontend": set()}
    for pod in endpoint.api.all("Pod", endpoint.namespace):
        labels, conditions = pod["metadata"]["labels"], pod["status"].get("conditions", [])
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        ours = labels.get("app.kubernetes.io/instance") == endpoint.name
        if ours and ready and "deletionTimestamp" not in pod["metadata"]:
            found[labels["app.kubernetes.io/component"]].add(labels.get(REVISION))
    return found["worker"], found["prefill"]


@pytest.mark.parametrize(
    "spec",
    [
        {"replicas": 2, "prefill": {"replicas": 2}},
        {"replicas": 3, "prefill": {"replicas": 4}},
        {
            "replicas": 1,
            "prefill": {"replicas": 1},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        },
    ],
    ids=["2+2", "3+4", "1+1 with a surge"],
)
def test_a_decode_worker_is_ready_during_the_whole_rollout_of_both_roles(serving, spec):
    endpoint, node = serving(**spec)
    (before,), _ = ready_revisions(endpoint)
    endpoint.patch(spec={"engine": {"args": ["--seed", "1"]}})

    def is_rolled_out():
        decode, prefill = ready_revisions(endpoint)
        assert decode, "it serves alone while there is no prefill worker of its revision"
        return node.is_ready() and before not in decode | prefill

    node.run(is_rolled_out, seconds=90)
    assert endpoint.get()["status"]["prefill"]["updatedReplicas"] == spec["prefill"]["replicas"]
    for name in ("-workers", "-prefill"):
        assert endpoint.child("Deployment", name)["spec"]["minReadySeconds"] == 5


def test_prefill_workers_scale_with_their_field_and_stop_with_the_workers(serving, until):
    endpoint, node = serving(replicas=2, prefill={"replicas": 2})
    assert all(endpoint.child(kind, "-prefill") for kind in KINDS)
    endpoint.patch(spec={"prefill": {"replicas": 1}})
    until(lambda: len(endpoint.pods("prefill")) == 1, "one prefill worker")
    assert len(endpoint.pods()) == 2
    until(lambda: endpoint.child("PodDisruptionBudget", "-prefill") is None, "no budget for one")
    endpoint.patch(spec={"replicas": 0})
    endpoint.until("Ready", "True", "ScaledToZero")
    assert not endpoint.pods("prefill")
    endpoint.patch(spec={"replicas": 1})
    until(lambda: endpoint.pods("prefill"), "a prefill worker")
    node.run()


def test_prefill_workers_are_added_and_removed_without_a_gap(serving, until):
    surge = {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    endpoint, node = serving(strategy=surge)
    (before,), _ = ready_revisions(endpoint)

    def has_changed():
        decode, _ = ready_revisions(endpoint)
        assert decode, "a worker serves, with or without a prefill worker"
        return node.is_ready() and before not in decode

    endpoint.patch(spec={"prefill": {}})
    node.run(has_changed, seconds=60)
    assert endpoint.get()["status"]["prefill"]["readyReplicas"] == 1
    (before,), _ = ready_revisions(endpoint)
    endpoint.patch(spec={"prefill": None})
    node.run(has_changed, seconds=60)
    until(lambda: not any(endpoint.child(kind, "-prefill") for kind in KINDS), "its objects are deleted")
    assert "prefill" not in endpoint.get()["status"]
