"""Two operators that watch one namespace, as two releases of the chart do: one leaves the endpoints alone."""

import time
import urllib.request

import pytest

from tests.free_port import free_port

OPERATOR = "serving.vllmendpoint.dev/operator"
QUIET_SECONDS = 8


@pytest.fixture
def other_namespace(api):
    """Of the second operator itself; it watches the first one's too."""
    name = f"other-release-{time.monotonic_ns()}"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    return name


def metric(port, name):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")]


def quiet(api, endpoint):
    """Nothing is written for a while, by either, and nothing in the status moves."""
    before, mark = endpoint.get(), api.audit_offset()
    time.sleep(QUIET_SECONDS)
    assert api.writes(mark, namespace=endpoint.namespace) == []
    assert endpoint.get()["status"] == before["status"]


def uids(endpoint):
    return {pod["metadata"]["uid"] for pod in endpoint.pods()}


@pytest.mark.parametrize("new", [False, True], ids=["the second one comes later", "both see a new endpoint"])
def test_one_of_two_operators_steps_back(operate, make_endpoint, api, namespace, other_namespace, until, new):
    first_name, second_name = f"{namespace}/vllmendpoint-operator", f"{other_namespace}/vllmendpoint-operator"
    port = free_port()

    def start_second():
        image = "registry.example/worker:2"
        flags = {"namespaces": namespace, "worker_image": image, "metrics_port": port}
        return operate(other_namespace, **flags).leads()

    first = operate(namespace).leads()
    second = start_second() if new else None
    endpoint = make_endpoint(namespace)
    if not new:
        # The first one is known by then; else either may have it.
        endpoint.create()
        endpoint.start_all()
        endpoint.until("Ready", "True")
        second = start_second()
    else:
        endpoint.create(worker={"image": "registry.example/worker:1"})
        endpoint.start_all()
        endpoint.until("Ready", "True")
    owner = endpoint.get()["status"]["operator"]
    assert owner in ((first_name, second_name) if new else (first_name,))
    other = second_name if owner == first_name else first_name
    conflict = endpoint.until("OperatorConflict", "True", "ManagedByAnotherOperator")
    assert f"The operator {other} also watches this namespace." in conflict["message"]
    assert f"it is managed by {owner} (status.operator)" in conflict["message"]
    assert f"set its annotation {OPERATOR}={other}" in conflict["message"]
    stepped_back = second if other == second_name else first

    def reports():
        return stepped_back.logged(
            "another operator manages the endpoint", managing_operator=owner, operator=other
        )

    until(reports, stepped_back.text)
    until(lambda: endpoint.condition("UpToDate")["status"] == "True", endpoint.get)
    time.sleep(6)  # counts and figures that waited
    quiet(api, endpoint)
    endpoint.patch(spec={"replicas": 2})
    endpoint.start_all(2)
    until(lambda: endpoint.get()["status"]["readyReplicas"] == 2, endpoint.get)
    assert len(reports()) == 1
    assert "a defect" not in stepped_back.text()
    if stepped_back is second:
        assert metric(port, "vllmendpoint_operator_foreign_endpoints") == [1]


def test_an_endpoint_is_handed_over_on_purpose(
    operate, make_endpoint, api, namespace, other_namespace, until
):
    operate(namespace).leads()
    endpoint = make_endpoint(namespace).create()
    endpoint.start_all()
    endpoint.until("Ready", "True")
    flags = {"namespaces": namespace, "worker_image": "registry.example/worker:2"}
    operate(other_namespace, **flags).leads()
    endpoint.until("OperatorConflict", "True")
    pods = uids(endpoint)
    template = endpoint.child("Deployment", "-workers")["spec"]["template"]
    other = f"{other_namespace}/vllmendpoint-operator"
    endpoint.patch(metadata={"annotations": {OPERATOR: other}})
    until(lambda: endpoint.get()["status"]["operator"] == other, endpoint.get)
    until(
        lambda: (
            f"it is managed by {other} (annotation)"
            in endpoint.condition("OperatorConflict").get("message", "")
        ),
        endpoint.get,
    )
    until(lambda: endpoint.get()["status"]["revision"]["upgradeAvailable"], "the other one has another image")
    assert endpoint.child("Deployment", "-workers")["spec"]["template"] == template
    assert uids(endpoint) == pods, "handing over restarts nothing"
    time.sleep(6)
    quiet(api, endpoint)
    endpoint.patch(metadata={"annotations": {OPERATOR: None}})
    time.sleep(1)
    quiet(api, endpoint)
    assert endpoint.get()["status"]["operator"] == other
