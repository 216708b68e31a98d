"""A condition states the cause of a failure in one sentence. The causes are real; some need a real engine."""

import fcntl
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.project_cache import CACHE
from vllmendpoint_api import Reason

from .conftest import Cluster, eventually, manifest, nodes_locked, python_pod
from .hub import serve_hub

pytestmark = pytest.mark.timeout(600)
REGISTRY_PORT = 5099
REGISTRY = f"localhost:{REGISTRY_PORT}"  # on the node's loopback, where containerd uses plain HTTP
PULLER = "puller:opensesame"
REGISTRY_SERVER = f"""
import base64, http.server as h, socket
KNOWN = 'Basic ' + base64.b64encode(b'{PULLER}').decode()
class DenyingRegistry(h.BaseHTTPRequestHandler):
    def handle(self):
        if self.connection.recv(1, socket.MSG_PEEK) == bytes([22]):  # TLS is tried first
            self.connection.recv(65536)
            self.connection.sendall(b'HTTP/1.1 400 Bad Request\\r\\n\\r\\n')
        else:
            super().handle()
    def do_GET(self):
        private = 'private' in self.path
        known = self.headers['Authorization'] == KNOWN
        self.send_response(404 if private and known else 401 if private else 403)
        if private and not known:
            self.send_header('WWW-Authenticate', 'Basic realm="r"')
        self.end_headers()
        self.wfile.write(b'{{"errors": [{{"code": "DENIED", "message": "not for you"}}]}}')
    do_HEAD = do_GET
h.ThreadingHTTPServer(('127.0.0.1', {REGISTRY_PORT}), DenyingRegistry).serve_forever()
"""
# Python runs a hook before the worker. The allocation is large: close to its limit, a process may thrash for
# minutes.
HOOKS = {
    "hog": "b'x' * (2 << 30)",
    "fill": "import time; open('/var/cache/vllmendpoint/x', 'wb').write(bytes(9 << 20)); time.sleep(3600)",
}
PAYLOAD = "DYN_HEALTH_CHECK_PAYLOAD"
HUB = "@HUB@"
NOWHERE = "@NOWHERE@"


def worker(**fields: Any) -> dict[str, Any]:
    """Low requests, because the workers of all cases run at the same time."""
    resources = {"requests": {"memory": "64Mi"}, "limits": {"memory": "4Gi"}}
    return {"sharedMemorySize": "1Gi", "resources": resources, **fields}


def worker_with_hook(name: str, **fields: Any) -> dict[str, Any]:
    """A worker that runs one of HOOKS instead of its own code."""
    volume = {
        "name": "hook",
        "configMap": {"name": "hooks", "items": [{"key": name, "path": "sitecustomize.py"}]},
    }
    main = {"name": "main", "volumeMounts": [{"name": "hook", "mountPath": "/hook"}]}
    template = {"spec": {"containers": [main], "volumes": [volume]}}
    return worker(env=[{"name": "PYTHONPATH", "value": "/hook"}], podTemplate=template, **fields)


class Case(NamedTuple):
    """``condition`` becomes False with ``reason``, and its message contains all of ``message_parts``."""

    name: str
    spec: dict[str, Any]
    condition: str
    reason: Reason
    message_parts: tuple[str, ...]


CASES = [
    Case(
        "no-gpu",
        {"worker": worker(resources={"limits": {"nvidia.com/gpu": 1}})},
        "Available",
        Reason.INSUFFICIENT_GPU,
        (
            "is waiting for 1 nvidia.com/gpu: none of 1 node offers that many, free or in use.",
            "device plugin",
        ),
    ),
    Case(
        "no-cpu",
        {"worker": worker(resources={"requests": {"cpu": "500"}})},
        "Available",
        Reason.UNSCHEDULABLE,
        ("is waiting for 500 cpu: none of 1 node is large enough, even when empty.", "1 Insufficient cpu"),
    ),
    Case(
        "no-claim",
        {"model": {"uri": "pvc://not-there/model"}},
        "ResolvedRefs",
        Reason.CLAIM_NOT_FOUND,
        ("The PersistentVolumeClaim 'not-there' does not exist",),
    ),
    Case(
        "unbound",
        {"cache": {"volumeClaimTemplate": {"size": "1Gi", "storageClassName": "no-such-class"}}},
        "Available",
        Reason.CLAIM_NOT_BOUND,
        ("is waiting for a volume: one of its PersistentVolumeClaims (unbound-cache, models) is not bound.",),
    ),
    Case(
        "no-config-map",
        {"engine": {"config": {"configMapKeyRef": {"name": "not-there", "key": "config.yaml"}}}},
        "ResolvedRefs",
        Reason.CONFIG_MAP_NOT_FOUND,
        ("'not-there'",),
    ),
    Case(
        "no-secret",
        {"worker": worker(envFrom=[{"secretRef": {"name": "not-there"}}])},
        "ResolvedRefs",
        Reason.SECRET_NOT_FOUND,
        ('secret "not-there" not found',),
    ),
    Case(
        "no-map-for-env",
        {"worker": worker(envFrom=[{"configMapRef": {"name": "not-there"}}])},
        "ResolvedRefs",
        Reason.CONFIG_MAP_NOT_FOUND,
        ('configmap "not-there" not found',),
    ),
    Case(
        "no-account",
        {"worker": worker(serviceAccountName="not-there")},
        "ResolvedRefs",
        Reason.SERVICE_ACCOUNT_NOT_FOUND,
        ("The ServiceAccount 'not-there' does not exist", "so Kubernetes cannot create worker pods"),
    ),
    Case(
        "quota",
        {"worker": worker(resources={"limits": {"example.com/licence": 1}})},
        "Available",
        Reason.POD_CREATION_FAILED,
        ("exceeded quota: no-licences", "Raise the ResourceQuota, or lower worker.resources.limits"),
    ),
    Case(
        "pod-security",
        {"worker": worker(podTemplate={"spec": {"hostPID": True}})},
        "Available",
        Reason.POD_CREATION_FAILED,
        ('violates PodSecurity "restricted', "hostPID=true", "Change worker.podTemplate"),
    ),
    Case(
        "no-registry",
        {"worker": worker(image="localhost/no/such-image:1")},
        "Available",
        Reason.IMAGE_PULL_FAILED,
        (
            "cannot pull the image localhost/no/such-image:1",
            "connection refused",
            "cannot reach the registry",
        ),
    ),
    Case(
        "denied",
        {"worker": worker(image=f"{REGISTRY}/team/worker:1")},
        "Available",
        Reason.IMAGE_PULL_FAILED,
        ("403 Forbidden", "not for you", "The registry denies access: the credentials in"),
    ),
    Case(
        "private",
        {"worker": worker(image=f"{REGISTRY}/private/worker:1")},
        "Available",
        Reason.IMAGE_PULL_FAILED,
        ("no basic auth credentials", "The registry requires credentials"),
    ),
    Case(
        # The registry accepts the credentials of the Secret and reports a missing image.
        "known-puller",
        {"worker": worker(image=f"{REGISTRY}/private/worker:1", imagePullSecrets=[{"name": "registry"}])},
        "Available",
        Reason.IMAGE_PULL_FAILED,
        (f"{REGISTRY}/private/worker:1: not found",),
    ),
    Case(
        "out-of-memory",
        {
            "worker": worker_with_hook(
                "hog", resources={"requests": {"memory": "64Mi"}, "limits": {"memory": "1Gi"}}
            )
        },
        "Available",
        Reason.OOM_KILLED,
        ("OOMKilled, exit code 137, limit 1Gi,", "Raise worker.resources.limits.memory"),
    ),
    Case(
        "evicted",
        {"worker": worker_with_hook("fill"), "cache": {"emptyDir": {"sizeLimit": "1Mi"}}},
        "Available",
        Reason.POD_FAILED,
        (
            '(Evicted): Usage of EmptyDir volume "cache" exceeds the limit "1Mi".',
            "Its replacement is not ready yet. Pod evicted-",
        ),
    ),
    Case(
        "bad-json",
        {"worker": worker(env=[{"name": PAYLOAD, "value": '{"prompt": "s3cret"'}])},
        "ConfigurationResolved",
        Reason.INVALID_PAYLOAD,
        ("Environment: ", PAYLOAD),
    ),
    Case(
        "no-file",
        {"worker": worker(env=[{"name": PAYLOAD, "value": "@/no/s3cret.json"}])},
        "ConfigurationResolved",
        Reason.INVALID_PAYLOAD,
        ("Environment: ", PAYLOAD),
    ),
    Case(
        "budget",
        {"worker": worker(startupTimeoutSeconds=10)},
        "Available",
        Reason.STARTUP_TIMEOUT,
        (
            "did not start within 10 s. Its last message was: The worker was terminated in the stage ",
            ", reached at ",
        ),
    ),
    Case(
        "bad-argument",
        {"engine": {"args": ["--no-such-argument", "1"]}},
        "ConfigurationResolved",
        Reason.INVALID_ENGINE_ARGUMENTS,
        ("--no-such-argument",),
    ),
    Case(
        "gated",
        {
            "model": {"uri": "hf://team/403"},
            "worker": worker(
                env=[{"name": "HF_ENDPOINT", "value": HUB}, {"name": "HF_TOKEN", "value": "s3cret"}]
            ),
        },
        "Available",
        Reason.MODEL_DOWNLOAD_FAILED,
        (
            "the model 'team/403' cannot be downloaded: http://",
            "403 Forbidden. The model is gated or private",
        ),
    ),
    Case(
        "no-hub",
        {
            "model": {"uri": "hf://team/toy"},
            "worker": worker(env=[{"name": "HF_ENDPOINT", "value": NOWHERE}]),
        },
        "Available",
        Reason.MODEL_DOWNLOAD_FAILED,
        ("the model 'team/toy' cannot be downloaded: http://", "cannot be reached. Check DNS, proxy"),
    ),
]


@pytest.fixture(scope="module")
def registry(cluster: Cluster) -> Iterator[None]:
    """A registry on the node's loopback, outside the namespace because "restricted" forbids hostNetwork."""
    pod = python_pod("e2e-registry", REGISTRY_SERVER, hostNetwork=True)
    default = Cluster(cluster.kubeconfig)
    default.apply(pod)
    default.kubectl("wait", "--for=condition=Ready", "pod/e2e-registry", "--timeout=60s")
    yield
    default.kubectl("delete", "pod", "e2e-registry", "--now", "--wait=false")


@pytest.fixture(scope="module")
def failing_endpoints(cluster: Cluster, host: str, registry: None) -> Iterator[None]:
    """The endpoints of all cases: they fail simultaneously, while the tests check one after the other."""
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-licences"},
        "spec": {"hard": {"requests.example.com/licence": 0}},
    }
    hooks = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hooks"}, "data": HOOKS}
    cluster.apply(quota, hooks)
    user, _, password = PULLER.partition(":")
    # The command of docs/tasks/network.md.
    credentials = (
        f"--docker-server={REGISTRY}",
        f"--docker-username={user}",
        f"--docker-password={password}",
    )
    cluster.kubectl("create", "secret", "docker-registry", "registry", *credentials)
    eventually(lambda: cluster.get("resourcequota", "no-licences").get("status"), bool, 30)
    with serve_hub(host, CACHE / "models/toy-llama", "a token") as hub:
        objects = [
            manifest(case.name, **{"worker": worker(), "frontend": {"mode": "None"}, **case.spec})
            for case in CASES
        ]
        text = json.dumps(objects).replace(HUB, hub.url).replace(NOWHERE, f"http://{host}:9")
        cluster.apply(*json.loads(text))
        yield


@pytest.fixture
def one_node() -> Iterator[None]:
    """No other module adds a node during the test."""
    with nodes_locked(fcntl.LOCK_SH):
        yield


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_condition_states_the_cause(
    cluster: Cluster, failing_endpoints: None, case: Case, request: pytest.FixtureRequest
) -> None:
    if any("1 node" in part for part in case.message_parts):
        request.getfixturevalue("one_node")
    try:
        eventually(
            lambda: cluster.condition(case.name, case.condition),
            # The first message may lack details that are not known yet.
            lambda c: (
                (c["status"], c["reason"]) == ("False", case.reason)
                and all(part in c["message"] for part in case.message_parts)
            ),
            120,
        )
        status = cluster.endpoint(case.name)["status"]
        assert "s3cret" not in json.dumps(status)
        assert cluster.condition(case.name, "Ready")["status"] == "False"
    finally:
        cluster.kubectl("delete", "vep", case.name, "--wait=false")


@pytest.mark.usefixtures("one_node", "gpu")
def test_a_gpu_in_use_is_distinguished_from_a_missing_gpu(cluster: Cluster) -> None:
    cluster.apply(
        manifest(
            "busy-gpu",
            replicas=2,
            # One replica uses the GPU; the worker rejects its payload, so it is not ready either.
            worker=worker(resources={"limits": {"nvidia.com/gpu": 1}}, env=[{"name": PAYLOAD, "value": "{"}]),
            frontend={"mode": "None"},
        )
    )
    expected = "is waiting for 1 nvidia.com/gpu: 1 of 1 node has that much, but it is in use."
    try:
        eventually(
            lambda: cluster.condition("busy-gpu", "Available"),
            lambda c: c["reason"] == Reason.INSUFFICIENT_GPU and expected in c["message"],
            60,
        )
    finally:
        cluster.kubectl("delete", "vep", "busy-gpu", "--wait")
        eventually(lambda: cluster.workers("busy-gpu"), lambda pods: not pods, 90)
