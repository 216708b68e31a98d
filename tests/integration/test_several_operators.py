"""Two operators that watch one namespace, as with two releases of the chart: only one manages an endpoint."""

import time

import pytest

from tests.free_port import free_port
from tests.integration.http_get import metrics_text

OPERATOR = "serving.vllmendpoint.dev/operator"
QUIET_SECONDS = 8


@pytest.fixture
def other_namespace(api):
    """The namespace of the second operator, which also watches the first one's."""
    name = f"other-release-{time.monotonic_ns()}"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    return name


def metric(port, name):
    lines = metrics_text(port).splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")]


def assert_no_writes(api, endpoint):
    """Neither operator writes anything for QUIET_SECONDS, and the status does not change."""
    before, offset = endpoint.get(), api.audit_offset()
    time.sleep(QUIET_SECONDS)
    assert api.writes(offset, namespace=endpoint.namespace) == []
    assert endpoint.get()["status"] == before["status"]


def uids(endpoint):
    return {pod["metadata"]["uid"] for pod in endpoint.pods()}


@pytest.mark.parametrize("new", [False, True], ids=["the second starts later", "both receive a new endpoint"])
def test_one_of_two_operators_leaves_the_endpoint_to_the_other(
    operate, make_endpoint, api, namespace, other_namespace, until, new
):
    first_name, second_name = f"{namespace}/vllmendpoint-operator", f"{other_namespace}/vllmendpoint-operator"
    port = free_port()

    def start_second():
        image = "registry.example/worker:2"
        flags = {"namespaces": namespace, "worker_image": image, "metrics_port": port}
        return operate(other_namespace, **flags).until_leading()

    first = operate(namespace).until_leading()
    second = start_second() if new else None
    endpoint = make_endpoint(namespace)
    if not new:
        # The first operator manages the endpoint before the second starts; otherwise either may manage it.
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
    passive = second if other == second_name else first

    def reports():
        return passive.logged(
            "another operator manages the endpoint", managing_operator=owner, operator=other
        )

    until(reports, passive.text)
    until(lambda: endpoint.condition("UpToDate")["status"] == "True", endpoint.get)
    time.sleep(6)  # for delayed status writes
    assert_no_writes(api, endpoint)
    endpoint.patch(spec={"replicas": 2})
    endpoint.start_all(2)
    until(lambda: endpoint.get()["status"]["readyReplicas"] == 2, endpoint.get)
    assert len(reports()) == 1
    assert "a defect" not in passive.text()
    if passive is second:
        assert metric(port, "vllmendpoint_operator_foreign_endpoints") == [1]


def test_an_annotation_hands_an_endpoint_over_to_another_operator(
    operate, make_endpoint, api, namespace, other_namespace, until
):
    operate(namespace).until_leading()
    endpoint = make_endpoint(namespace).create()
    endpoint.start_all()
    endpoint.until("Ready", "True")
    flags = {"namespaces": namespace, "worker_image": "registry.example/worker:2"}
    operate(other_namespace, **flags).until_leading()
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
    until(
        lambda: endpoint.get()["status"]["revision"]["upgradeAvailable"],
        "the other operator has another image",
    )
    assert endpoint.child("Deployment", "-workers")["spec"]["template"] == template
    assert uids(endpoint) == pods, "a handover restarts no pod"
    time.sleep(6)
    assert_no_writes(api, endpoint)
    endpoint.patch(metadata={"annotations": {OPERATOR: None}})
    time.sleep(1)
    assert_no_writes(api, endpoint)
    assert endpoint.get()["status"]["operator"] == other
