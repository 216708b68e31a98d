"""Which Dynamo namespaces workers publish in, and which of them a frontend accepts."""

import copy
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.unit.operator.applying import apply_plan
from tests.unit.operator.fake_kube import FakeKube
from vllmendpoint_api import names
from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.observe.snapshot import Observed
from vllmendpoint_operator.plan.pods.dynamo import base_namespace

WORKERS, FRONTEND = "smollm-workers", "smollm-frontend"
SEED = {"engine": {"args": ["--seed", "1"]}}


def env(template):
    container = template["spec"]["containers"][0]
    return {item["name"]: item.get("value") for item in container["env"]}


@pytest.fixture
def template(child):
    return lambda planned, name: child(planned, "Deployment", name)["spec"]["template"]


@pytest.fixture
def published(template):
    def find(planned, name=WORKERS):
        found = env(template(planned, name))
        return f"{found['DYN_NAMESPACE']}-{found['DYN_NAMESPACE_WORKER_SUFFIX']}"

    return find


@pytest.fixture
def prefix(template):
    return lambda planned, name=FRONTEND: env(template(planned, name))["DYN_NAMESPACE_PREFIX"]


@pytest.fixture
def plain(make_endpoint, make_plan, make_observed, make_worker):
    """The observed state of an endpoint with one legacy worker and legacy frontends."""
    planned = make_plan(make_endpoint())
    observed = make_observed(planned, pods=[worker_of(make_worker, "w-old", None)])
    children = {key: copy.deepcopy(obj) for key, obj in observed.children.items()}
    revision = history(replace(observed, children=children))
    for part, name in (("worker", WORKERS), ("frontend", FRONTEND)):
        template = revision["data"][part]
        template["metadata"]["labels"].pop(names.LABEL_REVISION, None)
        container = template["spec"]["containers"][0]
        container["env"] = [item for item in container["env"] if not item["name"].startswith("DYN_NAMESPACE")]
        container["env"].append({"name": "DYN_NAMESPACE", "value": base_namespace(make_endpoint())})
        children["Deployment", name]["spec"]["template"] = template
    return replace(observed, children=children)


@pytest.fixture
def frontends_rolled_out(make_observed, plain):
    """The observed state after ``planned``: its frontends and the retained workers."""

    def make(planned):
        observed = make_observed(planned, pods=plain.workers)
        history = {key: obj for key, obj in plain.children.items() if key[0] == "ControllerRevision"}
        return replace(observed, children={**history, **observed.children})

    return make


def history(observed):
    (found,) = (obj for (kind, _), obj in observed.children.items() if kind == "ControllerRevision")
    return found


def worker_of(make_worker, name, revision):
    labels = {"pod-template-hash": "new"} | ({names.LABEL_REVISION: revision} if revision else {})
    return make_worker(name, metadata={"labels": labels})


def test_each_template_has_a_namespace_below_the_endpoints_prefix(
    make_endpoint, make_plan, published, prefix
):
    first, second = make_plan(make_endpoint()), make_plan(make_endpoint(**SEED))
    assert published(first) != published(second)
    assert prefix(first) == prefix(second)
    for planned in (first, second):
        assert published(planned).startswith(prefix(planned))


@pytest.mark.parametrize("change", [{"replicas": 3}, {"frontend": {"resources": {"limits": {"cpu": 1}}}}])
def test_a_change_without_effect_on_workers_keeps_their_namespace(
    make_endpoint, make_plan, make_observed, published, template, change
):
    first = make_plan(make_endpoint())
    second = make_plan(make_endpoint(**change), make_observed(first))
    assert published(second) == published(first)
    assert template(second, WORKERS) == template(first, WORKERS)


def test_the_pods_are_labelled_with_their_revision(make_endpoint, make_plan, template, published):
    planned = make_plan(make_endpoint())
    label = template(planned, WORKERS)["metadata"]["labels"][names.LABEL_REVISION]
    assert published(planned).endswith(f"_-{label}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "team-llama"), ("a", "team-llama-v2")),
        (("a", "team-llama"), ("a", "team-llama2")),
        (("n" * 63, "e" * 39), ("n" * 63, "e" * 40)),
        (("n" * 63, "e" * 40), ("n" * 63, "e" * 39 + "x")),
    ],
)
def test_a_prefix_matches_no_namespace_of_another_endpoint(
    make_endpoint, make_plan, published, prefix, one, other
):
    plans = {
        name: make_plan(make_endpoint(namespace=namespace, name=name)) for namespace, name in (one, other)
    }
    for mine, theirs in ((one[1], other[1]), (other[1], one[1])):
        others = make_endpoint(namespace=one[0], name=theirs)
        accepted = prefix(plans[mine], f"{mine}-frontend")
        assert published(plans[mine], f"{mine}-workers").startswith(accepted)
        assert not published(plans[theirs], f"{theirs}-workers").startswith(accepted)
        assert not base_namespace(others).startswith(accepted), "legacy workers of the other endpoint"


def test_an_upgrade_of_the_operator_does_not_change_legacy_pods(make_endpoint, make_plan, plain, template):
    planned = make_plan(make_endpoint(), plain)
    for name in (WORKERS, FRONTEND):
        assert template(planned, name) == plain.child("Deployment", name)["spec"]["template"]
    assert planned.revision.upgrade_available


def test_legacy_frontends_are_replaced_before_legacy_workers(
    make_endpoint, make_plan, make_worker, plain, frontends_rolled_out, prefix, template
):
    """Legacy frontends accept only legacy workers; without these, callers would get 404."""
    endpoint = make_endpoint(**SEED)
    before = plain.child("Deployment", WORKERS)["spec"]["template"]
    first = make_plan(endpoint, plain)
    assert prefix(first) == base_namespace(endpoint)
    assert template(first, WORKERS) == before
    (verified,) = (one for one in first.verify if one["metadata"]["name"] == WORKERS)
    assert names.LABEL_REVISION in verified["spec"]["template"]["metadata"]["labels"], (
        "the new template is verified"
    )

    observed = frontends_rolled_out(first)
    front = observed.children["Deployment", FRONTEND]
    complete = dict(front["status"])
    for behind in ({"availableReplicas": 0}, {"updatedReplicas": 0}, {"replicas": 2}):
        front["status"] = complete | behind
        assert template(make_plan(endpoint, observed), WORKERS) == before
    scaled = make_plan(make_endpoint(**SEED, replicas=3), observed)
    assert template(scaled, WORKERS) == before
    forgotten = {key: obj for key, obj in observed.children.items() if obj is not history(plain)}
    assert template(make_plan(endpoint, replace(observed, children=forgotten)), WORKERS) == before
    front["status"] = complete
    # The template may differ because an admission policy changed it.
    front["spec"]["template"]["spec"]["containers"][0]["image"] = "mirror.example/worker:1"
    assert template(make_plan(endpoint, observed), WORKERS) != before


async def test_each_step_of_the_migration_writes_once(make_endpoint, make_plan, plain, noon):
    kube, endpoint = FakeKube(), make_endpoint(**SEED)
    cache = Cache(kube, (), on_change=lambda owner, urgent: None, on_reference_change=lambda kind, key: None)
    await apply_plan(kube, cache, make_endpoint(), make_plan(make_endpoint(), plain))
    done = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}

    async def written(workers, available):
        children = {key: {"kind": key[0], **copy.deepcopy(obj)} for key, obj in kube.objects.items()}
        for name in (WORKERS, FRONTEND):
            children["Deployment", name]["metadata"]["generation"] = 1
            children["Deployment", name]["status"] = done
        children["Deployment", FRONTEND]["status"] = done | {"availableReplicas": available}
        kube.writes.clear()
        observed = Observed(now=noon, children=children, workers=workers)
        await apply_plan(kube, cache, endpoint, make_plan(endpoint, observed), observed=observed)
        return [name for verb, kind, name in kube.writes if (verb, kind) == ("apply", "Deployment")]

    assert await written(plain.workers, 1) == [FRONTEND]
    assert await written(plain.workers, 0) == []
    assert await written(plain.workers, 1) == [WORKERS]
    assert await written(plain.workers, 1) == []
    assert await written((), 1) == [FRONTEND], "the prefix is narrowed"
    assert await written((), 1) == []
    assert kube.writes == []


def test_legacy_workers_that_are_not_ready_are_replaced_immediately(
    make_endpoint, make_plan, make_worker, plain, template
):
    before = plain.child("Deployment", WORKERS)["spec"]["template"]
    (worker,) = plain.workers
    stalled = make_worker("w-old", "Stalled", metadata=worker.obj["metadata"])
    for pods in ((), (stalled,)):
        planned = make_plan(make_endpoint(**SEED), replace(plain, workers=pods))
        assert template(planned, WORKERS) != before


def test_legacy_workers_are_routed_until_the_last_one_is_gone(
    make_endpoint,
    make_plan,
    make_observed,
    make_worker,
    plain,
    frontends_rolled_out,
    published,
    prefix,
    template,
):
    endpoint = make_endpoint(**SEED)
    old = base_namespace(endpoint)
    rolling = make_plan(endpoint, frontends_rolled_out(make_plan(endpoint, plain)))
    assert old.startswith(prefix(rolling)), "the old workers"
    assert published(rolling).startswith(prefix(rolling)), "the new ones"

    mine = published(rolling).rpartition("-")[2]
    pods = [worker_of(make_worker, "w-old", None), worker_of(make_worker, "w-new", mine)]
    midway = make_plan(endpoint, make_observed(rolling, pods=pods))
    assert prefix(midway) == prefix(rolling)
    assert midway.revision.name == rolling.revision.name
    again = make_plan(make_endpoint(engine={"args": ["--seed", "2"]}), make_observed(rolling, pods=pods))
    assert old.startswith(prefix(again)), "after another change during the rollout"

    gone = make_observed(rolling, pods=pods[1:])
    missing = dict(gone.children)
    deployment = missing["Deployment", WORKERS]
    missing["Deployment", WORKERS] = {
        **deployment,
        "status": {**deployment["status"], "availableReplicas": 0},
    }
    unfinished = make_plan(endpoint, replace(gone, children=missing))
    assert prefix(unfinished) == prefix(rolling), "the older ReplicaSet may still replace an evicted pod"

    done = make_plan(endpoint, gone)
    assert not old.startswith(prefix(done))
    assert published(done) == published(rolling)
    assert template(done, WORKERS) == template(rolling, WORKERS), "no worker restarts"
    assert done.revision.name != rolling.revision.name
    assert not done.revision.upgrade_available
    settled = make_plan(endpoint, make_observed(done, pods=pods[1:]))
    assert settled.revision.name == done.revision.name


def test_without_a_frontend_a_rollout_has_one_revision(make_endpoint, make_plan, make_observed, plain):
    endpoint = make_endpoint(**SEED, frontend={"mode": "None"})
    rolling = make_plan(endpoint, plain)
    assert make_plan(endpoint, make_observed(rolling)).revision.name == rolling.revision.name


@pytest.mark.parametrize(
    ("pods", "draining", "seconds"),
    [
        ([], True, 0),
        ([(None, True)], False, 10),
        ([(None, True), ("true", False)], False, 10),
        ([(None, True), ("true", True)], True, 10),
        ([(None, True), (None, True), ("true", True)], True, 10),
        ([("true", True)], True, 0),
        ([("true", False)], True, 0),
    ],
)
def test_frontends_that_cannot_drain_leave_the_service_before_they_terminate(
    make_endpoint, make_plan, child, make_pod, pods, draining, seconds
):
    frontends = tuple(
        make_pod(
            f"f-{number}", ready=ready, metadata={"labels": {names.LABEL_DRAINS: label} if label else {}}
        )
        for number, (label, ready) in enumerate(pods)
    )
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    observed = Observed(now=now, frontends=frontends)
    planned = make_plan(make_endpoint(), observed)
    selector = child(planned, "Service", "smollm")["spec"]["selector"]
    assert (names.LABEL_DRAINS in selector) == draining
    assert child(planned, "Deployment", FRONTEND)["spec"].get("minReadySeconds", 0) == seconds
    labels = child(planned, "Deployment", FRONTEND)["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()


def test_a_service_selects_frontends_of_a_pinned_template_that_cannot_drain(
    make_endpoint, make_plan, child, plain, make_pod
):
    """After an upgrade of the operator, and for a spec that returns to the inputs of such a template."""
    for part in ("worker", "frontend"):
        history(plain)["data"][part]["metadata"]["labels"].pop(names.LABEL_DRAINS, None)
    for frontends in ((make_pod("old", metadata={"labels": {}}),), (make_pod("new"),)):
        planned = make_plan(make_endpoint(), replace(plain, frontends=frontends))
        assert names.LABEL_DRAINS not in child(planned, "Service", "smollm")["spec"]["selector"]
        assert "minReadySeconds" not in child(planned, "Deployment", FRONTEND)["spec"]
