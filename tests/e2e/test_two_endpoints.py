"""Two endpoints in one namespace, one model name: neither answers for the other, nor reaches inner ports."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from .conftest import SYSTEM, TOY, Cluster, chat, eventually, manifest, python_pod

pytestmark = pytest.mark.timeout(900)

SLEEP = "import time; time.sleep(3600)"
LISTENS = """
import pathlib
loopback = ('0100007F', '0000000000000000FFFF00000100007F', '00000000000000000000000001000000')
text = ''.join(pathlib.Path('/proc/net', name).read_text() for name in ('tcp', 'tcp6'))
listening = [line.split()[1].split(':') for line in text.splitlines() if line.split()[3] == '0A']
print(*{int(port, 16) for address, port in listening if address not in loopback})
"""
"""The ports on which somebody listens, loopback left out."""
REACHES = """
import concurrent.futures, socket, sys
def reached(target):
    with socket.socket() as s:
        s.settimeout(3)
        return s.connect_ex((sys.argv[1], int(target))) == 0
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    print(*[port for port, open in zip(sys.argv[2:], pool.map(reached, sys.argv[2:])) if open])
"""


class Target(NamedTuple):
    address: str
    listens: frozenset[int]


@pytest.fixture(scope="module")
def endpoints(cluster: Cluster) -> None:
    for name in ("one", "two"):
        cluster.apply(manifest(name, model={"uri": TOY, "name": "shared"}))
    for name in ("one", "two"):
        cluster.wait_ready(name)


@pytest.fixture(scope="module")
def elsewhere(cluster: Cluster) -> Iterator[Cluster]:
    """Another namespace."""
    other = Cluster(cluster.kubeconfig, f"{cluster.namespace}-strangers")
    cluster.kubectl("delete", "namespace", other.namespace, "--ignore-not-found", "--wait", timeout=120)
    cluster.kubectl("create", "namespace", other.namespace)
    yield other
    cluster.kubectl("delete", "namespace", other.namespace, "--wait=false")


def the_pod(cluster: Cluster, name: str, component: str = "worker") -> str:
    (pod,) = cluster.workers(name, component)
    return str(pod["metadata"]["name"])


def target(cluster: Cluster, component: str) -> Target:
    pod = the_pod(cluster, "two", component)
    ports = cluster.python(pod, LISTENS).split()
    return Target(cluster.get("pod", pod)["status"]["podIP"], frozenset(map(int, ports)))


def test_who_reaches_which_port(cluster: Cluster, endpoints: None, elsewhere: Cluster) -> None:
    """By traffic: every port on which a pod of ``two`` listens, from every kind of neighbour."""
    system = Cluster(cluster.kubeconfig, SYSTEM)
    (operator,) = system.get("pods", "-l", "app.kubernetes.io/name=vllmendpoint-operator")["items"]
    (insider,) = cluster.workers("two")
    cluster.apply(python_pod("stranger", SLEEP))
    # Labels are for the taking in a namespace of one's own.
    elsewhere.apply(
        python_pod("disguised", SLEEP, insider["metadata"]["labels"]),
        python_pod("disguised-as-operator", SLEEP, operator["metadata"]["labels"]),
    )
    cluster.kubectl("wait", "--for=condition=Ready", "pod/stranger", "--timeout=60s")
    elsewhere.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")

    worker, frontend = target(cluster, "worker"), target(cluster, "frontend")
    assert {8080, 9090, 9091, 9092} < worker.listens, "Dynamo's event plane beside them"
    assert {8000, 9093} <= frontend.listens
    serving = (frozenset({8080}), frozenset({8000}))
    everything_but_the_report = worker.listens - {9091}
    table = {
        "a stranger": (cluster, "stranger", *serving),
        "another namespace, with a worker's labels": (elsewhere, "disguised", *serving),
        "another namespace, with the operator's labels": (elsewhere, "disguised-as-operator", *serving),
        "the other endpoint's worker": (cluster, the_pod(cluster, "one"), *serving),
        "the other endpoint's frontend": (cluster, the_pod(cluster, "one", "frontend"), *serving),
        "its frontend": (
            cluster,
            the_pod(cluster, "two", "frontend"),
            everything_but_the_report,
            frontend.listens,
        ),
        "its worker": (cluster, the_pod(cluster, "two"), worker.listens, frontend.listens),
        "the operator": (system, operator["metadata"]["name"], frozenset({8080, 9091}), frozenset({8000})),
    }

    def reached(source: Cluster, pod: str, goal: Target) -> frozenset[int]:
        container = source.get("pod", pod)["spec"]["containers"][0]["name"]
        asked = [goal.address, *map(str, sorted(goal.listens))]
        found = source.kubectl("exec", pod, "-c", container, "--", "python3", "-c", REACHES, *asked)
        return frozenset(map(int, found.split()))

    with ThreadPoolExecutor(16) as pool:
        found = {
            who: (pool.submit(reached, source, pod, worker), pool.submit(reached, source, pod, frontend))
            for who, (source, pod, *_) in table.items()
        }
        seen = {who: tuple(future.result() for future in pair) for who, pair in found.items()}
    assert seen == {who: (of_worker, of_frontend) for who, (_, _, of_worker, of_frontend) in table.items()}


def test_each_answers_for_itself_alone(cluster: Cluster, endpoints: None) -> None:
    with cluster.forward("service/one", 8000) as one, cluster.forward("service/two", 8000) as two:
        for base in (one, two):
            eventually(lambda base=base: chat(base, "shared", "Hi")[0], lambda code: code == 200, 30)
        pod = the_pod(cluster, "one")
        cluster.signal_engine(pod, "SIGSTOP")
        try:
            eventually(lambda: chat(one, "shared", "Hi", 3)[0], lambda code: code in (404, 503), 60)
            for _ in range(20):
                status, body = chat(two, "shared", "Hi")
                assert status == 200, body
                status, body = chat(one, "shared", "Hi", 3)
                assert status in (404, 503), body
            assert cluster.condition("two", "Ready")["status"] == "True"
        finally:
            cluster.signal_engine(pod, "SIGCONT")
        eventually(lambda: chat(one, "shared", "Hi")[0], lambda code: code == 200, 60)

    # Without workers the other's must not step in.
    cluster.change("one", replicas=0)
    eventually(lambda: cluster.workers("one"), lambda pods: not pods, 120)
    eventually(
        lambda: cluster.condition("one", "Ready"),
        lambda c: (c["status"], c["reason"]) == ("True", "ScaledToZero"),
        30,
    )
    with cluster.forward("service/one", 8000) as one:
        assert chat(one, "shared", "Hi")[0] in (404, 503)
