"""The API server of the integration tests: requests, kubectl and the audit log."""

import base64
import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import urllib3
import yaml

from tests.project_cache import BIN

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
GROUP = "serving.vllmendpoint.dev"
PATHS = {
    "VLLMEndpoint": f"/apis/{GROUP}/v1alpha1/namespaces/{{}}/vllmendpoints",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "ReplicaSet": "/apis/apps/v1/namespaces/{}/replicasets",
    "ControllerRevision": "/apis/apps/v1/namespaces/{}/controllerrevisions",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "Lease": "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
    **{
        kind: f"/api/v1/namespaces/{{}}/{kind.lower()}s"
        for kind in ("Pod", "Service", "ConfigMap", "ServiceAccount", "Event", "PersistentVolumeClaim")
    },
}
MANAGED = (
    "ControllerRevision",
    "ServiceAccount",
    "RoleBinding",
    "ConfigMap",
    "PersistentVolumeClaim",
    "NetworkPolicy",
    "Service",
    "PodDisruptionBudget",
    "Deployment",
)


class AuditOffset(NamedTuple):
    """A position in the audit log, and its time."""

    place: int
    time: str


START = AuditOffset(0, "")


class Api:
    """A running API server. ``audit`` is its audit log with one JSON line per request."""

    def __init__(self, folder: Path) -> None:
        self.kubeconfig = folder / "kubeconfig"
        self.operators = self.kubeconfig
        """The kubeconfig that operators use: the administrator's, or that of the chart's service account."""
        self.audit = folder / "audit.log"
        config = yaml.safe_load(self.kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        files = {}
        for name, data in {**cluster, **user}.items():
            if name.endswith("-data"):
                files[name] = folder / f"test-{name}"
                files[name].write_bytes(base64.b64decode(data))
        self._url = cluster["server"]
        self._http = urllib3.PoolManager(
            maxsize=4,
            ca_certs=str(files["certificate-authority-data"]),
            cert_file=str(files["client-certificate-data"]),
            key_file=str(files["client-key-data"]),
            headers={"User-Agent": "tests"},
            retries=False,
            timeout=30,
        )

    def close(self) -> None:
        self._http.clear()

    def kubectl(self, *arguments: str, text: str = "", check: bool = True) -> str:
        """Run kubectl and return its standard output; with ``check=False`` also its standard error."""
        done = subprocess.run(
            [BIN / "kubectl", f"--kubeconfig={self.kubeconfig}", *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def call(self, method: str, path: str, body: Object | None = None, *, as_: str = "json") -> Object:
        kinds = {"json": "application/json", "apply": "application/apply-patch+yaml"}
        kind = kinds.get(as_, f"application/{as_}-patch+json")
        data = None if body is None else json.dumps(body)
        answer = self._http.request(method, self._url + path, body=data, headers={"Content-Type": kind})
        found: Object = json.loads(answer.data)
        if answer.status >= 400:
            raise LookupError(f"{method} {path}: {answer.status}: {found.get('message')}")
        return found

    def path(self, kind: str, namespace: str, name: str = "") -> str:
        return PATHS[kind].format(namespace) + (f"/{name}" if name else "")

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        try:
            return self.call("GET", self.path(kind, namespace, name))
        except LookupError:
            return None

    def all(self, kind: str, namespace: str) -> list[Object]:
        return list(self.call("GET", self.path(kind, namespace))["items"])

    def create(self, kind: str, namespace: str, name: str, **more: Any) -> Object:
        path = self.path(kind, namespace)
        version = "/".join(path.split("/")[2:-3])
        metadata = {"name": name, **more.pop("metadata", {})}
        return self.call("POST", path, {"apiVersion": version, "kind": kind, "metadata": metadata, **more})

    def patch(self, kind: str, namespace: str, name: str, body: Object) -> Object:
        return self.call("PATCH", self.path(kind, namespace, name), body, as_="merge")

    def delete(self, kind: str, namespace: str, name: str, propagation: str = "Background") -> None:
        self.call("DELETE", self.path(kind, namespace, name), {"propagationPolicy": propagation})

    def audit_offset(self) -> AuditOffset:
        """The current end of the audit log."""
        return AuditOffset(
            self.audit.stat().st_size, datetime.now(UTC).isoformat(timespec="microseconds")[:26]
        )

    def log(self, since: AuditOffset, *words: bytes) -> Iterator[Object]:
        """Audit log entries since the offset that contain one of the words."""
        with self.audit.open("rb") as log:
            log.seek(max(since.place - 1, 0))
            lines = log.read().split(b"\n")
        lines = lines[1 if since.place else 0 : -1]  # the first line may be of a request before the offset
        entries = (json.loads(line) for line in lines if any(word in line for word in words))
        # A request before the offset may be logged after it.
        return (entry for entry in entries if entry["requestReceivedTimestamp"] >= since.time)

    def operator_requests(self, since: AuditOffset) -> list[Object]:
        """All requests of operators since the offset."""
        return list(self.log(since, b"aiohttp", b"kopf"))

    def requests(self, since: AuditOffset, *, namespace: str) -> list[Object]:
        """Requests of operators in the namespace since the offset, except watches and leases."""
        return [
            entry
            for entry in self.operator_requests(since)
            if entry["verb"] != "watch"
            and entry.get("objectRef", {}).get("namespace") == namespace
            and entry["objectRef"]["resource"] != "leases"
        ]

    def writes(self, since: AuditOffset, *, namespace: str) -> list[str]:
        """``verb resource name`` of every write of operators since the offset."""
        return [
            f"{entry['verb']} {entry['objectRef']['resource']} {entry['objectRef'].get('name', '')}"
            for entry in self.requests(since, namespace=namespace)
            if entry["verb"] in ("create", "update", "patch", "delete")
        ]
