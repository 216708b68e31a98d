"""The scripts for images and for kind: which Docker Engine they use, and what they refuse."""

import contextlib
import fcntl
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.shell import ROOT, bash, program


def use_docker(tmp_path: Path, docker: str) -> subprocess.CompletedProcess[str]:
    program(tmp_path / "bin", "docker", docker)
    engine = "[ $1 = up ] || echo export DOCKER_HOST=unix:///engine/docker.sock"
    program(tmp_path / "hack/kind", "docker.sh", engine)
    script = tmp_path / "script.sh"
    script.write_text(
        f". {ROOT}/hack/common.sh\n. {ROOT}/hack/kind/engine.sh\n"
        "use_docker\necho $engine ${DOCKER_HOST:-}\n"
    )
    return bash(f". {script}", tmp_path / "bin", tmp_path, VLLMENDPOINT_CACHE=str(tmp_path / "cache"))


def test_the_docker_engine_of_the_machine_is_used_if_it_answers(tmp_path: Path) -> None:
    done = use_docker(tmp_path, "exit 0")
    assert done.stdout == "machine\n"
    assert "using the Docker Engine of this machine: docker info succeeds" in done.stderr


def test_without_an_engine_an_unpacked_one_is_used_and_the_reason_is_printed(tmp_path: Path) -> None:
    done = use_docker(tmp_path, "echo Cannot connect to the Docker daemon >&2; exit 1")
    assert done.stdout == "ours unix:///engine/docker.sock\n"
    assert "docker info fails (Cannot connect to the Docker daemon)" in done.stderr


@pytest.mark.parametrize(("version", "builds"), [("28.2.2", False), ("20.10.24+dfsg1", True)])
def test_a_docker_client_without_buildx_is_refused_before_anything_is_built(
    tmp_path: Path, version: str, builds: bool
) -> None:
    answers = f"case $1 in info) ;; version) echo {version} ;; build) ;; *) exit 1 ;; esac"
    program(tmp_path / "bin", "docker", f'echo "$@" >>{tmp_path}/calls; {answers}')
    bash("hack/images.sh docker operator", tmp_path / "bin", VLLMENDPOINT_CACHE=str(tmp_path))
    calls = (tmp_path / "calls").read_text()
    assert ("build --progress plain" in calls) == builds
    if not builds:
        done = bash("hack/images.sh docker operator", tmp_path / "bin", VLLMENDPOINT_CACHE=str(tmp_path))
        assert done.returncode == 1
        assert "this Docker client has no BuildKit: install its plugin buildx" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="buildah's storage belongs to root")
def test_tidy_leaves_the_running_build_of_another_cache_alone(tmp_path: Path) -> None:
    with Path("/run/vllmendpoint-images.lock").open("w") as lock:
        with contextlib.suppress(BlockingIOError):  # a build runs
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        done = bash("hack/images.sh tidy", VLLMENDPOINT_CACHE=str(tmp_path / "another"))
    assert "a build is running: nothing was removed" in done.stderr


@pytest.mark.parametrize("option", ["--bundle", "--process"])
def test_the_runtime_removes_the_capability_that_the_machine_lacks(tmp_path: Path, option: str) -> None:
    process = {"args": ["sh"], "capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE"]}}
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"process": process} if option == "--bundle" else process))
    program(tmp_path, "runc", 'echo "$@"')
    value = tmp_path if option == "--bundle" else file
    done = bash(f"hack/kind/runtime create {option} {value} name", VLLMENDPOINT_RUNC=str(tmp_path / "runc"))
    assert done.stdout == f"create {option} {value} name\n"
    written = json.loads(file.read_text())
    assert written.get("process", written)["capabilities"] == {"bounding": ["CAP_CHOWN"]}


def test_down_without_options_removes_the_cluster_and_the_registry_and_keeps_its_data(tmp_path: Path) -> None:
    for name in ("docker", "kind"):
        program(tmp_path / "bin", name, f'echo {name} "$@" >>{tmp_path}/calls')
    done = bash("hack/kind/cluster.sh down", tmp_path / "bin", VLLMENDPOINT_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text()
    assert "kind delete cluster --name vllmendpoint" in calls
    assert "docker rm --force vllmendpoint-registry" in calls
    assert "volume rm" not in calls
    bash("hack/kind/cluster.sh down --purge", tmp_path / "bin", VLLMENDPOINT_CACHE=str(tmp_path))
    assert "docker volume rm --force vllmendpoint-registry" in (tmp_path / "calls").read_text()
