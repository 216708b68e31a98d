"""The chart on a control plane of its own, and the operator as the installed Deployment would run it."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.audit import requests
from tests.integration.api_server import BIN, Api
from tests.integration.chart_account import CHART, NAME, kubeconfig_of
from tests.integration.fake_worker import REPORT_PORT

__all__ = ["CHART", "NAME", "Cluster", "control_plane", "endpoint", "operating", "readme", "run"]

Object = dict[str, Any]


def run(*command: str | Path, text: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=120)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done


class Cluster:
    def __init__(self, api: Api) -> None:
        self.api = api
        self.kubeconfig = api.kubeconfig

    def kubectl(self, *arguments: str, text: str = "", check: bool = True) -> str:
        done = run(BIN / "kubectl", f"--kubeconfig={self.kubeconfig}", *arguments, text=text, check=check)
        return done.stdout.strip() if check else (done.stdout + done.stderr).strip()

    def helm(self, *arguments: str | Path, program: str = "helm") -> str:
        return run(BIN / program, f"--kubeconfig={self.kubeconfig}", *arguments).stdout

    def get(self, *arguments: str) -> Object:
        found: Object = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def names(self, *arguments: str) -> set[str]:
        return set(self.kubectl("get", *arguments, "-o", "name").split())

    def can(self, namespace: str, user: str, verb: str, resource: str) -> bool:
        """Of a ``type``, ``type:subresource`` or ``type/name``; a user, or ``namespace/account``."""
        if "/" in user:
            user = f"system:serviceaccount:{user.replace('/', ':')}"
        kind, _, sub = resource.partition(":")
        said = self.kubectl(
            "auth", "can-i", verb, kind, f"--subresource={sub}", "-n", namespace, "--as", user, check=False
        )
        return "yes" in said.splitlines()

    def cluster_scoped(self) -> set[str]:
        kinds = "clusterroles,clusterrolebindings,validatingadmissionpolicies"
        kinds += ",validatingadmissionpolicybindings,customresourcedefinitions"
        return self.names(kinds)

    def requests(self, user: str) -> list[Object]:
        """What that ``namespace/account`` asked for."""
        name = f"system:serviceaccount:{user.replace('/', ':')}"
        return requests(self.api.audit, lambda by: by == name)

    def rules(self, user: str) -> list[Object]:
        """The rules of all roles that are bound to that ``namespace/account``."""
        namespace, account = user.split("/")
        subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
        found = []
        for binding in self.get("clusterrolebindings,rolebindings", "-A")["items"]:
            if subject in binding.get("subjects", ()):
                role, where = binding["roleRef"], binding["metadata"].get("namespace", "default")
                found += self.get(role["kind"], role["name"], "-n", where)["rules"]
        return found


@contextlib.contextmanager
def control_plane(folder: Path) -> Iterator[Cluster]:
    """Without our CRDs: the chart brings them. It starts in a few seconds."""
    command: list[str | Path] = [BIN / "cluster", "controlplane", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], 120)
            assert readable, "the control plane was not ready within 120 s"
            assert process.stdout.readline().startswith(b"ready ")
            api = Api(folder)
            yield Cluster(api)
            api.close()
        finally:
            process.terminate()


@contextlib.contextmanager
def operating(cluster: Cluster, namespace: str, folder: Path, code: str = "") -> Iterator[None]:
    """The operator with the environment and the service account of the Deployment ``namespace`` holds.

    ``code`` is run by its interpreter before it. Afterwards it has ended as asked, and nothing was forbidden.
    """
    deployment = cluster.get("deployment", NAME, "-n", namespace)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    # The API server leaves out what is empty.
    env = {
        item["name"]: "here" if "valueFrom" in item else item.get("value", "") for item in container["env"]
    }
    path = kubeconfig_of(cluster.kubectl, namespace, NAME, folder / "operator.json")
    start = f"{code}\nimport sys\nfrom vllmendpoint_operator.main import main\nsys.exit(main())"
    log = folder / "operator.log"
    overridden = {
        "VLLMENDPOINT_BIND_ADDRESS": "127.0.0.1",
        "VLLMENDPOINT_METRICS_PORT": "0",
        "VLLMENDPOINT_HEALTH_PORT": "0",
        "VLLMENDPOINT_REPORT_PORT": str(REPORT_PORT),
    }
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", start, f"--kubeconfig={path}"],
            env={**os.environ, **env, **overridden},
            stdout=out,
            stderr=out,
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            ended = process.wait(20)
    text = log.read_text()
    assert ended == 0, text
    assert "forbidden: User" not in text, text
    assert "Traceback" not in text, text


def endpoint(namespace: str, name: str = "tiny", **spec: Any) -> str:
    return json.dumps(
        {
            "apiVersion": "serving.vllmendpoint.dev/v1alpha1",
            "kind": "VLLMEndpoint",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"model": {"uri": "file:///models/tiny"}, **spec},
        }
    )


def readme(kind: str) -> str:
    """The one object of that kind in the chart's README."""
    blocks: list[str] = re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    (found,) = [block for block in blocks if f"kind: {kind}\n" in block]
    return found
