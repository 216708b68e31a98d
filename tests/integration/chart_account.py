"""The chart's ServiceAccount for the operators of tests, which fail if the chart lacks a permission."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "charts" / "vllmendpoint-operator"
NAME = "vllmendpoint-operator"

Kubectl = Callable[..., str]


def kubeconfig_of(kubectl: Kubectl, namespace: str, account: str, path: Path) -> Path:
    """A kubeconfig at ``path`` whose user is that ServiceAccount."""
    kubeconfig = json.loads(kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
    token = kubectl("create", "token", account, "-n", namespace, "--duration=12h").strip()
    kubeconfig["users"] = [{"name": account, "user": {"token": token}}]
    for context in kubeconfig["contexts"]:
        context["context"]["user"] = account
    path.write_text(json.dumps(kubeconfig))
    return path


def install_account(kubectl: Kubectl, helm: Path, path: Path) -> Path:
    """Create the account; returns its kubeconfig. Its operators can have their lease in any namespace."""
    kubectl("create", "namespace", "ops")
    only = [f"--show-only=templates/{name}.yaml" for name in ("rbac", "serviceaccount")]
    command: list[str | Path] = [helm, "template", NAME, CHART, "--namespace", "ops", *only]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    objects = [_cluster_wide(found) for found in yaml.safe_load_all(done.stdout) if found]
    kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    return kubeconfig_of(kubectl, "ops", NAME, path)


def _cluster_wide(obj: dict[str, Any]) -> dict[str, Any]:
    if obj["kind"] not in ("Role", "RoleBinding"):
        return obj
    metadata = {key: value for key, value in obj["metadata"].items() if key != "namespace"}
    found = {**obj, "kind": f"Cluster{obj['kind']}", "metadata": metadata}
    if "roleRef" in found:
        found["roleRef"] = {**found["roleRef"], "kind": "ClusterRole"}
    return found
