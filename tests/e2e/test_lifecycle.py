"""The lifecycle of a real endpoint, next to another that serves a model of the same name: requests, a frozen
engine, configuration changes, access to its ports, a killed engine, deletion.
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
OPENSHIFT_USER = {"runAsUser": 1_000_670_000, "runAsGroup": 0, "fsGroup": 1_000_670_000}
"""The IDs that OpenShift assigns: a user without a name, and the group 0."""
pytestmark = pytest.mark.timeout(900)

SLEEP = "import time; time.sleep(3600)"
SIDE_CHANNEL = 5600
LISTEN = """
import os, socket, sys, time
listener = socket.create_server(('', int(sys.argv[1])))
if not os.fork():
    os.setsid()
    os.closerange(0, 3)
    time.sleep(600)
"""
"""Listens in the background, as a worker on a GPU does at NIXL's side channel."""
PRINT_LISTENING_PORTS = """
import pathlib
loopback = ('0100007F', '0000000000000000FFFF00000100007F', '00000000000000000000000001000000')
text = ''.join(pathlib.Path('/proc/net', name).read_text() for name in ('tcp', 'tcp6'))
listening = [line.split()[1].split(':') for line in text.splitlines() if line.split()[3] == '0A']
print(*{int(port, 16) for address, port in listening if address not in loopback})
"""
"""Prints the ports on which the pod listens, except on loopback."""
PRINT_REACHED_PORTS = """
import concurrent.futures, socket, sys
def reached(target):
    with socket.socket() as s:
        s.settimeout(3)
        return s.connect_ex((sys.argv[1], int(target))) == 0
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    print(*[port for port, open in zip(sys.argv[2:], pool.map(reached, sys.argv[2:])) if open])
"""


class Target(NamedTuple):
    """A pod's address, and the ports on which it listens."""

    address: str
    ports: frozenset[int]


@pytest.fixture(scope="module")
def pod(cluster: Cluster) -> str:
    chat = manifest(NAME, uri=CHAT, engine={"args": ENGINE})
    user = {"podTemplate": {"spec": {"securityContext": OPENSHIFT_USER}}}
    other = manifest(OTHER, model={"uri": TOY, "name": NAME}, frontend=user)
    other["spec"]["worker"] |= user
    cluster.apply(chat, other)
    for name in (NAME, OTHER):
        cluster.wait_ready(name)
    return str(cluster.workers(NAME)[0]["metadata"]["name"])


@pytest.fixture(scope="module")
def url(cluster: Cluster, pod: str) -> Iterator[str]:
    with cluster.forward(f"service/{NAME}", 8000) as base:
        yield base


@pytest.fixture(scope="module")
def other_namespace(cluster: Cluster) -> Iterator[Cluster]:
    other = Cluster(cluster.kubeconfig, f"{cluster.namespace}-other")
    cluster.kubectl("delete", "namespace", other.namespace, "--ignore-not-found", "--wait", timeout=120)
    cluster.kubectl("create", "namespace", other.namespace)
    yield other
    cluster.kubectl("delete", "namespace", other.namespace, "--wait=false")


def pod_name(cluster: Cluster, name: str, component: str = "worker") -> str:
    (pod,) = cluster.workers(name, component)
    return str(pod["metadata"]["name"])


def target(cluster: Cluster, component: str) -> Target:
    pod = pod_name(cluster, NAME, component)
    ports = cluster.python(pod, PRINT_LISTENING_PORTS).split()
    return Target(cluster.get("pod", pod)["status"]["podIP"], frozenset(map(int, ports)))


def restarts(cluster: Cluster) -> list[int]:
    return [s["restartCount"] for p in cluster.workers(NAME) for s in p["status"]["containerStatuses"]]


def test_the_frontend_answers_a_chat_request(cluster: Cluster, url: str) -> None:
    status, body = eventually(lambda: chat(url, NAME), lambda r: r[0] == 200, 20)
    assert "Paris" in json.loads(body)["choices"][0]["message"]["content"], (status, body)


def test_the_status_of_a_ready_endpoint_is_complete(cluster: Cluster, pod: str) -> None:
    status = cluster.endpoint(NAME)["status"]
    assert {c["type"]: c["status"] for c in status["conditions"]} == {
        "Accepted": "True",
        "ResolvedRefs": "True",
        "ConfigurationResolved": "True",
        "Available": "True",
        "Generating": "True",
        "Serving": "True",
        "UpToDate": "True",
        "Ready": "True",
        "Reconciling": "False",
        "Stalled": "False",
    }
    assert status["healthCheck"]["source"] == "ModelDefault"
    assert status["healthCheck"]["payload"]["messages"] == [{"role": "user", "content": "Hi"}]
    (worker,) = status["workers"]
    assert (worker["name"], worker["ready"]) == (pod, True)
    # A probe may take long on a shared machine: the worker is then Busy, and serves.
    assert (worker["verdict"], worker["lastProbe"]["outcome"]) in {
        ("Generating", "Complete"),
        ("Busy", "Timeout"),
        ("Busy", "Complete"),
        ("Generating", "Timeout"),  # a user's request succeeded after it
    }
    wide = cluster.kubectl("get", "vep", NAME, "-o", "wide").splitlines()
    assert wide[0].split() == [
        "NAME",
        "MODEL",
        "READY",
        "REPLICAS",
        "GENERATING",
        "ROUTED",
        "REASON",
        "AGE",
        "URL",
        "PAYLOAD",
        "HANDLERS",
    ]


def test_the_sagemaker_port_serves_ping_and_invocations(cluster: Cluster, pod: str) -> None:
    with cluster.forward(f"pod/{pod}", 8080) as base:
        assert post(f"{base}/ping", {})[0] == 200
        body = {"model": NAME, "prompt": "The sky is", "max_tokens": 4}
        status, text = post(f"{base}/invocations", body)
        assert status == 200
        assert json.loads(text)["choices"][0]["text"]


def test_a_frozen_engine_receives_no_requests_and_recovers_without_a_restart(
    cluster: Cluster, pod: str, url: str
) -> None:
    cluster.signal_engine(pod, "SIGSTOP")
    try:
        found = eventually(
            # period 5 + timeout 5 + 1, and slack for a busy machine; tests/bench measures
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


def test_changing_the_payload_does_not_restart_workers(cluster: Cluster, pod: str) -> None:
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


def test_an_unknown_payload_field_is_rejected_and_the_last_valid_payload_stays_active(
    cluster: Cluster, pod: str
) -> None:
    valid = cluster.endpoint(NAME)["status"]["healthCheck"]["payload"]
    invalid = {"spec": {"healthCheck": {"payload": {**valid, "max_tokenz": 3}}}}
    cluster.kubectl("patch", "vep", NAME, "--type=merge", "-p", json.dumps(invalid))
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


@pytest.mark.parametrize("component", ["worker", "frontend"])
def test_the_images_run_as_their_user_and_as_any_user_of_the_group_0(
    cluster: Cluster, pod: str, component: str
) -> None:
    script = "import os; print(os.getuid(), os.getgid(), *os.getgroups())"
    own, other = (cluster.python(pod_name(cluster, name, component), script) for name in (NAME, OTHER))
    assert own.split()[:2] == ["1000", "0"]
    assert other.split()[:2] == [str(OPENSHIFT_USER["runAsUser"]), "0"]
    assert cluster.condition(OTHER, "Ready")["status"] == "True"


def test_network_policies_restrict_which_pods_reach_which_port(
    cluster: Cluster, pod: str, other_namespace: Cluster
) -> None:
    """With real connections: to every port on which a pod of the endpoint listens, from every kind of pod."""
    system = Cluster(cluster.kubeconfig, SYSTEM)
    (operator,) = system.get("pods", "-l", "app.kubernetes.io/name=vllmendpoint-operator")["items"]
    (insider,) = cluster.workers(NAME)
    cluster.apply(python_pod("unrelated", SLEEP))
    # Users can set any labels in their own namespace.
    other_namespace.apply(
        python_pod("disguised", SLEEP, insider["metadata"]["labels"]),
        python_pod("disguised-as-operator", SLEEP, operator["metadata"]["labels"]),
    )
    cluster.kubectl("wait", "--for=condition=Ready", "pod/unrelated", "--timeout=60s")
    other_namespace.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")

    cluster.python(insider["metadata"]["name"], LISTEN, str(SIDE_CHANNEL))
    worker, frontend = target(cluster, "worker"), target(cluster, "frontend")
    assert {SIDE_CHANNEL, 8080, 9090, 9091, 9092} < worker.ports, "and the ports of Dynamo's event plane"
    assert {8000, 9091, 9093} <= frontend.ports
    serving = (frozenset({8080}), frozenset({8000}))
    all_but_the_report = worker.ports - {9091}
    table = {
        "an unrelated pod": (cluster, "unrelated", *serving),
        "another namespace, with a worker's labels": (other_namespace, "disguised", *serving),
        "another namespace, with the operator's labels": (other_namespace, "disguised-as-operator", *serving),
        "the other endpoint's worker": (cluster, pod_name(cluster, OTHER), *serving),
        "the other endpoint's frontend": (cluster, pod_name(cluster, OTHER, "frontend"), *serving),
        "its frontend": (
            cluster,
            pod_name(cluster, NAME, "frontend"),
            all_but_the_report,
            frontend.ports,
        ),
        "its worker": (cluster, pod_name(cluster, NAME), worker.ports, frontend.ports - {9091}),
        "the operator": (
            system,
            operator["metadata"]["name"],
            frozenset({8080, 9091}),
            frozenset({8000, 9091}),
        ),
    }

    def reached(source: Cluster, pod: str, goal: Target) -> frozenset[int]:
        container = source.get("pod", pod)["spec"]["containers"][0]["name"]
        command = ["python3", "-c", PRINT_REACHED_PORTS, goal.address, *map(str, sorted(goal.ports))]
        found = source.kubectl("exec", pod, "-c", container, "--", *command)
        return frozenset(map(int, found.split()))

    with ThreadPoolExecutor(16) as pool:
        found = {
            who: (pool.submit(reached, source, pod, worker), pool.submit(reached, source, pod, frontend))
            for who, (source, pod, *_) in table.items()
        }
        seen = {who: tuple(future.result() for future in pair) for who, pair in found.items()}
    assert seen == {who: (of_worker, of_frontend) for who, (_, _, of_worker, of_frontend) in table.items()}


def assert_not_served(base: str) -> None:
    """No worker serves this frontend. A busy frontend may not respond for a while, but a 200 is an error."""

    def status() -> int:
        status, body = chat(base, NAME, "Hi", 3)
        assert status != 200, body
        return status

    eventually(status, lambda code: code in (404, 503), 30)


def test_endpoints_of_the_same_model_name_do_not_serve_each_others_requests(
    cluster: Cluster, pod: str
) -> None:
    with cluster.forward(f"service/{OTHER}", 8000) as other, cluster.forward(f"service/{NAME}", 8000) as ours:
        for base in (other, ours):
            eventually(lambda base=base: chat(base, NAME, "Hi")[0], lambda code: code == 200, 30)
        frozen = pod_name(cluster, OTHER)
        cluster.signal_engine(frozen, "SIGSTOP")
        try:
            eventually(lambda: chat(other, NAME, "Hi", 3)[0], lambda code: code in (404, 503), 60)
            for _ in range(20):
                # Our frontend may be busy for a moment, but must not answer the other's requests.
                eventually(lambda: chat(ours, NAME, "Hi", max_tokens=2)[0], lambda code: code == 200, 30)
                assert_not_served(other)
            eventually(lambda: cluster.condition(NAME, "Ready"), lambda c: c["status"] == "True", 30)
        finally:
            cluster.signal_engine(frozen, "SIGCONT")
        eventually(lambda: chat(other, NAME, "Hi")[0], lambda code: code == 200, 60)

    # An endpoint without workers must not be served by the other's.
    cluster.change(OTHER, replicas=0)
    eventually(lambda: cluster.workers(OTHER), lambda pods: not pods, 120)
    eventually(
        lambda: cluster.condition(OTHER, "Ready"),
        lambda c: (c["status"], c["reason"]) == ("True", "ScaledToZero"),
        30,
    )
    with cluster.forward(f"service/{OTHER}", 8000) as other:
        assert_not_served(other)
    cluster.kubectl("delete", "vep", OTHER, "--wait")
    cluster.kubectl("delete", "pod", "unrelated", "--now")


def test_a_dead_engine_ends_the_worker_and_is_named_in_the_condition(cluster: Cluster, pod: str) -> None:
    """With a request in flight: upstream would end the process immediately without a message."""
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


def test_deleting_the_endpoint_deletes_all_its_objects(cluster: Cluster, pod: str) -> None:
    cluster.kubectl("delete", "vep", NAME, "--wait")
    kinds = (
        "pods,deployments,replicasets,services,networkpolicies,rolebindings,controllerrevisions,"
        "endpointslices,dynamoworkermetadatas,configmaps,serviceaccounts"
    )

    def left() -> list[str]:
        names = cluster.kubectl("get", kinds, "-o", "name").split()
        return [name for name in names if not name.endswith(("kube-root-ca.crt", "serviceaccount/default"))]

    eventually(left, lambda names: not names, 120, every=1)
