"""The operator as a process: asked to end, doubled, frozen, followed by another."""

import json
import signal
import time
import urllib.request

import yaml

from tests.free_port import free_port
from vllmendpoint_api import names

ENDS_SECONDS = 6
"""A loaded machine's: what is not given up at once takes a lease's or a request's time, 10 s and more."""


def ask(number, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{number}{path}", timeout=5) as answer:
        return answer.status, answer.read().decode()


def test_answers_for_itself_and_ends_at_once(operate, make_endpoint, api, namespace, until):
    metrics, health = free_port(), free_port()
    operator = operate(namespace, metrics_port=metrics, health_port=health).leads()
    endpoint = make_endpoint(namespace).create()
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
    assert "vllmendpoint_replicas{" + where + ',state="desired"} 1.0' in text
    api.delete("VLLMEndpoint", namespace, endpoint.name)
    until(lambda: where not in ask(metrics, "/metrics")[1], lambda: ask(metrics, "/metrics")[1])
    started = time.monotonic()
    assert operator.stop() == 0, operator.text()
    assert time.monotonic() - started < ENDS_SECONDS
    assert "Traceback" not in operator.text(), operator.text()
    (lease,) = api.all("Lease", namespace)
    assert lease["spec"].get("holderIdentity", "") == "", "the next one leads at once"


def test_ends_at_once_while_it_waits_for_the_lease(operate, namespace, until):
    operate(namespace).leads()
    waiting = operate(namespace)
    until(lambda: "waiting for the lease" in waiting.text(), waiting.text)
    started = time.monotonic()
    assert waiting.stop() == 0, waiting.text()
    assert time.monotonic() - started < ENDS_SECONDS


def test_two_operators_one_leads_and_the_other_takes_over(operate, make_endpoint, api, namespace, until):
    first = operate(namespace, identity="first", lease_seconds=6).leads()
    second = operate(namespace, identity="second", lease_seconds=6)
    until(lambda: "waiting for the lease" in second.text(), second.text)
    endpoint = make_endpoint(namespace).create()
    (worker,) = endpoint.start_all()
    endpoint.until("Ready", "True")
    endpoint.until_event("Ready")
    assert "every watched kind is listed" not in second.text()
    first.kill()
    killed = time.monotonic()
    worker.send_report("Busy")
    second.leads()
    assert time.monotonic() - killed > 2, "not before the lease ran out, which was renewed every 2 s"

    def verdict():
        return endpoint.get()["status"]["workers"][0]["verdict"]

    until(lambda: verdict() == "Busy", "the change is told")
    assert endpoint.condition("Ready")["status"] == "True", "the verdict was kept meanwhile"
    worker.send_report("Generating")
    until(lambda: verdict() == "Generating", "another, after all that the first one's Events would follow")
    assert len(endpoint.events("Ready")) == 1, "a new leader tells nothing anew"
    endpoint.patch(spec={"replicas": 2})
    until(lambda: len(endpoint.pods()) == 2, "the change is taken up")
    (lease,) = api.all("Lease", namespace)
    assert lease["spec"]["holderIdentity"] == "second"


def test_a_leader_that_is_frozen_writes_nothing_when_it_wakes(operate, make_endpoint, api, namespace, until):
    """SIGSTOP stands for the longest pause there is: a machine that was suspended."""
    first = operate(namespace, identity="first", lease_seconds=6).leads()
    endpoint = make_endpoint(namespace).create()
    endpoint.until("Available", "False", "Starting")
    first.process.send_signal(signal.SIGSTOP)
    second = operate(namespace, identity="second", lease_seconds=6).leads()
    second.process.send_signal(signal.SIGSTOP)  # so that every write is the first one's
    time.sleep(0.5)  # for what it had sent already
    endpoint.patch(spec={"replicas": 2})
    mark = api.audit_offset()
    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(10) == 1, first.text()
    assert api.writes(mark, namespace=namespace) == []
    assert "lease" in first.text().splitlines()[-1]
    assert "sub-exception" not in first.text().splitlines()[-1]


def test_an_api_server_that_is_not_trusted_ends_it(operate, api, namespace, tmp_path):
    """As after a change of the certificate authority, which is read at the start: one that waits for the
    lease would wait for ever.
    """
    config = yaml.safe_load(api.operators.read_text())
    admin = yaml.safe_load(api.kubeconfig.read_text())["users"][0]["user"]
    another = admin["client-certificate-data"]  # a certificate, and no authority of the server's
    config["clusters"][0]["cluster"]["certificate-authority-data"] = another
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    operator = operate(namespace, kubeconfig=kubeconfig)
    assert operator.process.wait(20) == 1
    last = operator.text().splitlines()[-1]
    assert "certificate verify failed" in last
    assert "correct certificate-authority in the kubeconfig." in last


def test_one_that_is_nested_as_deep_as_can_be_ends_nobody(
    operate, make_endpoint, api, namespace, tmp_path, until
):
    operator = operate(namespace).leads()
    levels = 9_900  # the API server takes 10,000 in all
    text = (
        f'{{"apiVersion":"{names.API_VERSION}","kind":"{names.KIND}","metadata":{{"name":"deep"}},"spec":'
        '{"model":{"uri":"hf://o/n"},"engine":{"config":{"inline":'
        + '{"a":' * levels
        + "1"
        + "}" * levels
        + "}}}}"
    )
    (tmp_path / "deep.json").write_text(text)
    path = api.path("VLLMEndpoint", namespace)
    api.kubectl("create", "--raw", path, "-f", str(tmp_path / "deep.json"))

    def accepted():
        condition = '{.status.conditions[?(@.type=="Accepted")]}'
        return api.kubectl("get", "vep", "-n", namespace, "deep", "-o", f"jsonpath={condition}")

    told = "engine.config.inline: Value error, nested more than 32 levels deep"
    until(lambda: told in accepted(), lambda: (accepted()[-500:], operator.text()[-2000:]))
    assert "InvalidSpec" in accepted()
    assert operator.stop() == 0
    again = operate(namespace).leads()
    other = make_endpoint(namespace).create()
    other.until("Available", "False", "Starting")
    assert again.process.poll() is None
    api.kubectl("delete", "vep", "-n", namespace, "deep")
