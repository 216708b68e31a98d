"""One real endpoint through its life: served, frozen, thawed, reconfigured, scaled, deleted."""

import json
import time
from collections.abc import Iterator

import pytest

from .conftest import CHAT, Cluster, chat, eventually, manifest, post

NAME = "smol"
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def pod(cluster: Cluster) -> str:
    cluster.apply(manifest(NAME, uri=CHAT))
    cluster.wait_ready(NAME)
    return str(cluster.workers(NAME)[0]["metadata"]["name"])


@pytest.fixture(scope="module")
def url(cluster: Cluster, pod: str) -> Iterator[str]:
    with cluster.forward(f"service/{NAME}", 8000) as base:
        yield base


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
            assert post(f"{base}/ping", {}, 10)[0] != 200
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
    changed = time.monotonic()
    cluster.kubectl("patch", "vep", NAME, "--type=merge", "-p", json.dumps(patch))
    check = eventually(
        lambda: cluster.endpoint(NAME)["status"]["healthCheck"], lambda c: c["source"] == "Spec", 10
    )
    took = time.monotonic() - changed
    assert check["payload"] == payload
    cluster.kubectl("wait", "--for=condition=Ready", f"vep/{NAME}", "--timeout=30s")
    assert took < 10, took
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


def test_a_dead_engine_ends_the_worker_and_is_named(cluster: Cluster, pod: str) -> None:
    cluster.signal_engine(pod, "SIGKILL")
    found = eventually(
        lambda: cluster.condition(NAME, "Available"), lambda c: c["reason"] == "CrashLooping", 30
    )
    assert found["status"] == "False"
    assert f"pod {pod} ended with exit code 1 (" in found["message"]
    assert "It said: The engine is gone" in found["message"]
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
