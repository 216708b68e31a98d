"""`helm upgrade` with real pods: their containers are not restarted and keep serving."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, SYSTEM, TOY, Cluster, chat, eventually, manifest
from tests.project_cache import CACHE

pytestmark = pytest.mark.timeout(900)
NAME = "stays"
RELEASE = "vllmendpoint-operator"


def helm(cluster: Cluster, *arguments: str) -> str:
    command = [CACHE / "bin/helm", f"--kubeconfig={cluster.kubeconfig}", "--namespace", SYSTEM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def installed(cluster: Cluster) -> Iterator[str]:
    """The release's revision, which is restored afterwards."""
    (status,) = json.loads(helm(cluster, "list", "--filter", f"^{RELEASE}$", "-o", "json"))
    yield status["revision"]
    helm(cluster, "rollback", RELEASE, status["revision"], "--wait")


def containers(cluster: Cluster) -> list[Any]:
    """Pod UID, container ID and restart count of every container."""
    pods = cluster.workers(NAME) + cluster.workers(NAME, "frontend")
    return sorted(
        (pod["metadata"]["uid"], status["containerID"], status["restartCount"])
        for pod in pods
        for status in pod["status"]["containerStatuses"]
    )


def test_an_upgrade_and_a_rollback_restart_no_container(cluster: Cluster, installed: str) -> None:
    def revision() -> dict[str, Any]:
        found: dict[str, Any] = cluster.endpoint(NAME)["status"]["revision"]
        return found

    cluster.apply(manifest(NAME, uri=TOY))
    cluster.wait_ready(NAME)
    before, image = containers(cluster), revision()["image"]
    assert not revision()["upgradeAvailable"]
    with cluster.forward(f"service/{NAME}", 8000) as base:
        digest = "worker.image.digest=sha256:" + "0" * 64
        helm(
            cluster,
            "upgrade",
            RELEASE,
            str(ROOT / "charts" / RELEASE),
            "--reuse-values",
            "--set",
            digest,
            "--wait",
        )
        eventually(revision, lambda found: bool(found["upgradeAvailable"]), 60)
        assert revision()["image"] == image
        cluster.wait_ready(NAME, 60)
        assert chat(base, NAME, "Hi")[0] == 200
        helm(cluster, "rollback", RELEASE, installed, "--wait")
        eventually(revision, lambda found: not found["upgradeAvailable"], 60)
        cluster.wait_ready(NAME, 60)
        assert chat(base, NAME, "Hi")[0] == 200
    assert containers(cluster) == before
