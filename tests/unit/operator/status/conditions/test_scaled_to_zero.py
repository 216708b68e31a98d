"""``Available`` of an endpoint whose ``spec.replicas`` is 0."""

import pytest

from tests.unit.operator.status.cluster_states import TERMINATING
from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import PlanError


def test_an_endpoint_without_replicas_is_ready(make_endpoint, make_status, states):
    found = states(make_status(make_endpoint(replicas=0)))
    assert found["Available"] == found["Ready"] == ("True", "ScaledToZero")
    assert found["Generating"] == ("Unknown", "NoWorkers")
    assert found["Reconciling"] == ("False", "Settled")


@pytest.mark.parametrize("paused", [False, True])
def test_pods_of_a_scale_down_that_is_not_applied_still_serve(
    make_endpoint, make_plan, make_observed, make_status, make_worker, finding, paused
):
    before = make_endpoint(replicas=2)
    children = make_observed(make_plan(before)).children
    pods = [make_worker(f"w-{number}", settings=before) for number in (1, 2)]
    problem = None if paused else PlanError(Reason.CONFIG_MAP_NOT_FOUND, "no ConfigMap")
    found = make_status(make_endpoint(replicas=0, paused=paused), *pods, children=children, problem=problem)
    assert finding(found, "Available") == (
        "True",
        "Available",
        (
            "The field spec.replicas is 0, but the Deployment smollm-workers still has 2 replicas. "
            "2 pods still serve requests."
        ),
    )
    assert finding(found, "Generating")[:2] == ("True", "Generating")
    assert finding(found, "Ready")[0] == "False"


REMAINING = {
    "ready": ("True", "Available", "The field spec.replicas is 0. 2 pods still serve requests."),
    "not ready": ("False", "Pending", "The field spec.replicas is 0. 2 pods exist, but none is ready."),
    "terminating": ("True", "ScaledToZero", "The endpoint serves no requests because spec.replicas is 0."),
    "failed": ("True", "ScaledToZero", "The endpoint serves no requests because spec.replicas is 0."),
}


@pytest.mark.parametrize("pods", REMAINING)
def test_scaled_to_zero_is_true_after_the_last_pod_is_terminating(
    make_endpoint, make_status, make_pod, make_worker, finding, pods
):
    running = make_endpoint(replicas=2)
    make = {
        "ready": lambda name: make_worker(name, settings=running),
        "not ready": lambda name: make_pod(name, ready=False),
        "terminating": lambda name: make_worker(name, settings=running, metadata=TERMINATING),
        "failed": lambda name: make_pod(name, ready=False, phase="Failed"),
    }[pods]
    found = make_status(make_endpoint(replicas=0), make("w-1"), make("w-2"))
    expected = REMAINING[pods]
    assert finding(found, "Available") == expected
    if expected[0] == "True":
        assert finding(found, "Ready")[2] == expected[2]
    assert (finding(found, "Ready")[1] == "ScaledToZero") == (expected[1] == "ScaledToZero")


def test_the_message_about_one_remaining_pod_is_in_the_singular(
    make_endpoint, make_status, make_pod, make_worker, message_of
):
    serving = make_status(make_endpoint(replicas=0), make_worker(settings=make_endpoint()))
    assert message_of(serving, "Available") == "The field spec.replicas is 0. 1 pod still serves requests."
    remaining = make_status(make_endpoint(replicas=0), make_pod("w-1", ready=False))
    assert (
        message_of(remaining, "Available")
        == "The field spec.replicas is 0. 1 pod exists, but it is not ready."
    )


@pytest.mark.parametrize(("paused", "expected"), [(True, "Paused"), (False, "Pending")])
def test_unready_pods_of_a_scale_down_that_is_not_applied_are_reported(
    make_endpoint, make_plan, make_observed, make_status, make_pod, finding, paused, expected
):
    children = make_observed(make_plan(make_endpoint(replicas=2))).children
    pods = [make_pod(f"w-{number}", ready=False) for number in (1, 2)]
    problem = None if paused else PlanError(Reason.INVALID_SPEC, "engine.args: no")
    found = make_status(make_endpoint(replicas=0, paused=paused), *pods, children=children, problem=problem)
    status, reason, message = finding(found, "Available")
    assert (status, reason) == ("False", expected)
    assert "the Deployment smollm-workers still has 2 replicas" in message
    assert "2 pods exist, but none is ready." in message
    assert ("Set spec.paused to false" in message) is paused
