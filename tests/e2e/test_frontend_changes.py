"""Changes of an endpoint with a frontend on real pods: to zero replicas and back, other settings of the
probes without a restart, and a rollout of the frontends.
"""

import json
import time
from collections.abc import Callable
from typing import Any, Final

import pytest

from .conftest import Cluster, chat, eventually, manifest

NAME: Final = "changing"
PERIOD: Final = 4
pytestmark = pytest.mark.timeout(900)

READ_REPORT: Final = (
    "import urllib.request; print(urllib.request.urlopen('http://localhost:9091/status').read().decode())"
)


@pytest.fixture(scope="module")
def endpoint(cluster: Cluster) -> None:
    check = {"periodSeconds": PERIOD, "timeoutSeconds": 2}
    cluster.apply(manifest(NAME, frontend={"replicas": 2}, healthCheck=check))
    cluster.wait_ready(NAME)
    until_served(cluster)


def serving(cluster: Cluster) -> dict[str, Any]:
    return cluster.condition(NAME, "Serving")


def until_served(cluster: Cluster) -> None:
    eventually(
        lambda: (serving(cluster)["status"], cluster.endpoint(NAME)["status"].get("routedReplicas")),
        lambda found: found == ("True", 1),
        300,
    )


def frontends(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """The frontend pods that are not terminating, by UID."""
    return {
        pod["metadata"]["uid"]: pod
        for pod in cluster.workers(NAME, "frontend")
        if "deletionTimestamp" not in pod["metadata"]
    }


def containers(cluster: Cluster) -> set[tuple[str, int]]:
    """Identity and number of restarts of all frontend containers."""
    return {
        (status["containerID"], status["restartCount"])
        for pod in frontends(cluster).values()
        for status in pod["status"]["containerStatuses"]
    }


def report(cluster: Cluster, pod: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.python(pod, READ_REPORT))
    return found


def frontend_names(cluster: Cluster) -> list[str]:
    return [pod["metadata"]["name"] for pod in frontends(cluster).values()]


def until_reported(
    cluster: Cluster, read: Callable[[dict[str, Any]], Any], value: object, label: str
) -> None:
    """Wait until all frontends report the value, and print the seconds."""
    begun = time.monotonic()
    eventually(
        lambda: [read(report(cluster, pod)) for pod in frontend_names(cluster)],
        lambda found: found == [value] * 2,
        150,
        1.0,
    )
    print(f"\n{label}: reported by both frontends after {time.monotonic() - begun:.0f} s")


def test_changed_probe_settings_reach_the_frontends_without_a_restart(
    cluster: Cluster, endpoint: None
) -> None:
    before = containers(cluster)
    cluster.change(NAME, healthCheck={"mode": "Disabled"})
    until_reported(cluster, lambda found: found["probing"], False, "mode Disabled")
    assert serving(cluster)["status"] == "True"
    cluster.change(NAME, healthCheck={"mode": None})
    until_reported(cluster, lambda found: found["probing"], True, "mode Enforce")
    until_served(cluster)
    assert containers(cluster) == before


def test_serving_stays_true_during_a_rollout_of_the_frontends(cluster: Cluster, endpoint: None) -> None:
    before = set(frontends(cluster))
    template = {"metadata": {"annotations": {"test/rollout": "1"}}}
    with cluster.watch_status(NAME, '.conditions[?(@.type=="Serving")]') as lines:
        cluster.change(NAME, frontend={"podTemplate": template})
        eventually(
            lambda: (set(frontends(cluster)), cluster.condition(NAME, "UpToDate")["status"]),
            lambda found: len(found[0]) == 2 and not found[0] & before and found[1] == "True",
            300,
            1.0,
        )
        until_served(cluster)
    findings = [json.loads(line) for line in lines if line]
    assert findings
    assert {(found["status"], found["reason"]) for found in findings} == {("True", "Serving")}, findings


CONNECT: Final = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 8000), 5).close()
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""


def connection(cluster: Cluster) -> str:
    """What a client in a pod gets that connects to the endpoint's Service."""
    return cluster.python(frontend_names(cluster)[0], CONNECT, NAME).strip()


def test_an_endpoint_is_scaled_to_zero_and_back(cluster: Cluster, endpoint: None) -> None:
    before = containers(cluster)
    cluster.kubectl("scale", "vep", NAME, "--replicas=0")
    found = eventually(lambda: serving(cluster), lambda c: c["reason"] == "ScaledToZero", 120)
    assert (found["status"], found["message"]) == (
        "Unknown",
        "The endpoint serves no requests because spec.replicas is 0.",
    )
    ready = eventually(lambda: cluster.condition(NAME, "Ready"), lambda c: c["reason"] == "ScaledToZero", 60)
    assert ready["status"] == "True"
    assert cluster.endpoint(NAME)["status"]["routedReplicas"] == 0
    with cluster.forward(f"service/{NAME}", 8000) as base:
        status, text = eventually(lambda: chat(base, NAME, max_tokens=2), lambda answer: answer[0] != 200, 30)
        print(f"\na frontend without workers: {status} {text}")
        assert status in (404, 503), text
    outcome = eventually(lambda: connection(cluster), lambda result: result != "connected", 60)
    print(f"a connection to the Service: {outcome}")
    cluster.kubectl("scale", "vep", NAME, "--replicas=1")
    cluster.wait_ready(NAME)
    until_served(cluster)
    with cluster.forward(f"service/{NAME}", 8000) as base:
        assert chat(base, NAME, max_tokens=2)[0] == 200
    assert containers(cluster) == before, "the frontends wait for workers, and are not restarted"
