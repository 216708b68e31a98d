"""Cost of the operator: API calls, CPU and memory, at rest and for the lifecycle of one endpoint."""

import collections
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import SYSTEM, TOY, Cluster, eventually, manifest
from tests.project_cache import CACHE

pytestmark = pytest.mark.timeout(900)
AUDIT = CACHE / "cluster/audit.log"
USER = f"system:serviceaccount:{SYSTEM}:vllmendpoint-operator"
REST_SECONDS = 60
CHILDREN = (
    "configmaps",
    "controllerrevisions",
    "deployments",
    "networkpolicies",
    "persistentvolumeclaims",
    "poddisruptionbudgets",
    "rolebindings",
    "serviceaccounts",
    "services",
)


def calls(log: Path, start: int) -> collections.Counter[str]:
    """Count the operator's finished requests in the audit log after that byte, by verb and resource."""
    counted: collections.Counter[str] = collections.Counter()
    with log.open("rb") as file:
        file.seek(start)
        for line in file:
            entry = json.loads(line)
            if entry["user"].get("username") == USER and entry["stage"] == "ResponseComplete":
                what = entry.get("objectRef", {})
                resource = "/".join(filter(None, (what.get("resource"), what.get("subresource"))))
                counted[f"{entry['verb']} {resource}"] += 1
    return counted


def figures(cluster: Cluster) -> tuple[float, float]:
    """CPU seconds and resident MB of the operator's process."""
    path = f"/api/v1/namespaces/{SYSTEM}/services/vllmendpoint-operator:8080/proxy/metrics"
    text = cluster.kubectl("get", "--raw", path)

    def value(name: str) -> float:
        found = re.search(rf"^{name} ([0-9.e+-]+)$", text, re.MULTILINE)
        assert found, name
        return float(found[1])

    return value("process_cpu_seconds_total"), value("process_resident_memory_bytes") / 1e6


class Cost(NamedTuple):
    """The cost of one phase: finished requests by verb and resource, CPU seconds, wall-clock seconds."""

    requests: collections.Counter[str]
    cpu: float
    seconds: float

    def writes(self, *resources: str) -> int:
        """Writes to these resources, or to all but leases."""
        return sum(
            count
            for request, count in self.requests.items()
            for verb, resource in [request.split(" ", 1)]
            if verb in ("create", "patch", "delete", "update")
            and (resource in resources if resources else resource != "leases")
        )


@contextmanager
def measured(cluster: Cluster, name: str) -> Iterator[list[Cost]]:
    """Append the cost of the block to the list, and print it."""
    found: list[Cost] = []
    start, (cpu, _), began = AUDIT.stat().st_size, figures(cluster), time.monotonic()
    yield found
    after, memory = figures(cluster)
    cost = Cost(calls(AUDIT, start), after - cpu, time.monotonic() - began)
    found.append(cost)
    print(
        f"\n{name}: CPU {cost.cpu:.2f} s of {cost.seconds:.0f} s, RSS {memory:.0f} MB, {cost.writes()} writes"
    )
    print("  " + ", ".join(f"{request} {count}" for request, count in sorted(cost.requests.items())))


def test_the_cost_at_rest_and_of_a_lifecycle_stays_within_its_ratios(cluster: Cluster) -> None:
    """Fails on a regression of the ratios: writes per child, and CPU of each phase relative to creation."""
    with measured(cluster, "at rest") as rest:
        time.sleep(REST_SECONDS)
    with measured(cluster, "create to Ready") as create:
        cluster.apply(manifest("life", uri=TOY))
        cluster.wait_ready("life")
    uid = cluster.endpoint("life")["metadata"]["uid"]
    children = [
        child
        for kind in CHILDREN
        for child in cluster.get(kind)["items"]
        if uid in [owner["uid"] for owner in child["metadata"].get("ownerReferences", [])]
    ]
    with measured(cluster, "unchanged resource, reconciled") as unchanged:
        cluster.kubectl("annotate", "vep", "life", "example.com/touched=1")
        time.sleep(5)
    with measured(cluster, "deletion") as deletion:
        cluster.kubectl("delete", "vep", "life", "--wait")
        eventually(lambda: cluster.workers("life"), lambda pods: not pods, 120)

    assert rest[0].writes() == 0
    assert rest[0].cpu / rest[0].seconds < 0.01
    assert create[0].writes(*CHILDREN) == len(children), "every child is written once"
    # A claim, the final status, and one status for every 5 s of the start at most.
    assert create[0].writes("vllmendpoints/status") <= 4 + create[0].seconds / 5
    assert unchanged[0].writes() == 0
    assert unchanged[0].cpu / create[0].cpu < 0.3
    assert deletion[0].writes() == 0
    assert deletion[0].cpu / create[0].cpu < 0.6
