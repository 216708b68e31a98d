"""Workers and frontends have the rights that Dynamo uses in them: by the audit log of this cluster."""

import os

import pytest

from tests.audit import granted, requests, used

from .conftest import CACHE, Cluster

ROLE = "vllmendpoint-operator-worker"
POLICY = ("run", "serving.vllmendpoint.dev", "workers")
"""No request: what the admission policy knows a worker by."""


def is_of_an_endpoint(user: str) -> bool:
    """Of a test's namespace: its endpoints', or one of the test's that an endpoint names."""
    return user.startswith("system:serviceaccount:e2e-") and not user.endswith(":default")


def test_workers_and_frontends_use_every_right_that_they_have(deployed: Cluster) -> None:
    """Those that the tests before this one have run; what is not granted they could not have done."""
    log = CACHE / "cluster/audit.log"
    if os.environ.get("CLUSTER") == "kind" or not log.exists():
        pytest.skip("the API server's audit log is not on this machine")
    entries = requests(log, is_of_an_endpoint)
    if not any(entry["verb"] == "patch" for entry in entries):
        pytest.skip("no worker has served in this cluster yet")
    (role,) = [item for item in deployed.get("clusterroles")["items"] if item["metadata"]["name"] == ROLE]
    # With a namespace its RoleBindings go, and pods that end are refused what they had: it is no other right.
    assert used(entries) == granted(role["rules"]) - {POLICY}
