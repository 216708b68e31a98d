"""Runs the commands of the documents with kubectl and helm against an API server with the installed chart.

No pods run: waiting, exec, logs, port-forwards, requests and builds of images are omitted.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.chart.installed_chart import NAME, Cluster, endpoint, running_cluster
from tests.project_cache import BIN
from tests.user_docs import DOCS, PAGES, commands

ROOT = DOCS.parent
INSTALLATION = DOCS / "getting-started/any-cluster.md"
LIFECYCLE = [DOCS / "tasks/upgrade.md", DOCS / "tasks/roll-back.md"]
OMITTED = re.compile(r"\b(curl|docker|make|jq)\b|KUBECONFIG")
KUBECTL = """#!/bin/bash
case " $* " in *" logs "*|*" port-forward "*|*" wait "*|*" exec "*) exit 0;; esac
exec {program} --kubeconfig={kubeconfig} --namespace={namespace} "$@"
"""
HELM = """#!/bin/bash
case $1 in test) exit 0;; esac
arguments=()
for argument; do [[ $argument == --wait ]] || arguments+=("$argument"); done
exec {program} --kubeconfig={kubeconfig} "${{arguments[@]}}"
"""


def runnable(page: Path) -> list[str]:
    return [block for block in commands(page.read_text()) if not OMITTED.search(block)]


OTHER_PAGES = [page for page in PAGES if runnable(page) and page not in (INSTALLATION, *LIFECYCLE)]


def run_page(cluster: Cluster, folder: Path, namespace: str, page: Path) -> None:
    """Run the blocks of a page in order, in a folder with the files that they name."""
    for name, script in (("kubectl", KUBECTL), ("helm", HELM)):
        text = script.format(program=BIN / name, kubeconfig=cluster.kubeconfig, namespace=namespace)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    for name in ("samples", "charts"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "previous.yaml").write_text(endpoint(namespace))
    (folder / "ca.crt").write_text("a certificate")
    for block in runnable(page):
        script = block.replace("OPERATOR_NAMESPACE", "ops").replace("NAMESPACE", namespace)
        script = script.replace("RELEASE", NAME).replace("NAME", "tiny").replace("POD", "pod")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{page}\n{script}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster on which the commands of "Install on any cluster" have run."""
    with running_cluster(tmp_path_factory.mktemp("documented") / "cluster") as cluster:
        run_page(cluster, tmp_path_factory.mktemp("installation"), "default", INSTALLATION)
        yield cluster


def test_the_installation_creates_the_operator_and_the_endpoint(documented: Cluster) -> None:
    deployment = documented.get("deployment", NAME, "--namespace", "vllmendpoint-system")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith("registry.example.com/vllmendpoint/operator:")
    assert documented.get("vep", "llama")["spec"]["model"]["tokenSecretRef"]["name"] == "hugging-face"
    assert documented.names("secret,pvc") == {"secret/hugging-face", "persistentvolumeclaim/models"}


@pytest.mark.parametrize("page", OTHER_PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_succeed(documented: Cluster, tmp_path: Path, page: Path) -> None:
    namespace = f"{page.parent.name}-{page.stem}".lower()
    documented.kubectl("create", "namespace", namespace)
    documented.kubectl("apply", "-f", "-", text=endpoint(namespace))
    run_page(documented, tmp_path, namespace, page)


def test_upgrade_and_rollback_are_revisions_of_the_release(documented: Cluster, tmp_path: Path) -> None:
    for number, page in enumerate(LIFECYCLE):
        assert any("helm" in block for block in runnable(page)), page
        folder = tmp_path / str(number)
        folder.mkdir()
        documented.kubectl("apply", "-f", "-", text=endpoint("default"))
        run_page(documented, folder, "default", page)
    history = documented.helm("history", NAME, "--namespace", "vllmendpoint-system")
    assert history.count("Upgrade complete") >= 1
    assert "Rollback to" in history
