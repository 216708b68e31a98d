"""What the operator costs: API calls, CPU and memory, at rest and for one endpoint's life."""

import collections
import json
import re
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import CACHE, SYSTEM, TOY, Cluster, eventually, manifest

pytestmark = pytest.mark.timeout(900)
AUDIT = CACHE / "cluster/audit.log"
USER = f"system:serviceaccount:{SYSTEM}:vllmendpoint-operator"
REST_SECONDS = 60


def calls(log: Path, start: int) -> collections.Counter[str]:
    """The operator's finished requests in the audit log from that byte on: verb and resource."""
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


def test_cost_at_rest_and_for_one_life(cluster: Cluster) -> None:
    def measured(name: str, start: int, cpu: float) -> None:
        after, memory = figures(cluster)
        found = calls(AUDIT, start)
        writes = sum(
            n for what, n in found.items() if what.split()[0] in ("create", "patch", "delete", "update")
        )
        lease = sum(n for what, n in found.items() if what.endswith("leases"))
        print(f"\n{name}: CPU {after - cpu:.2f} s, RSS {memory:.0f} MB, {writes} writes, {lease} lease calls")
        print("  " + ", ".join(f"{what} {n}" for what, n in sorted(found.items())))

    start, (cpu, _) = AUDIT.stat().st_size, figures(cluster)
    time.sleep(REST_SECONDS)
    measured(f"at rest, {REST_SECONDS} s", start, cpu)

    start, (cpu, _) = AUDIT.stat().st_size, figures(cluster)
    cluster.apply(manifest("life", uri=TOY))
    cluster.wait_ready("life")
    measured("create to Ready", start, cpu)

    start, (cpu, _) = AUDIT.stat().st_size, figures(cluster)
    cluster.kubectl("annotate", "vep", "life", "example.com/touched=1")
    time.sleep(5)
    measured("unchanged resource, reconciled", start, cpu)

    start, (cpu, _) = AUDIT.stat().st_size, figures(cluster)
    cluster.kubectl("delete", "vep", "life", "--wait")
    eventually(lambda: cluster.workers("life"), lambda pods: not pods, 120)
    measured("deletion", start, cpu)
