"""A paused endpoint: what is, is told; what would be, is not."""

from dataclasses import replace

import pytest

from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import PlanError
from vllmendpoint_operator.observe.snapshot import Observed
from vllmendpoint_operator.status import endpoint_status


def test_one_that_serves_goes_on_and_says_that_nothing_changes(
    make_endpoint, make_plan, living, make_worker, condition
):
    running = make_endpoint()
    first = make_plan(running)
    observed = living(first, pods=[make_worker(settings=running)])
    before = endpoint_status(running, observed, first, None)
    assert condition(before, "Ready").status == "True"
    held = replace(make_endpoint(paused=True, engine={"args": ["--seed", "1"]}), status=before, generation=2)
    found = endpoint_status(held, observed, make_plan(held, observed), None)
    assert condition(found, "Available").status == condition(found, "Generating").status == "True"
    for kind, said in (("UpToDate", "False"), ("Ready", "False"), ("Reconciling", "False")):
        assert (condition(found, kind).status, condition(found, kind).reason) == (said, "Paused"), kind
    assert condition(found, "Stalled").status == "False"
    assert found.revision == before.revision, "the new one is not in force"
    assert found.observed_generation == 2


@pytest.mark.parametrize(
    ("replicas", "made", "reason"),
    [(1, None, "Paused"), (3, 1, "Paused"), (2, 2, "Starting"), (0, None, "ScaledToZero")],
)
def test_pods_that_are_not_made_since_it_is_paused(
    make_endpoint, make_plan, living, condition, noon, replicas, made, reason
):
    endpoint = make_endpoint(paused=True, replicas=replicas)
    observed = Observed(now=noon) if made is None else living(make_plan(make_endpoint(replicas=made)))
    found = condition(endpoint_status(endpoint, observed, make_plan(endpoint), None), "Available")
    assert found.reason == reason
    if reason == "Paused":
        count = "0 of 1 replica is" if replicas == 1 else f"0 of {replicas} replicas are"
        action = (
            "does not create the Deployment smollm-workers"
            if made is None
            else "does not scale up the Deployment smollm-workers, which has 1 replica,"
        )
        assert found.message.startswith(f"{count} ready (minimum: ")
        assert found.message.endswith(
            f"). The operator {action} because spec.paused is true. Set it to false to continue."
        )


def test_a_spec_that_is_refused_is_told_while_paused(make_endpoint, condition, noon):
    problem = PlanError(Reason.INVALID_SPEC, "engine.args: no")
    found = endpoint_status(make_endpoint(paused=True), Observed(now=noon), None, problem)
    assert (condition(found, "Accepted").reason, condition(found, "UpToDate").reason) == (
        "InvalidSpec",
        "Paused",
    )
    assert condition(found, "Ready").reason == "InvalidSpec"
    assert condition(found, "Reconciling").status == "False"


def test_a_frontend_that_is_not_made_since_it_is_paused(
    make_endpoint, make_plan, living, make_worker, condition
):
    without = make_endpoint(frontend={"mode": "None"})
    observed = replace(living(make_plan(without), pods=[make_worker(settings=without)]), frontends=())
    endpoint = make_endpoint(paused=True)
    found = endpoint_status(endpoint, observed, make_plan(endpoint, observed), None)
    said = condition(found, "Available")
    assert said.reason == "Paused"
    assert said.message.startswith(
        "0 of 1 frontend pod is ready (minimum: 1). The operator does not create the Deployment "
        "smollm-frontend "
        "because spec.paused is true."
    )


def test_what_was_not_verified_is_not_called_valid(make_endpoint, make_plan, living, condition):
    running = make_endpoint()
    observed = living(make_plan(running))
    held = make_endpoint(paused=True, worker={"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}})
    found = endpoint_status(held, observed, make_plan(held, observed), None)
    assert (
        "The API server validates the pods once spec.paused is false." in condition(found, "Accepted").message
    )
    still = make_endpoint(paused=True)
    found = endpoint_status(still, observed, make_plan(still, observed), None)
    assert condition(found, "Accepted").message == "The spec is valid."


def test_workers_that_load_are_not_held_up_by_frontend_pods_that_are_not_made(
    make_endpoint, make_plan, living, make_worker, condition
):
    running = make_endpoint()
    observed = living(
        make_plan(running), pods=[make_worker("w-1", "Starting", settings=running, ready=False)]
    )
    endpoint = make_endpoint(paused=True, frontend={"replicas": 2})
    found = endpoint_status(endpoint, observed, make_plan(endpoint, observed), None)
    assert condition(found, "Available").reason == "Starting"
