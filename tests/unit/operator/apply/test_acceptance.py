"""Changes by a mutating admission policy are accepted once and not reverted."""

import itertools
from copy import deepcopy

import pytest

from tests.unit.operator.applying import apply_plan
from vllmendpoint_operator.cache.caches import Cache
from vllmendpoint_operator.kube.kinds import by_name

WORKERS = ("Deployment", "smollm-workers")
RECORD = "serving.vllmendpoint.dev/accepted-differences"
IMAGE = ("spec", "template", "spec", "containers", "[main]", "image")


def new_cache(kube):
    """The cache after a restart of the operator."""
    cache = Cache(kube, (), on_change=lambda owner, urgent: None, on_reference_change=lambda kind, key: None)
    for (kind, _), obj in kube.objects.items():
        cache.informer(by_name(kind), "team-a").apply_local_write(obj)
    return cache


@pytest.fixture
def cache(kube):
    return new_cache(kube)


def mirror(image=lambda image: f"mirror.example/{image}"):
    """A policy that replaces the main container's image."""

    def mutate(body):
        changed = deepcopy(body)
        for container in changed["spec"]["template"]["spec"]["containers"]:
            container["image"] = image("worker:1")
        return changed

    return mutate


def change_deployment(kube, cache, manager="kubectl-set", **spec):
    """A change of the workers' Deployment by another client, which the watch has delivered."""
    kube.version += 1
    live = deepcopy(kube.objects[WORKERS])
    live["spec"] |= spec
    if "image" in spec:
        del live["spec"]["image"]
        live["spec"]["template"]["spec"]["containers"][0]["image"] = spec["image"]
        fields = {
            "f:spec": {"f:template": {"f:spec": {"f:containers": {'k:{"name":"main"}': {"f:image": {}}}}}}
        }
    else:
        fields = {"f:spec": {f"f:{name}": {} for name in spec}}
    live["metadata"] |= {
        "resourceVersion": str(kube.version),
        "managedFields": [{"manager": manager, "operation": "Update", "fieldsV1": fields}],
    }
    kube.objects[WORKERS] = live
    cache.informer(by_name("Deployment"), "team-a").apply_local_write(live)


async def test_a_field_that_admission_changes_is_accepted_once_and_across_restarts(
    kube, cache, make_endpoint, make_plan
):
    kube.mutations[WORKERS] = mirror()
    endpoint = make_endpoint()
    planned = make_plan(endpoint)
    done = await apply_plan(kube, cache, endpoint, planned)
    (edit,) = done.edits
    assert (edit.accepted, edit.paths, edit.fields) == (
        True,
        (IMAGE,),
        "spec.template.spec.containers[main].image",
    )
    assert kube.writes.count(("apply", *WORKERS)) == 2, "one apply, and one to record the difference"
    assert RECORD in kube.objects[WORKERS]["metadata"]["annotations"]
    kube.writes.clear()
    for found in (cache, new_cache(kube)):
        done = await apply_plan(kube, found, endpoint, planned)
        assert (done.writes, done.edits, kube.writes) == (0, [], [])


async def test_a_change_of_the_spec_after_acceptance_takes_one_apply(kube, cache, make_endpoint, make_plan):
    kube.mutations[WORKERS] = mirror()
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    scaled = make_endpoint(replicas=3)
    kube.writes.clear()
    done = await apply_plan(kube, cache, scaled, make_plan(scaled))
    assert kube.writes.count(("apply", *WORKERS)) == 1
    assert done.edits == []


async def test_a_later_edit_of_an_accepted_field_is_reverted(kube, cache, make_endpoint, make_plan):
    policy = mirror()
    kube.mutations[WORKERS] = policy
    endpoint = make_endpoint()
    planned = make_plan(endpoint)
    await apply_plan(kube, cache, endpoint, planned)
    change_deployment(kube, cache, image="evil:1")
    kube.writes.clear()
    done = await apply_plan(kube, cache, endpoint, planned)
    assert kube.writes == [("apply", *WORKERS)]
    (edit,) = done.edits
    assert (edit.accepted, edit.managers) == (False, ("kubectl-set",))
    main = kube.objects[WORKERS]["spec"]["template"]["spec"]["containers"][0]
    assert main["image"] == "mirror.example/worker:1"


async def test_a_policy_that_writes_other_values_each_time_is_accepted(kube, cache, make_endpoint, make_plan):
    numbers = itertools.count()
    kube.mutations[WORKERS] = mirror(lambda image: f"{image}-{next(numbers)}")
    endpoint = make_endpoint()
    planned = make_plan(endpoint)
    await apply_plan(kube, cache, endpoint, planned)
    kube.writes.clear()
    assert (await apply_plan(kube, new_cache(kube), endpoint, planned)).writes == 0


async def test_a_record_without_differences_is_removed(kube, cache, make_endpoint, make_plan):
    """Otherwise a later edit to that value would be accepted as the policy's."""
    kube.mutations[WORKERS] = mirror()
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    del kube.mutations[WORKERS]
    scaled = make_endpoint(replicas=2)
    await apply_plan(kube, cache, scaled, make_plan(scaled))
    assert RECORD not in kube.objects[WORKERS]["metadata"]["annotations"]
    change_deployment(kube, cache, image="mirror.example/worker:1")
    kube.writes.clear()
    await apply_plan(kube, cache, scaled, make_plan(scaled))
    assert kube.writes == [("apply", *WORKERS)]


async def test_an_edit_is_reverted_and_reported_with_its_field_manager(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint()
    planned = make_plan(endpoint)
    await apply_plan(kube, cache, endpoint, planned)
    change_deployment(kube, cache, manager="kube-controller-manager", replicas=3)
    done = await apply_plan(kube, cache, endpoint, planned)
    assert kube.objects[WORKERS]["spec"]["replicas"] == 1
    (edit,) = done.edits
    assert (edit.fields, edit.managers, edit.accepted) == (
        "spec.replicas",
        ("kube-controller-manager",),
        False,
    )


async def test_a_change_of_the_spec_is_not_reported_as_an_edit(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    change_deployment(kube, cache, replicas=3)
    other = make_endpoint(replicas=4)
    kube.reads.clear()
    done = await apply_plan(kube, cache, other, make_plan(other))
    assert done.edits == []
    assert ("Deployment", "smollm-workers") not in kube.reads
