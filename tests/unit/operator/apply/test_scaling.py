"""Replicas apply to existing Deployments, even if the rest of the spec is invalid."""

import itertools

import pytest

from tests.unit.operator.applying import apply_plan, apply_scaling
from tests.unit.operator.fake_kube import FakeKube
from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.controller.endpoint_store import EndpointStore
from vllmendpoint_operator.controller.reconcile import Reconciler
from vllmendpoint_operator.errors import ConditionError, KubeError, Rejected, TerminalError, Throttled
from vllmendpoint_operator.kube.kinds import DEPLOYMENT, MANAGED
from vllmendpoint_operator.metrics import Metrics
from vllmendpoint_operator.observe.observer import Observer
from vllmendpoint_operator.observe.partial_spec import parse_readable_fields
from vllmendpoint_operator.observe.snapshot import Observed
from vllmendpoint_operator.plan.options import Options
from vllmendpoint_operator.plan.planner import scaling
from vllmendpoint_operator.reports.streams import ReportStreams


def snapshot(kube, noon):
    return Observed(now=noon, children={key: {"kind": key[0], **obj} for key, obj in kube.objects.items()})


def replicas(kube, part="workers"):
    return kube.objects["Deployment", f"smollm-{part}"]["spec"]["replicas"]


@pytest.mark.parametrize("wanted", [0, 1, 5])
async def test_replicas_apply_without_the_template(kube, cache, make_endpoint, make_plan, noon, wanted):
    first = make_endpoint(replicas=2)
    await apply_plan(kube, cache, first, make_plan(first))
    before = kube.objects["Deployment", "smollm-workers"]
    kube.writes.clear()
    refused = make_endpoint(replicas=wanted, frontend={"replicas": 3}, engine={"args": ["--model", "x"]})
    with pytest.raises(ConditionError):
        make_plan(refused, snapshot(kube, noon))
    done = await apply_scaling(
        kube, cache, refused, scaling(refused, snapshot(kube, noon)), snapshot(kube, noon)
    )
    after = kube.objects["Deployment", "smollm-workers"]
    assert after["spec"] == {**before["spec"], "replicas": wanted}
    assert after["metadata"]["annotations"] == before["metadata"]["annotations"]
    assert replicas(kube, "frontend") == 3
    assert kube.managers[-2:] == ["vllmendpoint-operator-scale"] * 2
    budget = ("PodDisruptionBudget", "smollm-workers")
    assert (budget in kube.objects) is (wanted > 1)
    assert done.writes == len(kube.writes)
    kube.writes.clear()
    again = await apply_scaling(
        kube, cache, refused, scaling(refused, snapshot(kube, noon)), snapshot(kube, noon)
    )
    assert (again.writes, kube.writes) == (0, []), "replicas that are right are not written"


async def test_the_budget_follows_the_replicas(kube, cache, make_endpoint, make_plan, noon):
    rolling = {"rollingUpdate": {"maxUnavailable": "50%"}}
    first = make_endpoint(replicas=2, strategy=rolling)
    await apply_plan(kube, cache, first, make_plan(first))
    more = make_endpoint(replicas=8, strategy=rolling)
    await apply_scaling(kube, cache, more, scaling(more, snapshot(kube, noon)), snapshot(kube, noon))
    assert kube.objects["PodDisruptionBudget", "smollm-workers"]["spec"]["maxUnavailable"] == 4


async def test_the_rest_is_applied_once_the_spec_is_valid_again(kube, cache, make_endpoint, make_plan, noon):
    first = make_endpoint(replicas=1)
    await apply_plan(kube, cache, first, make_plan(first))
    scaled = make_endpoint(replicas=4)
    await apply_scaling(kube, cache, scaled, scaling(scaled, snapshot(kube, noon)), snapshot(kube, noon))
    done = await apply_plan(kube, cache, scaled, make_plan(scaled, snapshot(kube, noon)))
    assert done.edits == [], "a change by the operator is no edit"
    assert (await apply_plan(kube, cache, scaled, make_plan(scaled, snapshot(kube, noon)))).writes == 0


@pytest.mark.parametrize("manager", ["vllmendpoint-operator-scale", "kubectl"])
async def test_replicas_applied_meanwhile_are_not_reported_as_an_edit(
    kube, cache, make_endpoint, make_plan, noon, manager
):
    """The only difference is the number that was applied while the rest was rejected."""
    first = make_endpoint(replicas=1)
    await apply_plan(kube, cache, first, make_plan(first))
    scaled = make_endpoint(replicas=4)
    await apply_scaling(kube, cache, scaled, scaling(scaled, snapshot(kube, noon)), snapshot(kube, noon))
    owned = {"manager": manager, "operation": "Apply", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    kube.objects["Deployment", "smollm-workers"]["metadata"]["managedFields"] = [owned]
    done = await apply_plan(kube, cache, first, make_plan(first, snapshot(kube, noon)))
    assert replicas(kube) == 1
    assert [edit.managers for edit in done.edits] == ([("kubectl",)] if manager == "kubectl" else [])


@pytest.mark.parametrize("kind", [kind.kind for kind in MANAGED if kind is not DEPLOYMENT])
async def test_replicas_apply_if_the_api_server_rejects_other_children(
    kube, cache, make_endpoint, make_plan, noon, kind
):
    first = make_endpoint()
    await apply_plan(kube, cache, first, make_plan(first))
    kube.rejections[kind] = Rejected(422, "no")
    more = make_endpoint(replicas=3)
    try:
        await apply_scaling(kube, cache, more, scaling(more, snapshot(kube, noon)), snapshot(kube, noon))
    except TerminalError:
        assert kind == "PodDisruptionBudget"
    assert replicas(kube) == 3


def test_a_deployment_that_does_not_exist_is_not_scaled(make_endpoint, noon):
    none = scaling(make_endpoint(replicas=3), Observed(now=noon))
    assert (dict(none.replicas), none.children, none.prune) == ({}, (), ())


async def test_a_deployment_that_is_being_deleted_is_not_scaled(kube, cache, make_endpoint, make_plan, noon):
    endpoint = make_endpoint(replicas=3)
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    kube.writes.clear()
    live = kube.objects["Deployment", "smollm-workers"]
    live["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
    other = make_endpoint(replicas=9)
    await apply_scaling(kube, cache, other, scaling(other, snapshot(kube, noon)), snapshot(kube, noon))
    assert ("apply", "PodDisruptionBudget", "smollm-workers") not in kube.writes, "it is in sync"
    assert ("apply", "Deployment", "smollm-workers") not in kube.writes


async def test_an_unwanted_frontend_is_not_scaled(kube, cache, make_endpoint, make_plan, noon):
    first = make_endpoint(frontend={"replicas": 2})
    await apply_plan(kube, cache, first, make_plan(first))
    without = make_endpoint(frontend={"mode": "None"})
    assert "smollm-frontend" not in scaling(without, snapshot(kube, noon)).replicas


MODEL = {"uri": "hf://o/n"}


@pytest.mark.parametrize(
    ("novelty", "kept"),
    [
        ({"novelty": 1}, {}),
        ({"model": {"uri": 3}}, {"model": {"uri": "file:///"}}),
        ({"engine": {"args": ["a", 1]}}, {}),
        ({"worker": {"startupTimeoutSeconds": 77, "new": {}}}, {"worker": {"startupTimeoutSeconds": 77}}),
        ({"strategy": {"rollingUpdate": {"maxUnavailable": [1]}}}, {"strategy": {"rollingUpdate": {}}}),
        ({"frontend": {"mode": "Shared", "replicas": 2}}, {"frontend": {"replicas": 2}}),
        ({"cache": {"oci": {}}}, {}),
        ({"prefill": {"replicas": 3, "new": {}}}, {"prefill": {"replicas": 3}}),
        ({"a": {"b": 1}, "c": [], "worker": {"env": [{"name": "A", "x": 1}]}}, {}),
    ],
)
def test_readable_fields_of_another_versions_spec_are_parsed(make_endpoint, novelty, kept):
    found = parse_readable_fields({"model": MODEL, "replicas": 4, **novelty})
    expected = make_endpoint(**{"model": MODEL, "replicas": 4, **kept}).spec
    assert found is not None
    assert found.replicas == 4
    for part in ("strategy", "frontend", "model", "prefill"):
        assert getattr(found, part) == getattr(expected, part)
    assert found.worker.startup_timeout_seconds == expected.worker.startup_timeout_seconds


@pytest.mark.parametrize(
    "spec",
    [
        {"replicas": {"min": 1, "max": 3}},
        {"replicas": -1},
        {"paused": {"until": "noon"}},
        {"novelty": 1, "replicas": "many"},
        {"prefill": {"replicas": "many"}},
    ],
)
def test_invalid_replicas_or_paused_parse_to_none(spec):
    assert parse_readable_fields({"model": MODEL, **spec}) is None


class Cluster(FakeKube):
    """One endpoint; the watch delivers each change immediately."""

    def __init__(self):
        super().__init__()
        self.endpoints = EndpointStore()
        self.fail = {}

    async def create(self, kind, body):
        pass

    async def apply(self, kind, body, *, subresource=None, **options):
        if kind.kind in self.fail:
            raise self.fail[kind.kind]
        if subresource != "status":
            return await super().apply(kind, body, **options)
        self.version += 1
        known = self.endpoints.get(("team-a", "smollm"))
        metadata = {**known["metadata"], "resourceVersion": str(self.version)}
        return {**known, "metadata": metadata, "status": body["status"]}

    def change(self, **spec):
        self.version += 1
        metadata = {"namespace": "team-a", "name": "smollm", "uid": "uid-1"}
        metadata |= {"resourceVersion": str(self.version), "generation": self.version}
        status = (self.endpoints.get(("team-a", "smollm")) or {}).get("status") or {}
        self.endpoints.upsert({"metadata": metadata, "spec": {"model": MODEL, **spec}, "status": status})


@pytest.fixture
async def operated():
    """``await operated(replicas=3)`` changes and reconciles the spec; returns the cluster and the delay."""
    kube, metrics = Cluster(), Metrics()
    cache = Cache(kube, (), on_change=lambda owner, urgent: None, on_reference_change=lambda kind, key: None)
    async with ReportStreams(lambda owner, urgent: None) as reports:
        reconciler = Reconciler(
            kube=kube,
            cache=cache,
            observer=Observer(kube, cache, reports),
            endpoints=kube.endpoints,
            options=Options("image", "image"),
            metrics=metrics,
            reporting_instance="test",
            operator="ops/vllm",
            clock=itertools.count(0, 3600).__next__,
        )

        async def change(**spec):
            kube.change(**spec)
            again = await reconciler.reconcile(("team-a", "smollm"))
            return kube, again

        change.kube = kube
        yield change


REFUSED = {
    "a reference that is missing": {
        "handlers": {"script": {"configMapKeyRef": {"name": "gone", "key": "model.py"}}}
    },
    "a podTemplate with a typo": {"worker": {"podTemplate": {"specc": {}}}},
    "an argument that the operator owns": {"engine": {"args": ["--model", "x"]}},
    "a spec of another version": {"novelty": {"a": 1}},
}


@pytest.mark.parametrize("refused", REFUSED)
@pytest.mark.parametrize("replicas_wanted", [0, 3])
async def test_replicas_apply_while_the_spec_is_rejected(operated, refused, replicas_wanted):
    await operated(replicas=2)
    before = operated.kube.objects["Deployment", "smollm-workers"]
    kube, _ = await operated(replicas=2, **REFUSED[refused])
    assert kube.objects["Deployment", "smollm-workers"] == before
    await operated(replicas=replicas_wanted, frontend={"replicas": 2}, **REFUSED[refused])
    after = kube.objects["Deployment", "smollm-workers"]
    assert after["spec"] == {**before["spec"], "replicas": replicas_wanted}
    assert replicas(kube, "frontend") == 2
    kube.writes.clear()
    await operated(replicas=replicas_wanted, frontend={"replicas": 2}, **REFUSED[refused])
    assert kube.writes == []


async def test_nothing_changes_while_paused(operated):
    await operated(replicas=2)
    for refused in REFUSED.values():
        kube, _ = await operated(replicas=5, paused=True, **refused)
        assert replicas(kube) == 2
    kube, again = await operated(replicas=5, paused={"until": "noon"})
    assert (replicas(kube), again) == (2, None), "an invalid value of paused means paused"


@pytest.mark.parametrize(("wanted", "expected"), [(3, 4), (0, 0)])
async def test_replicas_of_prefill_workers_apply_while_the_spec_is_rejected(operated, wanted, expected):
    await operated(replicas=2, prefill={"replicas": 2})
    kube = operated.kube
    before = kube.objects["Deployment", "smollm-prefill"]
    for refused in REFUSED.values():
        await operated(replicas=wanted, prefill={"replicas": 4}, **refused)
        after = kube.objects["Deployment", "smollm-prefill"]
        assert after["spec"] == {**before["spec"], "replicas": expected}
        assert (("PodDisruptionBudget", "smollm-prefill") in kube.objects) is (expected > 1)


@pytest.mark.parametrize("kind", ["ConfigMap", "ControllerRevision"])
async def test_replicas_apply_while_another_child_is_rejected(operated, kind):
    await operated(replicas=1)
    kube = operated.kube
    kube.rejections[kind] = Rejected(422, "no")
    change = {"worker": {"env": [{"name": "A", "value": "1"}]}, "healthCheck": {"periodSeconds": 7}}
    _, again = await operated(replicas=3, **change)
    assert replicas(kube) == 3
    assert again == 30


async def test_scaling_after_a_failed_apply_creates_nothing_twice(operated):
    """The budget was created before the Deployment was rejected."""
    await operated(replicas=1)
    kube = operated.kube
    kube.rejections["Deployment"] = Rejected(422, "no")
    kube.writes.clear()
    kube.reads.clear()
    await operated(replicas=3, healthCheck={"periodSeconds": 7})
    assert kube.writes == [
        ("apply", "ConfigMap", "smollm-settings"),
        ("apply", "PodDisruptionBudget", "smollm-workers"),
        ("apply", "Deployment", "smollm-workers"),
        ("apply", "Deployment", "smollm-workers"),
    ]
    assert kube.reads == [("VLLMEndpoint", "smollm")]
    assert replicas(kube) == 3


@pytest.mark.parametrize(
    ("failure", "applied"), [(KubeError(500, "webhook down"), 3), (Throttled(429, "slow"), 1)]
)
async def test_replicas_apply_while_another_child_cannot_be_written(operated, failure, applied):
    await operated(replicas=1)
    operated.kube.fail["ConfigMap"] = failure
    with pytest.raises(KubeError):
        await operated(replicas=3, healthCheck={"periodSeconds": 7})
    assert replicas(operated.kube) == applied


async def test_rejected_replicas_are_retried(operated):
    await operated(replicas=1)
    operated.kube.fail["Deployment"] = Rejected(403, "denied by a policy")
    for refused in ("a podTemplate with a typo", "a spec of another version"):
        _, again = await operated(replicas=3, **REFUSED[refused])
        assert again == 30
    del operated.kube.fail["Deployment"]
    _, again = await operated(replicas=3, **REFUSED["a spec of another version"])
    assert (again, replicas(operated.kube)) == (None, 3)
