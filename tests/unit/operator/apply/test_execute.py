"""Which objects the execution of a plan reads, writes and deletes, and in which order."""

from dataclasses import replace

import pytest

from tests.unit.operator.applying import apply_plan, observe_children
from vllmendpoint_api import VLLMEndpointStatus
from vllmendpoint_operator.kube.kinds import CLAIM, MANAGED, SERVICE


async def test_only_what_was_not_observed_is_read_from_the_cache(kube, cache, make_endpoint, make_plan):
    planned = make_plan(endpoint := make_endpoint())
    await apply_plan(kube, cache, endpoint, planned)
    observed = observe_children(cache, endpoint)
    del observed.children["Service", "smollm"]
    looked = []
    for informer in cache.informers:
        informer.get = lambda key, get=informer.get: looked.append(key) or get(key)
    assert (await apply_plan(kube, cache, endpoint, planned, observed=observed)).writes == 0
    assert looked == [("team-a", "smollm")]


async def test_the_first_apply_creates_all_children_and_the_second_writes_nothing(
    kube, cache, make_endpoint, make_plan
):
    endpoint = make_endpoint(replicas=2)
    planned = make_plan(endpoint)
    assert (await apply_plan(kube, cache, endpoint, planned)).writes == len(planned.children)
    assert (await apply_plan(kube, cache, endpoint, planned)).writes == 0
    assert {kind for _, kind, _ in kube.writes} == {kind.kind for kind in MANAGED if kind is not CLAIM}


@pytest.mark.parametrize(
    "endpoint_now",
    [None, {"metadata": {"uid": "uid-2"}}, {"metadata": {"uid": "uid-1", "deletionTimestamp": "x"}}],
    ids=["gone", "recreated", "being deleted"],
)
async def test_nothing_is_created_for_an_endpoint_that_is_deleted(
    kube, cache, make_endpoint, make_plan, endpoint_now
):
    """The watch may report deletions by the garbage collector before that of the endpoint."""
    endpoint = make_endpoint(before=VLLMEndpointStatus())
    kube.endpoint = endpoint_now
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert kube.writes == []


async def test_nothing_is_read_for_a_new_endpoint(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert kube.reads == []
    kube.objects.pop(("Service", "smollm"))
    cache.informer(SERVICE, "team-a").apply_local_delete(("team-a", "smollm"))
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    assert kube.reads == [("VLLMEndpoint", "smollm")], "once a child was created, the endpoint may be deleted"


async def test_a_child_that_is_missing_in_the_cache_is_applied_over(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    cache.informer(SERVICE, "team-a").apply_local_delete(("team-a", "smollm"))
    kube.writes.clear()
    assert (await apply_plan(kube, cache, endpoint, make_plan(endpoint))).writes == 1
    assert kube.writes == [("apply", "Service", "smollm")]


async def test_execution_ends_once_the_endpoint_is_not_current(kube, cache, make_endpoint, make_plan):
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint), lambda: len(kube.writes) < 3)
    assert len(kube.writes) == 3


async def test_a_removed_field_changes_the_applied_hash(kube, cache, make_endpoint, make_plan):
    with_selector = make_endpoint(worker={"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}})
    await apply_plan(kube, cache, with_selector, make_plan(with_selector))
    kube.writes.clear()
    without = make_endpoint()
    await apply_plan(kube, cache, without, make_plan(without))
    assert ("apply", "Deployment", "smollm-workers") in kube.writes


async def test_pruned_children_are_deleted_last(kube, cache, make_observed, make_endpoint, make_plan):
    endpoint = make_endpoint()
    await apply_plan(kube, cache, endpoint, make_plan(endpoint))
    none = make_endpoint(frontend={"mode": "None"})
    children = {key: {"kind": key[0], **obj} for key, obj in kube.objects.items()}
    planned = make_plan(none, replace(make_observed(make_plan(endpoint)), children=children))
    kube.writes.clear()
    await apply_plan(kube, cache, none, planned)
    assert [verb for verb, _, _ in kube.writes][-5:] == ["delete"] * 5
    assert ("Deployment", "smollm-frontend") not in kube.objects
    kube.writes.clear()
    await apply_plan(kube, cache, none, planned)
    # The workers read the frontend's mode at their start, so their template changes and is verified.
    assert {verb for verb, _, _ in kube.writes} <= {"delete", "verify"}, (
        "an object that is already deleted is no error"
    )
