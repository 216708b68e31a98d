"""The chart on a separate control plane, and the operator as the installed Deployment would run it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.audit import requests
from tests.integration.api_server import Api
from tests.integration.chart_account import CHART, NAME, kubeconfig_of
from tests.integration.control_plane import bare_control_plane
from tests.integration.fake_worker import REPORT_PORT
from tests.project_cache import BIN

__all__ = [
    "CHART",
    "NAME",
    "Cluster",
    "endpoint",
    "readme_object",
    "run",
    "running_cluster",
    "running_operator",
]

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
        """``resource``: ``type``, ``type:subresource`` or ``type/name``; ``user``: a user or service account.

        A service account has the form ``namespace/account``.
        """
        if "/" in user:
            user = f"system:serviceaccount:{user.replace('/', ':')}"
        kind, _, sub = resource.partition(":")
        output = self.kubectl(
            "auth", "can-i", verb, kind, f"--subresource={sub}", "-n", namespace, "--as", user, check=False
        )
        return "yes" in output.splitlines()

    def cluster_scoped(self) -> set[str]:
        kinds = "clusterroles,clusterrolebindings,validatingadmissionpolicies"
        kinds += ",validatingadmissionpolicybindings,customresourcedefinitions"
        return self.names(kinds)

    def requests(self, user: str) -> list[Object]:
        """The requests of this ``namespace/account``."""
        name = f"system:serviceaccount:{user.replace('/', ':')}"
        return requests(self.api.audit, lambda by: by == name)

    def rules(self, user: str) -> list[Object]:
        """The rules of all roles that are bound to this ``namespace/account``."""
        namespace, account = user.split("/")
        subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
        found = []
        for binding in self.get("clusterrolebindings,rolebindings", "-A")["items"]:
            if subject in binding.get("subjects", ()):
                role, where = binding["roleRef"], binding["metadata"].get("namespace", "default")
                found += self.get(role["kind"], role["name"], "-n", where)["rules"]
        return found


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Without CRDs: the chart installs them."""
    with bare_control_plane(folder) as (api, _):
        yield Cluster(api)


@contextlib.contextmanager
def running_operator(cluster: Cluster, namespace: str, folder: Path, code: str = "") -> Iterator[None]:
    """The operator with the environment and the service account of the Deployment in ``namespace``.

    Its interpreter first runs ``code``. At the end, the operator must exit with 0 after SIGTERM, and no
    request of it may have been forbidden."""
    deployment = cluster.get("deployment", NAME, "-n", namespace)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    # The API server omits empty values.
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
            exit_code = process.wait(20)
    text = log.read_text()
    assert exit_code == 0, text
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


def readme_object(kind: str) -> str:
    """The only object of this kind in the chart's README."""
    blocks: list[str] = re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    (found,) = [block for block in blocks if f"kind: {kind}\n" in block]
    return found
