"""Changes of an endpoint with two replicas under load: responses to clients, and conditions meanwhile."""

import json
import time
from typing import Any, NamedTuple

import pytest

from .conftest import ENGINE, Cluster, eventually, manifest, python_pod

NAME = "rolled"
SIBLING = "rolled-v2"
"""Its name starts with NAME, and it serves a model of the same name."""
pytestmark = pytest.mark.timeout(900)

CLIENT = """
import json, sys, threading, time, urllib.error, urllib.request
body = {"model": "rolled", "prompt": "one two three", "max_tokens": 4}
body["nvext"] = {"extra_fields": ["worker_id"]}
def send():
    while True:
        began = time.monotonic()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(
            "http://rolled:8000/v1/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)
            line = {"status": 200, "worker": answer["nvext"]["worker_id"]["decode_worker_id"]}
        except urllib.error.HTTPError as error:
            line = {"status": error.code, "worker": 0, "body": error.read().decode(errors="replace")[:200]}
        except (OSError, KeyError) as error:
            line = {"status": 0, "worker": 0, "body": repr(error)}
        sys.stdout.write(json.dumps(line | {"at": time.time()}) + chr(10))
        sys.stdout.flush()
        time.sleep(max(0, 0.3 - (time.monotonic() - began)))
for _ in range(3):
    threading.Thread(target=send).start()
"""
"""Three clients send ten requests per second in total to the Service, and print status and worker of each."""


class Answer(NamedTuple):
    at: float
    status: int
    worker: int
    body: str = ""


def answers(cluster: Cluster) -> list[Answer]:
    lines = cluster.kubectl("logs", "client").splitlines()
    return sorted(Answer(**json.loads(line)) for line in lines)


@pytest.fixture(scope="module")
def endpoint(cluster: Cluster) -> None:
    replicas = {"replicas": 2, "engine": {"args": engine_args(512)}}
    cluster.apply(
        manifest(NAME, **replicas),
        manifest(SIBLING, model={"uri": "pvc://models/toy-llama", "name": NAME}, replicas=0),
    )
    cluster.wait_ready(NAME)
    cluster.apply(python_pod("client", CLIENT))
    eventually(lambda: cluster.kubectl("logs", "client", check=False), lambda text: "status" in text, 60)
    eventually(lambda: [a.status for a in answers(cluster)], lambda found: found[-1:] == [200], 30)


def engine_args(max_model_len: int) -> list[str]:
    args = list(ENGINE)
    args[args.index("--max-model-len") + 1] = str(max_model_len)
    return [*args, "--distributed-executor-backend", "uni"]


def rolled_out(cluster: Cluster) -> bool:
    command = ("rollout", "status", f"deployment/{NAME}-workers", "--watch=false")
    return "successfully rolled out" in cluster.kubectl(*command)


def snapshot(cluster: Cluster) -> dict[str, Any]:
    """Runs ``kubectl rollout status`` twice: the rollout may end while the conditions are read."""
    return {
        "complete": rolled_out(cluster),
        "conditions": {kind: cluster.condition(NAME, kind)["status"] for kind in ("UpToDate", "Ready")},
        "pods": {pod["metadata"]["uid"] for pod in cluster.workers(NAME)},
        "complete after": rolled_out(cluster),
    }


def test_a_rollout_that_changes_the_model_card_fails_no_request(cluster: Cluster, endpoint: None) -> None:
    before = {pod["metadata"]["uid"] for pod in cluster.workers(NAME)}
    begun = time.time()
    cluster.change(NAME, engine={"args": engine_args(256)})
    seen = []
    while not (seen and seen[-1]["complete"] and not seen[-1]["pods"] & before):
        assert time.time() < begun + 800, seen[-1]
        seen.append(snapshot(cluster))
        time.sleep(1)
    eventually(lambda: cluster.condition(NAME, "Ready")["status"], lambda status: status == "True", 20)
    ended = time.time()
    time.sleep(3)

    early = [s for s in seen if not s["complete after"] and "True" in s["conditions"].values()]
    # The first snapshots may precede the new template of the Deployment.
    changed = next(i for i, s in enumerate(seen) if not s["complete"])
    assert not [s for s in early if seen.index(s) >= changed], early

    found = [answer for answer in answers(cluster) if answer.at > begun]
    assert [answer for answer in found if answer.status != 200] == []
    assert len(found) > 2 * (ended - begun), "the clients were delayed"
    old = {answer.worker for answer in answers(cluster) if answer.at < begun}
    new = {answer.worker for answer in found} - old
    assert (len(old), len(new)) == (2, 2)
    # Between the first answer of a new worker and the last of an old one, both receive requests: without
    # surge, for the minReadySeconds of the new worker.
    first = min(answer.at for answer in found if answer.worker in new)
    last = max(answer.at for answer in found if answer.worker in old)
    mixed = [answer.worker for answer in found if first <= answer.at <= last]
    assert len(mixed) > 5
    for workers in (old, new):
        assert sum(worker in workers for worker in mixed) > 1


def readiness(cluster: Cluster) -> dict[str, tuple[str, str]]:
    """Status and transition time of the Ready condition by the UID of the worker pod."""
    return {
        pod["metadata"]["uid"]: (condition["status"], condition["lastTransitionTime"])
        for pod in cluster.workers(NAME)
        for condition in pod["status"]["conditions"]
        if condition["type"] == "Ready"
    }


def test_a_payload_that_only_the_engine_rejects_keeps_every_replica_ready(
    cluster: Cluster, endpoint: None
) -> None:
    cluster.wait_ready(NAME)
    before, since = readiness(cluster), time.time()
    valid = cluster.endpoint(NAME)["status"]["healthCheck"]["payload"]
    rejected = {"prompt": "Hello", "max_tokens": 1, "temperature": 0, "logprobs": 50}
    cluster.change(NAME, healthCheck={"payload": rejected})
    found = eventually(
        lambda: cluster.condition(NAME, "ConfigurationResolved"), lambda c: c["status"] == "False", 30
    )
    assert found["reason"] == "InvalidPayload"
    assert "logprobs" in found["message"]
    assert "50" in found["message"]
    # If the payload were active, the replica would become unready within two probes.
    time.sleep(15)
    assert {status for status, _ in before.values()} == {"True"}
    assert readiness(cluster) == before
    assert cluster.endpoint(NAME)["status"]["healthCheck"]["payload"] == valid
    assert cluster.condition(NAME, "Generating")["status"] == "True"
    assert [answer for answer in answers(cluster) if answer.at > since and answer.status != 200] == []

    # A replica that starts meanwhile uses the last valid payload and becomes ready.
    cluster.change(NAME, replicas=3)
    eventually(
        lambda: [status for status, _ in readiness(cluster).values()], lambda s: s == ["True"] * 3, 300
    )
    cluster.change(NAME, replicas=2, healthCheck=None)
    cluster.wait_ready(NAME, 60)


def test_an_endpoint_whose_name_has_the_same_prefix_receives_no_requests(
    cluster: Cluster, endpoint: None
) -> None:
    cluster.change(SIBLING, replicas=1)
    cluster.wait_ready(SIBLING)
    known = {answer.worker for answer in answers(cluster)[-8:]}
    since = time.time()
    time.sleep(10)
    assert {answer.worker for answer in answers(cluster) if answer.at > since} <= known
