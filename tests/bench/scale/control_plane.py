"""A real control plane with a scheduler, ten simulated nodes, and simulated pods that become ready."""

import base64
import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import urllib3
import yaml

from tests.project_cache import BIN

from .machine import Process, until

__all__ = ["GROUP", "ROOT", "Api", "ControlPlane"]

Object = dict[str, Any]

ROOT: Final = Path(__file__).parents[3]
GROUP: Final = "serving.vllmendpoint.dev"
NODES: Final = 10


class Api:
    """A thread-safe client of the API server."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        files = {}
        for name, data in {**cluster, **user}.items():
            if name.endswith("-data"):
                files[name] = kubeconfig.with_name(f"bench-{name}")
                files[name].write_bytes(base64.b64decode(data))
        self._url = cluster["server"]
        self._http = urllib3.PoolManager(
            maxsize=16,
            ca_certs=str(files["certificate-authority-data"]),
            cert_file=str(files["client-certificate-data"]),
            key_file=str(files["client-key-data"]),
            headers={"User-Agent": "bench"},
            retries=False,
        )

    def call(self, method: str, path: str, body: Object | None = None, kind: str = "json") -> Object:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": f"application/{kind}", "User-Agent": "bench"}
        answer = self._http.request(method, self._url + path, body=data, headers=headers, timeout=60)
        if answer.status >= 400:
            raise LookupError(f"{method} {path}: {answer.status}: {answer.data[:500]!r}")
        found: Object = json.loads(answer.data)
        return found

    def watch(self, path: str) -> Iterator[Object]:
        """Yields new watch events until the server ends the watch."""
        url = f"{self._url}{path}?watch=true&timeoutSeconds=3600"
        answer = self._http.request("GET", url, preload_content=False, timeout=3600)
        buffer = b""
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            for chunk in answer.stream(1 << 16):
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)


class ControlPlane:
    """Runs for the duration of the ``with``; then all its processes are killed and the data is deleted."""

    def __enter__(self) -> "ControlPlane":
        self._started = 0
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vllmendpoint-bench-")))
            self._start("controlplane", BIN / "cluster", "controlplane", "--dir", self.folder, stack=stack)
            self.kubeconfig = self.folder / "kubeconfig"
            until(self.kubeconfig.exists, "the control plane is ready", 120)
            self.api = Api(self.kubeconfig)
            crd = yaml.safe_load((ROOT / "crds/vllmendpoints.yaml").read_text())
            self.api.call("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
            until(self._served, "the CRD is served", 60)
            self._start(
                "scheduler",
                BIN / "kube-scheduler",
                *(
                    f"--{use}kubeconfig={self.kubeconfig}"
                    for use in ("", "authentication-", "authorization-")
                ),
                *("--leader-elect=false", "--authentication-skip-lookup", "--secure-port=0"),
                *("--kube-api-qps=300", "--kube-api-burst=600"),
                stack=stack,
            )
            kwok = self._start(
                "kwok",
                BIN / "kwok",
                *(f"--kubeconfig={self.kubeconfig}", "--manage-all-nodes=true", "--node-ip=10.244.255.254"),
                "--node-lease-duration-seconds=40",
                f"--config={Path(__file__).with_name('stages.yaml')}",
                stack=stack,
            )
            for number in range(NODES):
                self.api.call("POST", "/api/v1/nodes", _node(number))
            until(self._nodes_ready, lambda: f"the nodes are ready: {kwok.log.read_text()[-2000:]}", 60)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def audit(self) -> Path:
        """The audit log: one line of JSON per request."""
        return self.folder / "audit.log"

    def start(self, name: str, *command: str | Path) -> Process:
        """Start a process that ends with the control plane at the latest."""
        return self._start(name, *command, stack=self._stack)

    def _start(self, name: str, *command: str | Path, stack: contextlib.ExitStack) -> Process:
        if not Path(command[0]).exists():
            raise SystemExit(f"{command[0]} does not exist: `make bench-scale` builds it")
        self._started += 1
        process = Process(command, self.folder / f"{name}-{self._started}.log")
        # At SIGTERM, the control plane ends its own children.
        stack.callback(process.stop if name == "controlplane" else process.kill)
        return process

    def _served(self) -> bool:
        try:
            self.api.call("GET", f"/apis/{GROUP}/v1alpha1/vllmendpoints")
        except LookupError:
            return False
        return True

    def _nodes_ready(self) -> bool:
        nodes = self.api.call("GET", "/api/v1/nodes")["items"]
        ready = {"type": "Ready", "status": "True"}
        return all(
            not node["spec"].get("taints")
            and any(ready.items() <= found.items() for found in node["status"].get("conditions", []))
            for node in nodes
        )

    def namespaces(self, names: list[str]) -> None:
        for name in names:
            self.api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
            account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
            until(partial(self._exists, account), f"{account} exists")

    def _exists(self, path: str) -> bool:
        with contextlib.suppress(LookupError):
            return bool(self.api.call("GET", path))
        return False

    def kubectl(self, *arguments: str) -> str:
        command: list[str | Path] = [BIN / "kubectl", f"--kubeconfig={self.kubeconfig}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout


def _node(number: int) -> Object:
    """A node with addresses for 4,094 pods: kwok assigns them from the node's range."""
    return {
        "metadata": {"name": f"node-{number}", "labels": {"kubernetes.io/hostname": f"node-{number}"}},
        "spec": {"podCIDR": f"10.244.{number * 16}.0/20", "podCIDRs": [f"10.244.{number * 16}.0/20"]},
        "status": {
            kind: {"cpu": "1k", "memory": "1Ti", "pods": "4000"} for kind in ("capacity", "allocatable")
        },
    }
