"""Limits of an endpoint's components."""

import pytest

from vllmendpoint_api import RollingUpdate
from vllmendpoint_operator.components import min_ready_replicas


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
