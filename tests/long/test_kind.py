"""The demo and an update of the worker on kind, by the project's scripts."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import CACHE, ROOT, Cluster

pytestmark = pytest.mark.timeout(3600)
KIND = Cluster(str(CACHE / "kind/kubeconfig"), "demo")
MARK = "# changed by tests/long/test_kind.py"


def run(*command: str, checkout: Path = ROOT) -> str:
    done = subprocess.run(
        command,
        cwd=checkout,
        env={**os.environ, "CLUSTER": "kind"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert not done.returncode, f"{' '.join(command)}:\n{done.stdout[-8000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """The output of the demo. The cluster is deleted afterwards, the images stay."""
    try:
        yield run("make", "demo")
    finally:
        run("make", "clean")


def test_the_demo_runs_to_its_end(demo: str) -> None:
    assert demo.count("A: The capital of France is Paris.") == 2
    assert "EngineStalled: 1 of 1 replica is not generating" in demo
    assert "make clean CLUSTER=kind removes the cluster." in demo


def test_a_change_of_one_line_reaches_the_node_within_90_seconds(demo: str, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    (checkout / ".venv").symlink_to(ROOT / ".venv")
    before = images("worker-cpu")
    with (checkout / "worker/src/vllmendpoint_worker/__init__.py").open("a") as file:
        file.write(f"{MARK}\n")
    begun = time.monotonic()
    run("hack/deploy.sh", checkout=checkout)
    seconds = time.monotonic() - begun
    after = images("worker-cpu")
    # The demo's endpoint pins the image that it was created with, so its tag stays.
    assert len(after) == len(before) + 1
    assert seconds < 90, f"the update took {seconds:.0f} s"

    # A tag that no pod uses is removed.
    KIND.kubectl("delete", "vep", "--all", "--wait", timeout=120)
    KIND.kubectl("wait", "--for=delete", "pods", "--all", "--timeout=100s", check=False, timeout=120)
    run("hack/deploy.sh", checkout=checkout)
    assert images("worker-cpu") == after - before


def images(name: str) -> set[str]:
    """The tags of an image in the node."""
    script = 'eval "$(hack/kind/docker.sh env)"; docker exec vllmendpoint-control-plane crictl images'
    if not (CACHE / "kind/docker/engine.pid").exists():
        script = script.partition("; ")[2]
    lines = run("bash", "-c", script).splitlines()
    return {line.split()[1] for line in lines if line.split()[0].endswith(f"/{name}")}
