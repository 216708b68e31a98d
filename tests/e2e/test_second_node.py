"""The local cluster's second node: traffic and NetworkPolicies across nodes, drain, loss and removal.

The node has a taint, so that the pods of tests that run at the same time stay on the first node.
"""

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.project_cache import CACHE

from .conftest import Cluster, eventually, first_node, nodes_locked, python_pod

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.environ.get("CLUSTER") == "kind", reason="kind cannot add a node to a cluster"),
]
NODE = "vllmendpoint-e2e"
TAINT = "vllmendpoint-e2e"
TOLERATION = {"key": TAINT, "operator": "Exists"}
PORT = 8080
SERVER = f"""
import http.server, os
class NameServer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.uname().nodename.encode())
http.server.ThreadingHTTPServer(('', {PORT}), NameServer).serve_forever()
"""
FETCH = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=2).read().decode())"
IDLE = f"""
import socket, sys
connection = socket.create_connection((sys.argv[1], {PORT}))
print('connected', flush=True)
connection.settimeout(5)
try:
    print('received', connection.recv(1))
except OSError as error:
    print(type(error).__name__)
"""


def node_command(*args: str, check: bool = True) -> None:
    command = [CACHE / "bin/cluster", "node", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert not (check and done.returncode), f"cluster node {' '.join(args)}: {done.stderr}{done.stdout}"


def add() -> None:
    node_command("add", "--taint", f"{TAINT}=true:NoSchedule", NODE)


def ready(cluster: Cluster, name: str = NODE) -> str:
    conditions = cluster.get("node", name)["status"]["conditions"]
    return str(next(c["status"] for c in conditions if c["type"] == "Ready"))


@pytest.fixture(scope="module", autouse=True)
def second_node(cluster: Cluster) -> Iterator[None]:
    with nodes_locked(fcntl.LOCK_EX):
        node_command("remove", NODE, check=False)  # an interrupted run leaves its node
        try:
            add()
            yield
        finally:
            node_command("remove", NODE, check=False)  # fails after the test of the removal


def server(name: str, node: str) -> list[dict[str, Any]]:
    """A pod on a node that answers with its name, and its Service."""
    placement = {"nodeSelector": {"kubernetes.io/hostname": node}, "tolerations": [TOLERATION]}
    probe = {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1}
    pod = python_pod(name, SERVER, {"app": name}, **placement)
    pod["spec"]["containers"][0]["readinessProbe"] = probe
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": PORT}]},
    }
    return [pod, service]


@pytest.fixture(scope="module")
def servers(cluster: Cluster, second_node: None) -> None:
    """The pod `near` on the first node, `far` and `beside` on the second."""
    first = first_node(cluster)["metadata"]["name"]
    cluster.apply(*server("near", first), *server("far", NODE), *server("beside", NODE))
    pods = ["pod/near", "pod/far", "pod/beside"]
    cluster.kubectl("wait", "--for=condition=Ready", *pods, "--timeout=60s", timeout=70)


def pod_ip(cluster: Cluster, pod: str) -> str:
    return str(cluster.get("pod", pod)["status"]["podIP"])


def fetch(cluster: Cluster, pod: str, url: str) -> str:
    """The answer to a request from a pod, or the last line of the error."""
    out = cluster.kubectl("exec", pod, "-c", "main", "--", "python3", "-c", FETCH, url, check=False)
    lines = [line for line in out.strip().splitlines() if "command terminated" not in line]
    return lines[-1] if lines else ""


def test_the_node_is_ready_and_has_the_images_of_the_first_node(cluster: Cluster) -> None:
    assert ready(cluster) == "True"
    assert TAINT in [taint["key"] for taint in cluster.get("node", NODE)["spec"]["taints"]]
    worker = python_pod("any", "")["spec"]["containers"][0]["image"]

    def images() -> list[str]:
        found = cluster.get("node", NODE)["status"]["images"]
        return [name for image in found for name in image["names"]]

    eventually(images, lambda names: worker in names, 60)  # the kubelet lists them every 30 s


def test_the_images_need_no_space_on_the_disk(deployed: Cluster) -> None:
    folder = Path(deployed.kubeconfig).parent / "nodes" / NODE / "containerd"
    # A file with one link is the node's own, for instance a program of the node or a file that a pod wrote.
    command = ["find", folder, "-type", "f", "-links", "1", "-printf", "%s\n"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert sum(map(int, out.split())) < 500e6


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize(("client", "target"), [("near", "far"), ("far", "near")])
def test_pods_reach_each_other_across_nodes(cluster: Cluster, client: str, target: str) -> None:
    assert fetch(cluster, client, f"http://{pod_ip(cluster, target)}:{PORT}") == target
    # By a name, through DNS and the Service.
    answer = eventually(lambda: fetch(cluster, client, f"http://{target}"), lambda seen: seen == target, 10)
    assert answer == target


@pytest.mark.usefixtures("servers")
def test_the_machine_reaches_a_service_whose_pod_is_on_the_second_node(cluster: Cluster) -> None:
    address = cluster.get("service", "far")["spec"]["clusterIP"]
    command = ["python3", "-c", FETCH, f"http://{address}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "far"


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize(("client", "target"), [("near", "far"), ("far", "near"), ("beside", "far")])
def test_a_network_policy_applies_across_nodes_and_within_the_second(
    cluster: Cluster, client: str, target: str
) -> None:
    def policy(allowed: str) -> dict[str, Any]:
        peers = [{"podSelector": {"matchLabels": {"app": allowed}}}]
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": f"to-{target}"},
            "spec": {"podSelector": {"matchLabels": {"app": target}}, "ingress": [{"from": peers}]},
        }

    url = f"http://{pod_ip(cluster, target)}:{PORT}"
    cluster.apply(policy("none"))
    eventually(lambda: fetch(cluster, client, url), lambda seen: "timed out" in seen, 10)
    cluster.apply(policy(client))
    eventually(lambda: fetch(cluster, client, url), lambda seen: seen == target, 10)
    assert ready_pods(cluster, f"app={target}") == [target], "the kubelet's probes must pass"
    cluster.kubectl("delete", "networkpolicy", f"to-{target}")


def ready_pods(cluster: Cluster, selector: str) -> list[str]:
    def is_ready(pod: dict[str, Any]) -> bool:
        conditions = pod["status"].get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    return [p["metadata"]["name"] for p in cluster.get("pods", "-l", selector)["items"] if is_ready(p)]


def test_drain_moves_a_deployments_pod_to_the_first_node(cluster: Cluster) -> None:
    (pod, _) = server("moved", NODE)
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}]}
    preferred = [{"weight": 100, "preference": term}]
    del pod["spec"]["nodeSelector"]
    pod["spec"]["affinity"] = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    template = {"metadata": {"labels": pod["metadata"]["labels"]}, "spec": pod["spec"]}
    spec = {"selector": {"matchLabels": {"app": "moved"}}, "template": template}
    metadata = {"name": "moved"}
    cluster.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec})
    cluster.kubectl("rollout", "status", "deployment/moved", "--timeout=60s", timeout=70)

    def nodes() -> list[str]:
        pods = cluster.get("pods", "-l", "app=moved")["items"]
        return [str(p["spec"].get("nodeName")) for p in pods if "deletionTimestamp" not in p["metadata"]]

    assert nodes() == [NODE]
    try:
        cluster.kubectl("drain", NODE, "--pod-selector=app=moved", "--timeout=60s", timeout=70)
        assert cluster.get("node", NODE)["spec"]["unschedulable"] is True
        first = first_node(cluster)["metadata"]["name"]
        eventually(nodes, lambda seen: seen == [first], 20)
        eventually(lambda: ready_pods(cluster, "app=moved"), bool, 30)
    finally:
        cluster.kubectl("uncordon", NODE)
        cluster.kubectl("delete", "deployment", "moved")


@pytest.mark.usefixtures("servers")
def test_a_killed_node_is_silent_and_can_be_started_again(cluster: Cluster) -> None:
    exec_near = ["kubectl", "--kubeconfig", cluster.kubeconfig, "-n", cluster.namespace, "exec", "near"]
    command = [*exec_near, "-c", "main", "--", "python3", "-c", IDLE, pod_ip(cluster, "far")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "connected\n"
        node_command("kill", NODE)
        assert client.stdout.readline() == "TimeoutError\n", "a lost machine closes no connection"
    # The kubelet's lease expires after 40 s, the controller's grace period after 50 s.
    eventually(lambda: ready(cluster), lambda status: status == "Unknown", 90)
    assert "timed out" in fetch(cluster, "near", f"http://{pod_ip(cluster, 'far')}:{PORT}")

    add()
    assert ready(cluster) == "True"
    # The kubelet starts the pods of its node again, as after a reboot.
    eventually(lambda: fetch(cluster, "near", "http://far"), lambda seen: seen == "far", 60)


@pytest.mark.usefixtures("servers")
def test_removal_leaves_no_node_and_no_pod(cluster: Cluster) -> None:
    node_command("remove", NODE)
    assert cluster.kubectl("get", "node", NODE, "--ignore-not-found", "-o", "name") == ""
    on_node = f"--field-selector=spec.nodeName={NODE}"
    assert json.loads(cluster.kubectl("get", "pods", "-A", on_node, "-o", "json"))["items"] == []
    assert eventually(lambda: ready_pods(cluster, "app=near"), bool, 10) == ["near"]
