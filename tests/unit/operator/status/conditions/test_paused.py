"""Conditions of a paused endpoint."""

from dataclasses import replace

import pytest

from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import PlanError
from vllmendpoint_operator.observe.snapshot import Observed
from vllmendpoint_operator.status import endpoint_status


def test_a_paused_endpoint_keeps_serving_and_reports_that_nothing_changes(
    make_endpoint, make_plan, make_observed, make_worker, condition
):
    running = make_endpoint()
    first = make_plan(running)
    observed = make_observed(first, pods=[make_worker(settings=running)])
    before = endpoint_status(running, observed, first, None)
    assert condition(before, "Ready").status == "True"
    paused = replace(
        make_endpoint(paused=True, engine={"args": ["--seed", "1"]}), status=before, generation=2
    )
    found = endpoint_status(paused, observed, make_plan(paused, observed), None)
    assert condition(found, "Available").status == condition(found, "Generating").status == "True"
    for kind in ("UpToDate", "Ready", "Reconciling"):
        assert (condition(found, kind).status, condition(found, kind).reason) == ("False", "Paused"), kind
    assert condition(found, "Stalled").status == "False"
    assert found.revision == before.revision, "the new one is not applied"
    assert found.observed_generation == 2


@pytest.mark.parametrize(
    ("replicas", "existing", "reason"),
    [(1, None, "Paused"), (3, 1, "Paused"), (2, 2, "Starting"), (0, None, "ScaledToZero")],
)
def test_missing_replicas_are_reported_as_paused(
    make_endpoint, make_plan, make_observed, condition, noon, replicas, existing, reason
):
    endpoint = make_endpoint(paused=True, replicas=replicas)
    observed = (
        Observed(now=noon) if existing is None else make_observed(make_plan(make_endpoint(replicas=existing)))
    )
    found = condition(endpoint_status(endpoint, observed, make_plan(endpoint), None), "Available")
    assert found.reason == reason
    if reason == "Paused":
        count = "0 of 1 replica is" if replicas == 1 else f"0 of {replicas} replicas are"
        action = (
            "does not create the Deployment smollm-workers"
            if existing is None
            else "does not scale up the Deployment smollm-workers, which has 1 replica,"
        )
        assert found.message.startswith(f"{count} ready (minimum: ")
        assert found.message.endswith(
            f"). The operator {action} because spec.paused is true. Set it to false to continue."
        )


def test_a_rejected_spec_is_reported_while_paused(make_endpoint, condition, noon):
    problem = PlanError(Reason.INVALID_SPEC, "engine.args: no")
    found = endpoint_status(make_endpoint(paused=True), Observed(now=noon), None, problem)
    assert (condition(found, "Accepted").reason, condition(found, "UpToDate").reason) == (
        "InvalidSpec",
        "Paused",
    )
    assert condition(found, "Ready").reason == "InvalidSpec"
    assert condition(found, "Reconciling").status == "False"


def test_a_missing_frontend_is_reported_as_paused(
    make_endpoint, make_plan, make_observed, make_worker, condition
):
    without = make_endpoint(frontend={"mode": "None"})
    observed = replace(make_observed(make_plan(without), pods=[make_worker(settings=without)]), frontends=())
    endpoint = make_endpoint(paused=True)
    found = endpoint_status(endpoint, observed, make_plan(endpoint, observed), None)
    available = condition(found, "Available")
    assert available.reason == "Paused"
    assert available.message.startswith(
        "0 of 1 frontend pod is ready (minimum: 1). The operator does not create the Deployment "
        "smollm-frontend "
        "because spec.paused is true."
    )


def test_a_changed_pod_template_is_not_called_valid_before_it_is_verified(
    make_endpoint, make_plan, make_observed, condition
):
    running = make_endpoint()
    observed = make_observed(make_plan(running))
    paused = make_endpoint(paused=True, worker={"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}})
    found = endpoint_status(paused, observed, make_plan(paused, observed), None)
    assert (
        "The API server validates the pods once spec.paused is false." in condition(found, "Accepted").message
    )
    unchanged = make_endpoint(paused=True)
    found = endpoint_status(unchanged, observed, make_plan(unchanged, observed), None)
    assert condition(found, "Accepted").message == "The spec is valid."


def test_missing_frontend_pods_do_not_hide_that_the_workers_load(
    make_endpoint, make_plan, make_observed, make_worker, condition
):
    running = make_endpoint()
    observed = make_observed(
        make_plan(running), pods=[make_worker("w-1", "Starting", settings=running, ready=False)]
    )
    endpoint = make_endpoint(paused=True, frontend={"replicas": 2})
    found = endpoint_status(endpoint, observed, make_plan(endpoint, observed), None)
    assert condition(found, "Available").reason == "Starting"
