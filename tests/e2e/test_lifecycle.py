"""One real endpoint through its life, beside another that has its model's name: served, frozen, thawed,
reconfigured, its inner ports tried by everybody, killed, deleted.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from .conftest import CHAT, ENGINE, SYSTEM, TOY, Cluster, chat, eventually, manifest, post, python_pod

NAME = "smol"
OTHER = "other"
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
def pod(cluster: Cluster) -> str:
    chat = manifest(NAME, uri=CHAT, engine={"args": ENGINE})
    cluster.apply(chat, manifest(OTHER, model={"uri": TOY, "name": NAME}))
    for name in (NAME, OTHER):
        cluster.wait_ready(name)
    return str(cluster.workers(NAME)[0]["metadata"]["name"])


@pytest.fixture(scope="module")
def url(cluster: Cluster, pod: str) -> Iterator[str]:
    with cluster.forward(f"service/{NAME}", 8000) as base:
        yield base


@pytest.fixture(scope="module")
def other_namespace(cluster: Cluster) -> Iterator[Cluster]:
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
    pod = the_pod(cluster, NAME, component)
    ports = cluster.python(pod, LISTENS).split()
    return Target(cluster.get("pod", pod)["status"]["podIP"], frozenset(map(int, ports)))


def restarts(cluster: Cluster) -> list[int]:
    return [s["restartCount"] for p in cluster.workers(NAME) for s in p["status"]["containerStatuses"]]


def test_answers_a_question_through_the_frontend(cluster: Cluster, url: str) -> None:
    status, body = eventually(lambda: chat(url, NAME), lambda r: r[0] == 200, 20)
    assert "Paris" in json.loads(body)["choices"][0]["message"]["content"], (status, body)


def test_status_tells_the_whole_story(cluster: Cluster, pod: str) -> None:
    status = cluster.endpoint(NAME)["status"]
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Accepted": "True",
        "ResolvedRefs": "True",
        "ConfigurationResolved": "True",
        "Available": "True",
        "Generating": "True",
        "UpToDate": "True",
        "Ready": "True",
        "Reconciling": "False",
        "Stalled": "False",
    }
    assert status["healthCheck"]["source"] == "ModelDefault"
    assert status["healthCheck"]["payload"]["messages"] == [{"role": "user", "content": "Hi"}]
    (worker,) = status["workers"]
    assert (worker["name"], worker["ready"]) == (pod, True)
    # A machine that does other work too may answer a probe late: that is Busy, and serves.
    assert (worker["verdict"], worker["lastProbe"]["outcome"]) in {
        ("Generating", "Complete"),
        ("Busy", "Timeout"),
        ("Busy", "Complete"),
        ("Generating", "Timeout"),  # a user's answer came after it
    }
    wide = cluster.kubectl("get", "vep", NAME, "-o", "wide").splitlines()
    assert wide[0].split() == [
        "NAME",
        "MODEL",
        "READY",
        "REPLICAS",
        "GENERATING",
        "REASON",
        "AGE",
        "URL",
        "PAYLOAD",
        "HANDLERS",
    ]


def test_sagemaker_port_serves_ping_and_invocations(cluster: Cluster, pod: str) -> None:
    with cluster.forward(f"pod/{pod}", 8080) as base:
        assert post(f"{base}/ping", {})[0] == 200
        body = {"model": NAME, "prompt": "The sky is", "max_tokens": 4}
        status, text = post(f"{base}/invocations", body)
        assert status == 200
        assert json.loads(text)["choices"][0]["text"]


def test_frozen_engine_is_noticed_and_unrouted_and_comes_back_without_restart(
    cluster: Cluster, pod: str, url: str
) -> None:
    cluster.signal_engine(pod, "SIGSTOP")
    try:
        found = eventually(
            # period 5 + timeout 5 + 1, and what a busy machine adds; tests/bench measures
            lambda: cluster.condition(NAME, "Generating"),
            lambda c: c["status"] == "False",
            30,
        )
        assert found["reason"] == "EngineStalled"
        assert pod in found["message"]
        assert "1 of 1" in found["message"]
        assert cluster.condition(NAME, "Ready")["reason"] == "EngineStalled"
        eventually(lambda: chat(url, NAME, seconds=3)[0], lambda code: code in (404, 503), 20)
        with cluster.forward(f"pod/{pod}", 8080) as base:
            eventually(lambda: post(f"{base}/ping", {}, 10)[0], lambda code: code == 503, 20)
    finally:
        cluster.signal_engine(pod, "SIGCONT")
    cluster.wait_ready(NAME, 60)
    eventually(lambda: chat(url, NAME)[0], lambda code: code == 200, 20)
    assert restarts(cluster) == [0]
    reasons = [
        e["reason"] for e in cluster.get("events", "--field-selector", f"involvedObject.name={NAME}")["items"]
    ]
    assert "EngineStalled" in reasons


def test_changed_payload_reaches_worker_and_status_without_a_restart(cluster: Cluster, pod: str) -> None:
    before = cluster.workers(NAME)[0]["metadata"]["uid"]
    payload = {"messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 2, "temperature": 0}
    patch = {"spec": {"healthCheck": {"payload": payload}}}
    cluster.kubectl("patch", "vep", NAME, "--type=merge", "-p", json.dumps(patch))
    check = eventually(
        lambda: cluster.endpoint(NAME)["status"]["healthCheck"], lambda c: c["source"] == "Spec", 10
    )
    assert check["payload"] == payload
    cluster.kubectl("wait", "--for=condition=Ready", f"vep/{NAME}", "--timeout=30s")
    assert cluster.workers(NAME)[0]["metadata"]["uid"] == before
    assert restarts(cluster) == [0]


def test_unknown_payload_field_is_refused_and_the_last_good_payload_stays(cluster: Cluster, pod: str) -> None:
    good = cluster.endpoint(NAME)["status"]["healthCheck"]["payload"]
    bad = {"spec": {"healthCheck": {"payload": {**good, "max_tokenz": 3}}}}
    cluster.kubectl("patch", "vep", NAME, "--type=merge", "-p", json.dumps(bad))
    found = eventually(
        lambda: cluster.condition(NAME, "ConfigurationResolved"), lambda c: c["status"] == "False", 20
    )
    assert found["reason"] == "InvalidPayload"
    assert "max_tokenz" in found["message"]
    assert cluster.condition(NAME, "Generating")["status"] == "True"
    assert cluster.condition(NAME, "Available")["status"] == "True"
    undo = [{"op": "remove", "path": "/spec/healthCheck/payload/max_tokenz"}]
    cluster.kubectl("patch", "vep", NAME, "--type=json", "-p", json.dumps(undo))
    cluster.wait_ready(NAME, 30)
    assert restarts(cluster) == [0]


def test_who_reaches_which_port(cluster: Cluster, pod: str, other_namespace: Cluster) -> None:
    """By traffic: every port on which a pod of the endpoint listens, from every kind of neighbour."""
    system = Cluster(cluster.kubeconfig, SYSTEM)
    (operator,) = system.get("pods", "-l", "app.kubernetes.io/name=vllmendpoint-operator")["items"]
    (insider,) = cluster.workers(NAME)
    cluster.apply(python_pod("stranger", SLEEP))
    # Labels are for the taking in a namespace of one's own.
    other_namespace.apply(
        python_pod("disguised", SLEEP, insider["metadata"]["labels"]),
        python_pod("disguised-as-operator", SLEEP, operator["metadata"]["labels"]),
    )
    cluster.kubectl("wait", "--for=condition=Ready", "pod/stranger", "--timeout=60s")
    other_namespace.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")

    worker, frontend = target(cluster, "worker"), target(cluster, "frontend")
    assert {8080, 9090, 9091, 9092} < worker.listens, "Dynamo's event plane beside them"
    assert {8000, 9093} <= frontend.listens
    serving = (frozenset({8080}), frozenset({8000}))
    everything_but_the_report = worker.listens - {9091}
    table = {
        "a stranger": (cluster, "stranger", *serving),
        "another namespace, with a worker's labels": (other_namespace, "disguised", *serving),
        "another namespace, with the operator's labels": (other_namespace, "disguised-as-operator", *serving),
        "the other endpoint's worker": (cluster, the_pod(cluster, OTHER), *serving),
        "the other endpoint's frontend": (cluster, the_pod(cluster, OTHER, "frontend"), *serving),
        "its frontend": (
            cluster,
            the_pod(cluster, NAME, "frontend"),
            everything_but_the_report,
            frontend.listens,
        ),
        "its worker": (cluster, the_pod(cluster, NAME), worker.listens, frontend.listens),
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


def refused(base: str) -> None:
    """Nobody serves there. A frontend out of breath may say nothing for a while; an answer would be wrong."""

    def status() -> int:
        status, body = chat(base, NAME, "Hi", 3)
        assert status != 200, body
        return status

    eventually(status, lambda code: code in (404, 503), 30)


def test_each_answers_for_itself_alone(cluster: Cluster, pod: str) -> None:
    with cluster.forward(f"service/{OTHER}", 8000) as other, cluster.forward(f"service/{NAME}", 8000) as ours:
        for base in (other, ours):
            eventually(lambda base=base: chat(base, NAME, "Hi")[0], lambda code: code == 200, 30)
        frozen = the_pod(cluster, OTHER)
        cluster.signal_engine(frozen, "SIGSTOP")
        try:
            eventually(lambda: chat(other, NAME, "Hi", 3)[0], lambda code: code in (404, 503), 60)
            for _ in range(20):
                # Ours may be out of breath for a moment; the other's must not be answered by it.
                eventually(lambda: chat(ours, NAME, "Hi", max_tokens=2)[0], lambda code: code == 200, 30)
                refused(other)
            eventually(lambda: cluster.condition(NAME, "Ready"), lambda c: c["status"] == "True", 30)
        finally:
            cluster.signal_engine(frozen, "SIGCONT")
        eventually(lambda: chat(other, NAME, "Hi")[0], lambda code: code == 200, 60)

    # Without workers the other's must not step in.
    cluster.change(OTHER, replicas=0)
    eventually(lambda: cluster.workers(OTHER), lambda pods: not pods, 120)
    eventually(
        lambda: cluster.condition(OTHER, "Ready"),
        lambda c: (c["status"], c["reason"]) == ("True", "ScaledToZero"),
        30,
    )
    with cluster.forward(f"service/{OTHER}", 8000) as other:
        refused(other)
    cluster.kubectl("delete", "vep", OTHER, "--wait")
    cluster.kubectl("delete", "pod", "stranger", "--now")


def test_a_dead_engine_ends_the_worker_and_is_named(cluster: Cluster, pod: str) -> None:
    """With a request in flight, over which upstream would end the process at once, and say nothing."""
    with cluster.forward(f"service/{NAME}", 8000) as base, ThreadPoolExecutor(1) as user:
        user.submit(chat, base, NAME, "Tell me a story.", 30, max_tokens=400, ignore_eos=True)
        time.sleep(1)
        cluster.signal_engine(pod, "SIGKILL")
        found = eventually(
            lambda: cluster.condition(NAME, "Available"), lambda c: c["reason"] == "CrashLooping", 30
        )
    assert found["status"] == "False"
    assert f"Pod {pod} terminated with exit code 1 (" in found["message"]
    assert "Its last message was: The engine is dead" in found["message"]
    assert cluster.condition(NAME, "Ready")["status"] == "False"


def test_deleting_the_endpoint_leaves_nothing(cluster: Cluster, pod: str) -> None:
    cluster.kubectl("delete", "vep", NAME, "--wait")
    kinds = (
        "pods,deployments,replicasets,services,networkpolicies,rolebindings,controllerrevisions,"
        "endpointslices,dynamoworkermetadatas,configmaps,serviceaccounts"
    )

    def left() -> list[str]:
        names = cluster.kubectl("get", kinds, "-o", "name").split()
        return [name for name in names if not name.endswith(("kube-root-ca.crt", "serviceaccount/default"))]

    eventually(left, lambda names: not names, 120, every=1)
