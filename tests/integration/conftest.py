"""A real API server with its controllers, the operator as a process, and the test as kubelet and worker.

No pod runs here: a test patches ``pods/status``, and answers on a loopback address as the worker.
"""

import base64
import contextlib
import itertools
import json
import os
import select
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import urllib3
import yaml

from tests.integration.chart_account import install_account
from tests.integration.fake_worker import Worker
from tests.integration.operator_process import Operator
from tests.integration.waiting import until

Object = dict[str, Any]

CACHE = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
BIN = Path(os.environ.get("VLLMENDPOINT_CACHE") or Path(CACHE) / "vllmendpoint") / "bin"
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


class Mark(NamedTuple):
    """A moment in the audit log."""

    place: int
    time: str


START = Mark(0, "")


class Api:
    """A running API server. ``audit`` is its log: one line of JSON a request."""

    def __init__(self, folder: Path) -> None:
        self.kubeconfig = folder / "kubeconfig"
        self.operators = self.kubeconfig
        """Of whom operators run as: the administrator, or the chart's account."""
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
        """What kubectl prints; with ``check=False`` also what it complains of."""
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

    def mark(self) -> Mark:
        """Now, in the audit log."""
        return Mark(self.audit.stat().st_size, datetime.now(UTC).isoformat(timespec="microseconds")[:26])

    def log(self, since: Mark, *words: bytes) -> Iterator[Object]:
        """What the audit log says of all requests since then that hold one of these words."""
        with self.audit.open("rb") as log:
            log.seek(max(since.place - 1, 0))
            lines = log.read().split(b"\n")
        lines = lines[1 if since.place else 0 : -1]  # one that was half written then was asked before
        entries = (json.loads(line) for line in lines if any(word in line for word in words))
        # A request that came before may end, and be written down, after.
        return (entry for entry in entries if entry["requestReceivedTimestamp"] >= since.time)

    def asked(self, since: Mark) -> list[Object]:
        """All that operators asked for since then."""
        return list(self.log(since, b"aiohttp", b"kopf"))

    def requests(self, since: Mark, *, namespace: str) -> list[Object]:
        """What operators asked for since then: no watches, nothing of the lease."""
        return [
            entry
            for entry in self.asked(since)
            if entry["verb"] != "watch"
            and entry.get("objectRef", {}).get("namespace") == namespace
            and entry["objectRef"]["resource"] != "leases"
        ]

    def writes(self, since: Mark, *, namespace: str) -> list[str]:
        """``verb resource name`` of every write of an operator since then."""
        return [
            f"{entry['verb']} {entry['objectRef']['resource']} {entry['objectRef'].get('name', '')}"
            for entry in self.requests(since, namespace=namespace)
            if entry["verb"] in ("create", "update", "patch", "delete")
        ]


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with control_plane(tmp_path_factory.mktemp("controlplane")) as (running, _):
        yield running
        asked = [
            entry for entry in running.asked(START) if entry.get("objectRef", {}).get("resource") == "secrets"
        ]
        assert asked == [], "whatever the tests did, no operator asked for a Secret"


@contextlib.contextmanager
def control_plane(folder: Path, binaries: Path = BIN) -> Iterator[tuple[Api, subprocess.Popen[bytes]]]:
    """An API server that knows VLLMEndpoints, and the process whose children are its components."""
    if not (BIN / "cluster").exists():
        pytest.skip(f"no control plane in {BIN}: `hack/cluster/build.sh` builds it")
    with (folder.parent / "controlplane.err").open("wb") as errors:
        process = subprocess.Popen(
            [binaries / "cluster", "controlplane", "--dir", folder], stdout=subprocess.PIPE, stderr=errors
        )
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], 120)
            assert readable, "the control plane was not ready within 120 s"
            assert process.stdout.readline().startswith(b"ready ")
            running = Api(folder)
            running.kubectl("apply", "--server-side", "-f", str(ROOT / "crds" / "vllmendpoints.yaml"))
            # Not `kubectl wait`: it gives up on a CRD that has no conditions yet.
            known = ("get", "vllmendpoints", "-A")
            until(
                lambda: "No resources found" in running.kubectl(*known, check=False), "the CRD is served", 60
            )
            account = folder / "operators.json"
            running.operators = install_account(running.kubectl, BIN / "helm", account)
            yield running, process
            running.close()
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait(10)
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def operate(api: Api, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    """``operate(namespace, flag=value)`` starts one; all end with the test, none may have had a defect."""
    started: list[Operator] = []

    def start(namespace: str, **flags: Any) -> Operator:
        log = tmp_path / f"operator-{len(started)}.log"
        where = flags.pop("kubeconfig", api.operators)
        started.append(Operator(where, namespace, log, **flags))
        return started[-1]

    yield start
    for operator in started:
        operator.kill()
        assert "a defect of the operator" not in operator.text(), operator.text()


_numbers = itertools.count(1)


@pytest.fixture
def namespace(api: Api) -> str:
    name = f"ns-{next(_numbers)}"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    return name


@pytest.fixture(scope="session")
def shared(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """One operator for all tests that need nothing of their own from it; namespace ``shared``."""
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": "shared"}})
    operator = Operator(api.operators, "shared", tmp_path_factory.mktemp("shared") / "operator.log")
    try:
        yield operator.leads()
        assert operator.stop() == 0, operator.text()
        assert "a defect of the operator" not in operator.text(), operator.text()
    finally:
        operator.kill()


class Space:
    """One endpoint of a test, and its kubelet."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self.api, self.namespace, self.name = api, namespace, name
        self.started: list[Worker] = []

    def create(self, **spec: Any) -> "Space":
        body = {"model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"}, **spec}
        self.api.create("VLLMEndpoint", self.namespace, self.name, spec=body)
        return self

    def patch(self, **body: Any) -> Object:
        return self.api.patch("VLLMEndpoint", self.namespace, self.name, body)

    def get(self) -> Object:
        return self.api.call("GET", self.api.path("VLLMEndpoint", self.namespace, self.name))

    def child(self, kind: str, suffix: str = "") -> Object | None:
        return self.api.get(kind, self.namespace, self.name + suffix)

    def condition(self, kind: str) -> Object:
        conditions = self.get().get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {})

    def until(self, kind: str, *wanted: str, seconds: float = 20) -> Object:
        """Wait until the condition has that status and, where given, that reason."""

        def holds() -> Object | None:
            found = self.condition(kind)
            return found if (found.get("status"), found.get("reason"))[: len(wanted)] == wanted else None

        found: Object = until(holds, lambda: f"{kind} {wanted}: {self.get().get('status')}", seconds)
        return found

    def events(self, reason: str) -> list[Object]:
        return [
            event
            for event in self.api.all("Event", self.namespace)
            if event["involvedObject"]["name"] == self.name and event["reason"] == reason
        ]

    def until_told(self, reason: str, times: int = 1) -> None:
        """Wait for that many Events: each follows the status that it tells of, in a write of its own."""
        until(lambda: len(self.events(reason)) >= times, lambda: f"{times} Events {reason}: {self.get()}")
        assert len(self.events(reason)) == times

    def owned(self) -> list[Object]:
        uid = self.get()["metadata"]["uid"]
        return [
            {**obj, "kind": kind}
            for kind in MANAGED
            for obj in self.api.all(kind, self.namespace)
            if any(owner["uid"] == uid for owner in obj["metadata"].get("ownerReferences", []))
        ]

    def pods(self, component: str = "worker") -> list[Object]:
        labels = {"app.kubernetes.io/instance": self.name, "app.kubernetes.io/component": component}
        return [
            pod
            for pod in self.api.all("Pod", self.namespace)
            if labels.items() <= pod["metadata"].get("labels", {}).items()
        ]

    def play(self, pod: Object, *, ready: bool = True, address: str = "127.0.0.1", **main: Any) -> None:
        container = {
            "name": "main",
            "image": "i",
            "imageID": "i",
            "ready": ready,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            **main,
        }
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            # Long ago: the Deployment's minReadySeconds are over.
            "conditions": [
                {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:00:00Z"}
            ],
            "containerStatuses": [container],
        }
        path = self.api.path("Pod", self.namespace, pod["metadata"]["name"])
        self.api.call("PATCH", f"{path}/status", {"status": status}, as_="merge")

    def serve(self, count: int = 1) -> list[Worker]:
        """Run that many workers and the frontend: all ready, all heard."""
        for pod in until(lambda: self.pods("frontend"), "frontend pods"):
            self.play(pod)
        pods = until(lambda: (found := self.pods()) and len(found) == count and found, f"{count} workers")
        return [self.work(pod) for pod in pods]

    def work(self, pod: Object, *, uid: str = "", ready: bool = True) -> Worker:
        settings = self.child("ConfigMap", "-settings")
        assert settings is not None
        hash_ = json.loads(settings["data"]["settings.json"])["hash"]
        number = next(_numbers)
        # Another process of tests, of this run or another, has its own.
        address = f"127.{os.getpid() % 250 + 2}.{number // 200}.{number % 200 + 1}"
        worker = Worker(address, uid or pod["metadata"]["uid"], hash_)
        self.started.append(worker)
        self.play(pod, ready=ready, address=address)
        return worker


@pytest.fixture(scope="module")
def spaces(api: Api) -> Iterator[Callable[..., Space]]:
    """``spaces(namespace)`` is a new endpoint's place there; it and its workers end with the module."""
    yield from _spaces(api)


@pytest.fixture
def space(api: Api) -> Iterator[Callable[..., Space]]:
    """As ``spaces``, for one test."""
    yield from _spaces(api)


def _spaces(api: Api) -> Iterator[Callable[..., Space]]:
    made: list[Space] = []

    def make(namespace: str = "shared", name: str = "") -> Space:
        made.append(Space(api, namespace, name or f"e-{next(_numbers)}"))
        return made[-1]

    yield make
    for item in made:
        with contextlib.suppress(LookupError):
            api.delete("VLLMEndpoint", item.namespace, item.name)
        for worker in item.started:
            if not worker.ended:
                worker.cut()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the garbage collector goes last: it learns of a new CRD within half a minute. The chart's
    tests have control planes of their own, so they are for the process that is free first.
    """
    last = ("test_crash.py", "test_deletion.py")
    items.sort(key=lambda item: item.path.name in last or item.path.parent.name == "chart")


@pytest.fixture(name="until", scope="session")
def until_fixture() -> Callable[..., Any]:
    return until
