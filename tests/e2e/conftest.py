"""A cluster with the operator in it (``hack/deploy.sh``), and one namespace for a module's tests."""

import fcntl
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from tests.free_port import free_port
from tests.project_cache import BIN, CACHE

ROOT = Path(__file__).parents[2]
SYSTEM = "vllmendpoint-system"
ON_KIND = os.environ.get("CLUSTER") == "kind"
TOY = "pvc://models/toy-llama"
T = TypeVar("T")
CHAT = "pvc://models/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Cluster:
    """kubectl on the deployed cluster; other contexts of this machine are not used."""

    kubeconfig: str
    namespace: str = "default"

    def kubectl(self, *args: str, stdin: str = "", check: bool = True, timeout: float = 60) -> str:
        done = subprocess.run(
            ["kubectl", "--kubeconfig", self.kubeconfig, "-n", self.namespace, *args],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout if check else done.stdout + done.stderr

    def get(self, *args: str) -> Any:
        return json.loads(self.kubectl("get", *args, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def change(self, name: str, **spec: Any) -> None:
        """Merge these fields into an endpoint's spec; None removes a field."""
        self.kubectl("patch", "vep", name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def endpoint(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get("vep", name)
        return found

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        for condition in self.endpoint(name).get("status", {}).get("conditions", []):
            if condition["type"] == kind:
                return dict(condition)
        return {"status": "", "reason": "", "message": ""}

    def workers(self, name: str, component: str = "worker") -> list[dict[str, Any]]:
        selector = f"app.kubernetes.io/instance={name},app.kubernetes.io/component={component}"
        return list(self.get("pods", "-l", selector)["items"])

    def wait_ready(self, name: str, seconds: int = 600) -> None:
        out = self.kubectl(
            "wait",
            "--for=condition=Ready",
            f"vep/{name}",
            f"--timeout={seconds}s",
            check=False,
            timeout=seconds + 30,
        )
        if "condition met" not in out:
            raise AssertionError(f"{out}\n{self.kubectl('describe', 'vep', name)}")

    def python(self, pod: str, script: str, *args: str) -> str:
        """Standard output of a Python script that runs in the pod's container main."""
        return self.kubectl("exec", pod, "-c", "main", "--", "python3", "-c", script, *args)

    def signal_engine(self, pod: str, signal: str) -> None:
        """Send a signal to the engine's core process in a worker pod."""
        script = (
            "import os, pathlib, signal, sys\n"
            "found = [int(p.parent.name) for p in pathlib.Path('/proc').glob('[0-9]*/comm')"
            " if 'EngineCor' in p.read_text()]\n"
            "[os.kill(pid, getattr(signal, sys.argv[1])) for pid in found]\n"
            "sys.exit(0 if found else 'no engine core process')"
        )
        self.python(pod, script, signal)

    @contextmanager
    def forward(self, service: str, port: int) -> Iterator[str]:
        """Base URL of a port-forward to a Service. It is restarted: kubectl ends if a connection is reset."""
        local = free_port()
        command = ["kubectl", "--kubeconfig", self.kubeconfig, "-n", self.namespace, "port-forward"]
        forward = shlex.join([*command, service, f"{local}:{port}"])
        with subprocess.Popen(
            ["sh", "-c", f"while :; do {forward}; sleep 0.2; done"],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                eventually(lambda: _listens(local), bool, 30)
                yield f"http://127.0.0.1:{local}"
            finally:
                os.killpg(process.pid, signal.SIGKILL)

    @contextmanager
    def watch_status(self, name: str, *paths: str) -> Iterator[list[str]]:
        """A growing list: the values of these JSON paths of an endpoint's status, appended at each change."""
        lines: list[str] = []
        template = "".join(f'{{.status{path}}}{{"\\n"}}' for path in paths)
        command = ["kubectl", "--kubeconfig", self.kubeconfig, "-n", self.namespace, "get", "vep", name]
        with subprocess.Popen(
            [*command, "--watch", "-o", f"jsonpath={template}"], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            reader = threading.Thread(target=lines.extend, args=(map(str.strip, process.stdout),))
            reader.start()
            try:
                yield lines
            finally:
                process.kill()
                reader.join(10)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def post(url: str, body: dict[str, Any], seconds: float = 60, **headers: str) -> tuple[int, str]:
    """Status and body; status 0 without a response in time. Retries while a port-forward restarts."""
    sent = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, json.dumps(body).encode(), sent)
    end = time.monotonic() + 10
    while True:
        try:
            with urllib.request.urlopen(request, timeout=seconds) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(errors="replace")
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.IncompleteRead) as error:
            cause = getattr(error, "reason", error)
            if not isinstance(cause, ConnectionError | http.client.IncompleteRead) or time.monotonic() > end:
                return 0, str(error)
        time.sleep(0.3)


def chat(
    base: str, model: str, question: str = "What is the capital of France?", seconds: float = 60, **extra: Any
) -> tuple[int, str]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 24,
        "temperature": 0,
        **extra,
    }
    return post(f"{base}/v1/chat/completions", body, seconds)


def eventually(
    probe: Callable[[], T], is_expected: Callable[[T], bool], seconds: float, every: float = 0.3
) -> T:
    """Poll until a value is expected, and return it. Fails after ``seconds`` with the last value."""
    end = time.monotonic() + seconds
    while True:
        value = probe()
        if is_expected(value):
            return value
        assert time.monotonic() < end, f"not within {seconds} s; last seen: {value}"
        time.sleep(every)


ENGINE = ["--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8"]
ENGINE += ["--dtype", "float32"]  # CPUs round bfloat16 differently, and a test checks the chat model's answer
ENGINE += ["--kv-cache-memory-bytes", "67108864"]
ONE_PROCESS = {"name": "VLLM_ENABLE_V1_MULTIPROCESSING", "value": "0"}
"""With ``--distributed-executor-backend uni``, the model runs in the engine core's process, as on one GPU. By
default vLLM runs it in a separate process on CPUs, which takes a third longer to start."""


def manifest(name: str, *, uri: str = TOY, **spec: Any) -> dict[str, Any]:
    """A VLLMEndpoint that fits a small machine; keyword arguments override fields of the spec."""
    base: dict[str, Any] = {
        "model": {"uri": uri},
        "engine": {"args": [*ENGINE, "--distributed-executor-backend", "uni"]},
        "worker": {
            "sharedMemorySize": "1Gi",
            "resources": {"limits": {"memory": "5Gi"}},
            "env": [ONE_PROCESS],
        },
        "healthCheck": {"periodSeconds": 5, "timeoutSeconds": 5},
        **spec,
    }
    return {
        "apiVersion": "serving.vllmendpoint.dev/v1alpha1",
        "kind": "VLLMEndpoint",
        "metadata": {"name": name},
        "spec": base,
    }


def worker_image() -> str:
    """The worker image for CPUs."""
    return _image("worker-cpu")


def frontend_image() -> str:
    return _image("frontend")


def _image(part: str) -> str:
    """An image with the tag that ``hack/deploy.sh`` sets: the beginning of the image ID.

    On kind, it is in the registry that ``hack/kind/engine.sh`` names.
    """
    for line in (CACHE / "images.txt").read_text().splitlines():
        name, identity = line.split()
        if f"/{part}:" in name:
            image = f"{name.rpartition(':')[0]}:{identity[:12]}"
            return image.replace("localhost/", "localhost:5011/") if ON_KIND else image
    raise AssertionError("no image was built: run `make deploy` first (`make test` does)")


def python_pod(name: str, script: str, labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A pod that runs a script and belongs to no endpoint; keyword arguments override its spec."""
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    main = {
        "name": "main",
        "image": worker_image(),
        "command": ["python3", "-c", script],
        "securityContext": security,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"containers": [main], "terminationGracePeriodSeconds": 0, **spec},
    }


def make_volume(cluster: Cluster) -> None:
    """A PersistentVolumeClaim `models` in the namespace, bound to this machine's models."""
    models = "/var/lib/vllmendpoint/models" if ON_KIND else str(CACHE / "models")
    text = (ROOT / "samples/models-volume.yaml").read_text()
    text = text.replace("@MODELS@", models).replace("vllmendpoint-models", f"models-{cluster.namespace}")
    cluster.kubectl("apply", "-f", "-", stdin=text)


@pytest.fixture(scope="session")
def deployed() -> Cluster:
    """The cluster as ``make deploy`` leaves it."""
    if ON_KIND:
        return Cluster(str(CACHE / "kind/kubeconfig"))
    path = subprocess.run(
        [BIN / "cluster", "kubeconfig"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert Path(path).exists(), "no cluster is up: run `make deploy` first (`make test` does)"
    return Cluster(path)


@pytest.fixture(scope="module")
def cluster(deployed: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A namespace for the module, under Pod Security "restricted"; it is deleted afterwards."""
    name = "e2e-" + request.module.__name__.rsplit("test_", 1)[-1].replace("_", "-")
    deployed.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait", timeout=180)
    deployed.kubectl("delete", "pv", f"models-{name}", "--ignore-not-found")
    deployed.kubectl("create", "namespace", name)
    deployed.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    scoped = Cluster(deployed.kubeconfig, name)
    make_volume(scoped)
    yield scoped
    # Takes half a minute if a worker still runs; the next run of the module waits for the deletion.
    deployed.kubectl("delete", "namespace", name, "--wait=false")
    deployed.kubectl("delete", "pv", f"models-{name}", "--wait=false")


def first_node(cluster: Cluster) -> dict[str, Any]:
    """The oldest node, which runs the control plane; others may be added meanwhile."""
    return dict(min(cluster.get("nodes")["items"], key=lambda n: str(n["metadata"]["creationTimestamp"])))


@contextmanager
def nodes_locked(operation: int) -> Iterator[None]:
    """Separate tests whose expected messages count the nodes (LOCK_SH) from those that add one (LOCK_EX).

    The modules run at the same time in different processes. The time limit of the test bounds the wait.
    """
    with (CACHE / "nodes.lock").open("w") as file:
        fcntl.flock(file, operation)
        yield


@pytest.fixture(scope="session")
def host(deployed: Cluster) -> str:
    """The address at which pods reach servers of this machine: the local address of the route to the node."""
    node = first_node(deployed)
    address = next(a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        route.connect((address, 9))  # sends nothing
        return str(route.getsockname()[0])


@pytest.fixture
def gpu(cluster: Cluster) -> Iterator[None]:
    """The first node reports one GPU, as with a device plugin."""
    node = first_node(cluster)

    def patch(*operations: dict[str, str]) -> None:
        name = node["metadata"]["name"]
        text = json.dumps(operations)
        cluster.kubectl("patch", "node", name, "--subresource=status", "--type=json", "-p", text)

    paths = [f"/status/{part}/nvidia.com~1gpu" for part in ("capacity", "allocatable")]
    patch(*({"op": "add", "path": path, "value": "1"} for path in paths))
    yield
    patch(*({"op": "remove", "path": path} for path in paths))
