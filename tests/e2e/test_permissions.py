"""Workers and frontends have exactly the permissions that Dynamo uses, according to the audit log."""

import os

import pytest

from tests.audit import granted, requests, used
from tests.project_cache import CACHE

from .conftest import Cluster

ROLE = "vllmendpoint-operator-worker"
POLICY = ("run", "serving.vllmendpoint.dev", "workers")
"""Never requested: the admission policy identifies workers by this permission."""


def is_account_of_an_endpoint(user: str) -> bool:
    """Whether it is a ServiceAccount in a test's namespace that pods of an endpoint use."""
    return user.startswith("system:serviceaccount:e2e-") and not user.endswith(":default")


def test_workers_and_frontends_use_every_permission_that_they_have(deployed: Cluster) -> None:
    """Counts the requests of the tests before this one; without a permission a request would have failed."""
    log = CACHE / "cluster/audit.log"
    if os.environ.get("CLUSTER") == "kind" or not log.exists():
        pytest.skip("the API server's audit log is not on this machine")
    entries = requests(log, is_account_of_an_endpoint)
    if not any(entry["verb"] == "patch" for entry in entries):
        pytest.skip("no worker has served in this cluster yet")
    (role,) = [item for item in deployed.get("clusterroles")["items"] if item["metadata"]["name"] == ROLE]
    # After a namespace's RoleBindings are deleted, requests of its terminating pods fail. They use no other
    # permissions.
    assert used(entries) == granted(role["rules"]) - {POLICY}
