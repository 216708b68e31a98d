"""The operator as a process: termination, leader election, a frozen leader, and fatal errors."""

import json
import signal
import time

import yaml

from tests.free_port import free_port
from tests.integration.http_get import http_get, metrics_text
from vllmendpoint_api import names

TERMINATION_SECONDS = 6
"""Maximum on a busy machine; an operator that waits for the lease or for a request needs 10 s and more."""


def test_the_operator_serves_health_and_metrics_and_ends_promptly(
    operate, make_endpoint, api, namespace, until
):
    metrics, health = free_port(), free_port()
    operator = operate(namespace, metrics_port=metrics, health_port=health).until_leading()
    endpoint = make_endpoint(namespace).create()
    endpoint.until("Available", "False", "Starting")
    assert http_get(health, "/healthz") == (200, "ok\n")
    assert http_get(health, "/readyz") == (200, "ok\n")
    text = metrics_text(metrics)
    labels = f'name="{endpoint.name}",namespace="{namespace}"'
    assert "vllmendpoint_operator_leader 1.0" in text
    assert 'vllmendpoint_operator_reconcile_total{result="success"}' in text
    condition = 'vllmendpoint_condition{condition="Ready",' + labels + ',status="False"} 1.0'
    assert condition in text
    assert "vllmendpoint_replicas{" + labels + ',state="desired"} 1.0' in text
    api.delete("VLLMEndpoint", namespace, endpoint.name)
    until(lambda: labels not in metrics_text(metrics), lambda: metrics_text(metrics))
    started = time.monotonic()
    assert operator.stop() == 0, operator.text()
    assert time.monotonic() - started < TERMINATION_SECONDS
    assert "Traceback" not in operator.text(), operator.text()
    (lease,) = api.all("Lease", namespace)
    assert lease["spec"].get("holderIdentity", "") == "", "the next operator can lead immediately"


def test_a_standby_operator_ends_promptly(operate, namespace, until):
    operate(namespace).until_leading()
    standby = operate(namespace)
    until(lambda: "waiting for the lease" in standby.text(), standby.text)
    started = time.monotonic()
    assert standby.stop() == 0, standby.text()
    assert time.monotonic() - started < TERMINATION_SECONDS


def test_a_standby_operator_takes_over_from_a_killed_leader(operate, make_endpoint, api, namespace, until):
    first = operate(namespace, identity="first", lease_seconds=6).until_leading()
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
    second.until_leading()
    assert time.monotonic() - killed > 2, "only after the lease expired, which was renewed every 2 s"

    def verdict():
        return endpoint.get()["status"]["workers"][0]["verdict"]

    until(lambda: verdict() == "Busy", "the verdict is reported")
    assert endpoint.condition("Ready")["status"] == "True", "the previous verdict was kept meanwhile"
    worker.send_report("Generating")
    until(lambda: verdict() == "Generating", "a later verdict, after any Event of the first one")
    assert len(endpoint.events("Ready")) == 1, "a new leader repeats no Event"
    endpoint.patch(spec={"replicas": 2})
    until(lambda: len(endpoint.pods()) == 2, "the change is applied")
    (lease,) = api.all("Lease", namespace)
    assert lease["spec"]["holderIdentity"] == "second"


def test_a_frozen_leader_writes_nothing_after_it_resumes(operate, make_endpoint, api, namespace, until):
    """SIGSTOP simulates a suspended machine."""
    first = operate(namespace, identity="first", lease_seconds=6).until_leading()
    endpoint = make_endpoint(namespace).create()
    endpoint.until("Available", "False", "Starting")
    first.process.send_signal(signal.SIGSTOP)
    second = operate(namespace, identity="second", lease_seconds=6).until_leading()
    second.process.send_signal(signal.SIGSTOP)  # so that every write is from the first operator
    time.sleep(0.5)  # for requests that the second one already sent
    endpoint.patch(spec={"replicas": 2})
    offset = api.audit_offset()
    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(10) == 1, first.text()
    assert api.writes(offset, namespace=namespace) == []
    assert "lease" in first.text().splitlines()[-1]
    assert "sub-exception" not in first.text().splitlines()[-1]


def test_an_untrusted_api_server_ends_the_operator(operate, api, namespace, tmp_path):
    """As after a change of the certificate authority, which is read at the start: an operator that waited for
    the lease would never lead.
    """
    config = yaml.safe_load(api.operators.read_text())
    admin = yaml.safe_load(api.kubeconfig.read_text())["users"][0]["user"]
    another = admin["client-certificate-data"]  # a certificate that did not sign the server's
    config["clusters"][0]["cluster"]["certificate-authority-data"] = another
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    operator = operate(namespace, kubeconfig=kubeconfig)
    assert operator.process.wait(20) == 1
    last = operator.text().splitlines()[-1]
    assert "certificate verify failed" in last
    assert "correct certificate-authority in the kubeconfig." in last


def test_a_deeply_nested_spec_is_rejected_and_does_not_end_the_operator(
    operate, make_endpoint, api, namespace, tmp_path, until
):
    operator = operate(namespace).until_leading()
    levels = 9_900  # the API server accepts 10,000 in total
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

    message = "engine.config.inline: Value error, nested more than 32 levels deep"
    until(lambda: message in accepted(), lambda: (accepted()[-500:], operator.text()[-2000:]))
    assert "InvalidSpec" in accepted()
    assert operator.stop() == 0
    restarted = operate(namespace).until_leading()
    other = make_endpoint(namespace).create()
    other.until("Available", "False", "Starting")
    assert restarted.process.poll() is None
    api.kubectl("delete", "vep", "-n", namespace, "deep")
