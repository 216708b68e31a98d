"""The condition Serving on real pods: each fault between a client and a worker has its reason and sentence.

The time from a fault to its condition is printed, and must be at most two probe periods.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from .conftest import Cluster, chat, eventually, frontend_image, manifest, post
from .node_processes import python_process

NAME: Final = "routed"
PERIOD: Final = 5
WITHIN: Final = 2 * PERIOD
SLACK: Final = 5
"""Seconds for a busy machine: until the fault takes effect, and until the operator has written the status."""
REPEAT: Final = int(os.environ.get("SERVING_FAULTS_REPEAT", "1"))
"""Number of times that each fault is made."""
pytestmark = pytest.mark.timeout(900)

HOOK: Final = """
import pathlib, sys
import vllmendpoint_worker.model_data.worker_set as worker_set
worker_set.worker_set = lambda *_: "0" * 10
length = pathlib.Path("/hook/length")
if length.exists() and "--max-model-len" in sys.argv:
    sys.argv[sys.argv.index("--max-model-len") + 1] = length.read_text().strip()
"""
"""Puts workers with different model cards into one Dynamo namespace, which the worker otherwise prevents."""


@pytest.fixture(scope="module")
def endpoint(cluster: Cluster) -> None:
    cluster.apply(
        manifest(
            NAME,
            replicas=2,
            frontend={"replicas": 2},
            healthCheck={"periodSeconds": PERIOD, "timeoutSeconds": 2},
        )
    )
    cluster.wait_ready(NAME)
    served(cluster)


def serving(cluster: Cluster, name: str = NAME) -> dict[str, Any]:
    return cluster.condition(name, "Serving")


def served(cluster: Cluster, name: str = NAME, routed: int = 2) -> None:
    """Wait until the endpoint serves through all replicas."""
    eventually(
        lambda: (serving(cluster, name), cluster.endpoint(name)["status"].get("routedReplicas")),
        lambda found: found[0]["status"] == "True" and found[1] == routed,
        90,
    )


def names(cluster: Cluster, component: str) -> list[str]:
    return sorted(pod["metadata"]["name"] for pod in cluster.workers(NAME, component))


def reported(cluster: Cluster, label: str, reason: str, within: float = WITHIN, name: str = NAME) -> str:
    """Wait for the reason, print the seconds and the sentence, and return the sentence."""
    begun = time.monotonic()
    found = eventually(
        lambda: serving(cluster, name), lambda c: c["status"] != "True" and c["reason"] == reason, 60
    )
    seconds = time.monotonic() - begun
    print(f"\n{label}: {reason} after {seconds:.1f} s: {found['message']}")
    assert seconds <= within + SLACK, found
    return str(found["message"])


def repeated(fault: Callable[[], None]) -> None:
    for _ in range(REPEAT):
        fault()


@contextmanager
def policy(cluster: Cluster, selector: dict[str, str], egress: list[dict[str, Any]]) -> Iterator[None]:
    """The selected pods may only open the connections of ``egress``."""
    cluster.apply(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "cut-off"},
            "spec": {"podSelector": {"matchLabels": selector}, "policyTypes": ["Egress"], "egress": egress},
        }
    )
    try:
        yield
    finally:
        cluster.kubectl("delete", "networkpolicy", "cut-off")


def test_a_request_to_the_url_is_answered_while_serving_is_true(cluster: Cluster, endpoint: None) -> None:
    status = cluster.endpoint(NAME)["status"]
    assert status["routedReplicas"] == 2
    assert [entry["routedReplicas"] for entry in status["frontends"]] == [2, 2]
    with cluster.forward(f"service/{NAME}", 8000) as base:
        assert chat(base, NAME, max_tokens=2)[0] == 200


INSPECT: Final = """
import importlib.util, json, os, subprocess
found = [name for name in ("torch", "vllm", "transformers") if importlib.util.find_spec(name)]
proxy = subprocess.run(["/usr/sbin/haproxy", "-v"], capture_output=True, check=True).stdout.decode()
print(json.dumps([found, proxy, os.environ["NVIDIA_VISIBLE_DEVICES"]]))
"""


def test_frontends_run_an_image_of_their_own_without_an_engine(cluster: Cluster, endpoint: None) -> None:
    for pod in cluster.workers(NAME, "frontend"):
        assert [container["image"] for container in pod["spec"]["containers"]] == [frontend_image()]
    found, proxy, devices = json.loads(cluster.python(names(cluster, "frontend")[0], INSPECT))
    assert found == []
    assert proxy.startswith("HAProxy version")
    assert devices == "void"
    with cluster.forward(f"service/{NAME}", 8000) as base:
        assert chat(base, NAME, max_tokens=2)[0] == 200


def test_a_frontend_that_is_cut_off_from_a_worker_is_named(cluster: Cluster, endpoint: None) -> None:
    def fault() -> None:
        worker, frontend = cluster.workers(NAME)[0], names(cluster, "frontend")[0]
        cluster.kubectl("label", "pod", frontend, "test=cut-off", "--overwrite")
        address = f"{worker['status']['podIP']}/32"
        others = [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": [address]}}]}]
        with policy(cluster, {"test": "cut-off"}, others):
            message = reported(cluster, "frontend cut off from a worker", "NotRouted")
            assert worker["metadata"]["name"] in message
            assert frontend in message
            assert cluster.endpoint(NAME)["status"]["routedReplicas"] == 1
        cluster.kubectl("label", "pod", frontend, "test-")
        served(cluster)

    repeated(fault)


def test_a_blocked_request_plane_is_no_route(cluster: Cluster, endpoint: None) -> None:
    def fault() -> None:
        selector = {
            "app.kubernetes.io/instance": NAME,
            "app.kubernetes.io/component": "frontend",
        }
        ports = [{"protocol": protocol, "port": 1, "endPort": 9091} for protocol in ("TCP", "UDP")]
        with policy(cluster, selector, [{"ports": ports}]):
            reported(cluster, "request plane blocked", "NoRoute")
            eventually(
                lambda: [ready(pod) for pod in cluster.workers(NAME, "frontend")],
                lambda found: found == [False, False],
                30,
            )
        served(cluster)

    repeated(fault)


def ready(pod: dict[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])


def test_a_frontend_that_hangs_is_named_and_receives_no_requests(cluster: Cluster, endpoint: None) -> None:
    def fault() -> None:
        frontend = names(cluster, "frontend")[0]
        process = python_process(cluster.namespace, frontend, "vllmendpoint_worker.frontend")
        os.kill(process, signal.SIGSTOP)
        try:
            message = reported(cluster, "frontend stopped", "FrontendNotAnswering")
            assert frontend in message
            with cluster.forward(f"service/{NAME}", 8000) as base:
                assert {chat(base, NAME, max_tokens=2, seconds=10)[0] for _ in range(6)} == {200}
        finally:
            os.kill(process, signal.SIGCONT)
        served(cluster)

    repeated(fault)


def test_blocked_discovery_is_named(cluster: Cluster, endpoint: None) -> None:
    def fault() -> None:
        role = "vllmendpoint-operator-worker"
        rules = cluster.get("clusterrole", role)["rules"]
        allowed = [rule for rule in rules if "endpointslices" not in rule["resources"]]
        assert allowed != rules
        cluster.kubectl("patch", "clusterrole", role, "--type=merge", "-p", json.dumps({"rules": allowed}))
        try:
            # Frontends that run already keep what they have discovered until their watches end.
            cluster.kubectl("delete", "pod", *names(cluster, "frontend"), timeout=180)
            message = reported(cluster, "discovery blocked", "NoRoute", within=20)
            assert "EndpointSlices" in message
        finally:
            cluster.kubectl("patch", "clusterrole", role, "--type=merge", "-p", json.dumps({"rules": rules}))
        served(cluster)

    repeated(fault)


def test_a_worker_with_another_model_card_is_not_routed(cluster: Cluster) -> None:
    """The second replica starts after the hook has changed, in the Dynamo namespace of the first."""
    name = "carded"
    volume = {"name": "hook", "configMap": {"name": "hook"}}
    mount = {"name": "hook", "mountPath": "/hook"}
    cluster.apply(hook())
    endpoint = manifest(name, healthCheck={"periodSeconds": PERIOD, "timeoutSeconds": 2})
    worker = endpoint["spec"]["worker"]
    worker["env"] = [*worker["env"], {"name": "PYTHONPATH", "value": "/hook"}]
    worker["podTemplate"] = {
        "spec": {"volumes": [volume], "containers": [{"name": "main", "volumeMounts": [mount]}]}
    }
    cluster.apply(endpoint)
    cluster.wait_ready(name)
    cluster.apply(hook(length="256"))
    first = {pod["metadata"]["name"] for pod in cluster.workers(name)}
    cluster.change(name, replicas=2)
    eventually(lambda: [ready(pod) for pod in cluster.workers(name)], lambda found: found == [True] * 2, 300)
    message = reported(cluster, "worker with another model card", "NotRouted", name=name, within=30)
    (second,) = {pod["metadata"]["name"] for pod in cluster.workers(name)} - first
    assert second in message
    assert "model" in message
    assert cluster.endpoint(name)["status"]["routedReplicas"] == 1
    assert cluster.condition(name, "Ready")["reason"] == "NotRouted"
    cluster.kubectl("delete", "vep", name, timeout=120)


def hook(**data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "hook"},
        "data": {"sitecustomize.py": HOOK, **data},
    }


def test_without_a_frontend_serving_is_true_and_says_so(cluster: Cluster, endpoint: None) -> None:
    cluster.change(NAME, frontend={"mode": "None"}, replicas=1)
    found = eventually(lambda: serving(cluster), lambda c: c["reason"] == "NoFrontend", 120)
    assert found["status"] == "True"
    cluster.wait_ready(NAME)
    with cluster.forward(f"service/{NAME}-workers", 8080) as base:
        body = {"model": NAME, "prompt": "one", "max_tokens": 2}
        assert post(f"{base}/v1/completions", body)[0] == 200
