"""The operator as a process: killed, doubled, restarted, asked to end; and what deletion leaves."""

import json
import signal
import socket
import time
import urllib.request

import pytest


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ask(number, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{number}{path}", timeout=5) as answer:
        return answer.status, answer.read().decode()


def leftovers(api, namespace):
    kinds = ("Deployment", "ReplicaSet", "Pod", "Service", "ConfigMap", "ServiceAccount", "RoleBinding")
    found = [
        f"{kind} {obj['metadata']['name']}"
        for kind in (*kinds, "NetworkPolicy", "ControllerRevision", "VLLMEndpoint")
        for obj in api.all(kind, namespace)
    ]
    return [name for name in found if name not in ("ConfigMap kube-root-ca.crt", "ServiceAccount default")]


def test_answers_for_itself_and_ends_within_two_seconds(operate, space, api, namespace, until):
    metrics, health = port(), port()
    operator = operate(namespace, metrics_port=metrics, health_port=health).leads()
    endpoint = space(namespace).create()
    endpoint.until("Available", "False", "Starting")
    assert ask(health, "/healthz") == (200, "ok\n")
    assert ask(health, "/readyz") == (200, "ok\n")
    status, text = ask(metrics, "/metrics")
    assert status == 200
    where = f'name="{endpoint.name}",namespace="{namespace}"'
    assert "vllmendpoint_operator_leader 1.0" in text
    assert 'vllmendpoint_operator_reconcile_total{result="success"}' in text
    condition = 'vllmendpoint_condition{condition="Ready",' + where + ',status="False"} 1.0'
    assert condition in text
    assert "vllmendpoint_replicas{" + where + ',state="wanted"} 1.0' in text
    api.delete("VLLMEndpoint", namespace, endpoint.name)
    until(lambda: where not in ask(metrics, "/metrics")[1], lambda: ask(metrics, "/metrics")[1])
    started = time.monotonic()
    assert operator.stop() == 0, operator.text()
    assert time.monotonic() - started < 2
    assert "Traceback" not in operator.text(), operator.text()
    (lease,) = api.all("Lease", namespace)
    assert lease["spec"].get("holderIdentity", "") == "", "the next one leads at once"


def test_ends_within_two_seconds_while_it_waits_for_the_lease(operate, namespace, until):
    operate(namespace).leads()
    waiting = operate(namespace)
    until(lambda: "waiting for the lease" in waiting.text(), waiting.text)
    started = time.monotonic()
    assert waiting.stop() == 0, waiting.text()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
@pytest.mark.parametrize("moment", ["settled", "fresh"])
def test_deletion_leaves_nothing_and_nothing_is_written_after_it(
    operate, space, api, namespace, until, propagation, moment
):
    operate(namespace).leads()
    endpoint = space(namespace).create(replicas=2)
    if moment == "settled":
        endpoint.serve(2)
        endpoint.until("Ready", "True")
    else:
        until(lambda: endpoint.child("Deployment", "-workers"), "half way")
    mark = api.mark()
    api.delete("VLLMEndpoint", namespace, endpoint.name, propagation)
    # The garbage collector learns of a new CRD within 30 s.
    until(lambda: not leftovers(api, namespace), lambda: leftovers(api, namespace), seconds=45)
    time.sleep(1)
    assert leftovers(api, namespace) == []
    assert late_writes(api, mark, namespace, endpoint.name) == []


def late_writes(api, mark, namespace, name):
    """Writes of the operator that the API server took after it had answered the deletion."""
    deleted = None
    late = []
    with api.audit.open("rb") as log:
        log.seek(mark)
        entries = [json.loads(line) for line in log.read().splitlines()]
    for entry in entries:
        reference = entry.get("objectRef", {})
        if entry["verb"] == "delete" and reference.get("resource") == "vllmendpoints" and not deleted:
            deleted = entry["stageTimestamp"]
        if (
            deleted
            and ("aiohttp" in entry["userAgent"] or "kopf" in entry["userAgent"])
            and entry["verb"] in ("create", "patch", "update", "delete")
            and reference.get("namespace") == namespace
            # An Event that follows its status write may cross with the deletion.
            and reference.get("resource") not in ("leases", "events")
            and entry["requestReceivedTimestamp"] > deleted
            and entry["responseStatus"]["code"] < 400
        ):
            late.append(f"{entry['verb']} {reference['resource']} {reference.get('name')}")
    assert deleted, f"{name} was deleted"
    return late


@pytest.mark.parametrize("writes", [1, 4, 9, 13])
def test_killed_at_any_moment_it_converges(operate, space, api, namespace, until, writes):
    operator = operate(namespace).leads()
    mark = api.mark()
    endpoint = space(namespace).create(engine={"config": {"inline": {"seed": 1}}})
    until(lambda: len(api.writes(mark, namespace=namespace)) >= writes, f"{writes} writes")
    operator.kill()
    operate(namespace).leads()
    endpoint.serve()
    endpoint.until("Ready", "True")
    counts = {}
    for obj in endpoint.owned():
        counts[obj["kind"]] = counts.get(obj["kind"], 0) + 1
    assert counts == {
        "ControllerRevision": 1,
        "ServiceAccount": 2,
        "RoleBinding": 2,
        "ConfigMap": 2,
        "NetworkPolicy": 2,
        "Service": 2,
        "Deployment": 2,
    }
    assert len(api.all("ReplicaSet", namespace)) == 2
    assert endpoint.get()["status"]["observedGeneration"] == 1


def test_two_operators_one_leads_and_the_other_takes_over(operate, space, api, namespace, until):
    first = operate(namespace, identity="first").leads()
    second = operate(namespace, identity="second")
    until(lambda: "waiting for the lease" in second.text(), second.text)
    endpoint = space(namespace).create()
    endpoint.serve()
    endpoint.until("Ready", "True")
    assert "every watched kind is listed" not in second.text()
    first.kill()
    killed = time.monotonic()
    mark = api.mark()
    endpoint.patch(spec={"replicas": 2})
    second.leads(seconds=15)
    assert 4 < time.monotonic() - killed < 12, "not before the lease ran out, and soon after it"
    until(lambda: len(endpoint.pods()) == 2, "the change is taken up")
    assert endpoint.condition("Generating")["status"] == "True", "the verdict was kept meanwhile"
    (lease,) = api.all("Lease", namespace)
    assert lease["spec"]["holderIdentity"] == "second"
    doubled = [write for write in api.writes(mark, namespace=namespace) if "events" in write]
    assert doubled == [], "a new leader tells nothing anew"


def test_a_leader_that_is_frozen_writes_nothing_when_it_wakes(operate, space, api, namespace, until):
    """SIGSTOP stands for the longest pause there is: a machine that was suspended."""
    first = operate(namespace, identity="first").leads()
    endpoint = space(namespace).create()
    endpoint.until("Available", "False", "Starting")
    first.process.send_signal(signal.SIGSTOP)
    second = operate(namespace, identity="second").leads()
    second.process.send_signal(signal.SIGSTOP)  # so that every write is the first one's
    time.sleep(0.5)  # for what it had sent already
    endpoint.patch(spec={"replicas": 2})
    mark = api.mark()
    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(10) == 1, first.text()
    assert api.writes(mark, namespace=namespace) == []
    assert "lease" in first.text().splitlines()[-1]
    assert "sub-exception" not in first.text().splitlines()[-1]


def test_made_anew_under_the_same_name(operate, space, api, namespace, until):
    operate(namespace).leads()
    endpoint = space(namespace).create(worker={"image": "first:1"})
    endpoint.until("Available", "False", "Starting")
    old = endpoint.get()["metadata"]["uid"]
    api.delete("VLLMEndpoint", namespace, endpoint.name)
    endpoint.create(worker={"image": "second:1"})

    def image():
        deployment = endpoint.child("Deployment", "-workers")
        return deployment and deployment["spec"]["template"]["spec"]["containers"][0]["image"]

    until(lambda: image() == "second:1", image, seconds=45)
    uid = endpoint.get()["metadata"]["uid"]
    assert uid != old
    endpoint.until("Available", "False", "Starting")
    until(lambda: len(endpoint.owned()) == 12, lambda: [o["metadata"]["name"] for o in endpoint.owned()])
    warnings = [event for event in api.all("Event", namespace) if event["reason"] == "NameTaken"]
    assert warnings == [], "its own predecessor is no alarm"
