"""Limits of an endpoint's components."""

import pytest

from vllmendpoint_api import RollingUpdate
from vllmendpoint_operator.components import min_ready_replicas, startup_timeout_seconds


@pytest.mark.parametrize(
    ("replicas", "max_unavailable", "max_surge", "expected"),
    [
        (1, 1, 0, 1),
        (3, 1, 0, 2),
        (3, 0, 1, 3),
        (4, "25%", 0, 3),
        (3, "25%", 1, 3),
        (3, "25%", "1%", 3),
        (3, "25%", 0, 2),  # Both round to 0, so the Deployment controller replaces one pod at a time.
        (10, "100%", 0, 1),
        (3, "2", 0, 1),
        (2, 5, 0, 1),
    ],
)
def test_min_ready_replicas_rounds_as_the_deployment_controller_does(
    replicas, max_unavailable, max_surge, expected
):
    strategy = RollingUpdate.model_validate({"maxUnavailable": max_unavailable, "maxSurge": max_surge})
    assert min_ready_replicas(replicas, strategy) == expected


@pytest.mark.parametrize(
    ("specified", "applied", "expected"),
    [
        (7200, {}, 7200),
        (101, {}, 101),
        (7200, {"failureThreshold": 360}, 1800),  # rendered with the former default
        (7200, {"periodSeconds": 1, "failureThreshold": 30}, 30),
        (7200, None, 7200),
    ],
)
def test_the_startup_timeout_is_that_of_the_applied_template(
    make_endpoint, make_plan, make_observed, child, specified, applied, expected
):
    endpoint = make_endpoint(worker={"startupTimeoutSeconds": specified})
    planned = make_plan(endpoint)
    (main,) = child(planned, "Deployment", "smollm-workers")["spec"]["template"]["spec"]["containers"]
    if applied is None:
        del main["startupProbe"]
    else:
        main["startupProbe"] |= applied
    found = startup_timeout_seconds(endpoint, make_observed(planned), "smollm-workers")
    assert found == expected
