"""The chart's operator for two namespaces: one that is deleted stops nothing in the other."""

import itertools
import json
import subprocess
import urllib.error
import urllib.request

import pytest
import yaml

from tests.free_port import free_port
from tests.integration.api_server import BIN
from tests.integration.chart_account import CHART, NAME, kubeconfig_of

_numbers = itertools.count(1)


class Release:
    """The chart's rights in two namespaces, for operators that run outside of it."""

    def __init__(self, api, folder):
        number = next(_numbers)
        self.api = api
        self.ops, self.x, self.y = (f"{name}-{number}" for name in ("release", "stays", "goes"))
        for namespace in (self.ops, self.x, self.y):
            api.kubectl("create", "namespace", namespace)
        self.install()
        self.kubeconfig = kubeconfig_of(api.kubectl, self.ops, NAME, folder / "kubeconfig")

    def install(self):
        only = [f"--show-only=templates/{name}.yaml" for name in ("rbac", "serviceaccount")]
        values = ["--set", f"watchNamespaces={{{self.x},{self.y}}}"]
        command = [BIN / "helm", "template", NAME, CHART, "--namespace", self.ops, *only, *values]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        made = [found for found in yaml.safe_load_all(done.stdout) if found]
        self.api.kubectl(
            "apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": made})
        )

    def flags(self, **more):
        watched = f"{self.x},{self.y}"
        return {
            "namespaces": watched,
            "lease_name": NAME,
            "kubeconfig": self.kubeconfig,
            "worker_role_kind": "Role",
            **more,
        }


@pytest.fixture
def release(api, tmp_path):
    return Release(api, tmp_path)


def answer(port, path="/readyz"):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()
    except urllib.error.URLError:
        return 0, ""


def served(port, namespace):
    series = f'vllmendpoint_operator_namespace_served{{watched_namespace="{namespace}"}} '
    found = [line for line in answer(port, "/metrics")[1].splitlines() if line.startswith(series)]
    return float(found[0].removeprefix(series)) if found else None


def reconciles(make_endpoint, namespace, until):
    """A new endpoint in the namespace is taken up."""
    endpoint = make_endpoint(namespace).create()
    until(lambda: endpoint.child("Deployment", "-workers"), lambda: endpoint.get().get("status"))
    return endpoint


def test_a_deleted_namespace_stops_nothing_in_the_other(release, operate, make_endpoint, api, until):
    api.kubectl("delete", "namespace", release.y, "--timeout=50s")
    metrics, health = free_port(), free_port()
    flags = release.flags(metrics_port=metrics, health_port=health)
    operator = operate(release.ops, **flags).leads()
    assert answer(health) == (200, "ok\n")
    reconciles(make_endpoint, release.x, until)
    assert (served(metrics, release.x), served(metrics, release.y)) == (1, 0)
    assert "vllmendpoint_operator_leader 1.0" in answer(metrics, "/metrics")[1]

    def failures():
        return operator.logged("a watched namespace is not served", watched_namespace=release.y)

    until(failures, operator.text)

    api.kubectl("create", "namespace", release.y)
    release.install()
    until(lambda: served(metrics, release.y) == 1, operator.text, seconds=60)
    reconciles(make_endpoint, release.y, until)
    reconciles(make_endpoint, release.x, until)
    assert len(failures()) == 1, operator.text()
    assert answer(health) == (200, "ok\n")


def test_rights_that_are_lost_and_given_back_while_it_runs(release, operate, make_endpoint, api, until):
    metrics = free_port()
    flags = release.flags(metrics_port=metrics)
    operator = operate(release.ops, **flags).leads()
    endpoint = reconciles(make_endpoint, release.y, until)
    before = endpoint.child("Deployment", "-workers")
    listed = api.kubectl("get", "rolebindings", "-n", release.y, "-o", "name").split()
    roles = [name for name in listed if NAME in name]
    api.kubectl("delete", "-n", release.y, *roles)
    # The streams that stand go on; what ends them in a test is the end of the operator.
    assert operator.stop() == 0
    operator = operate(release.ops, **flags).leads()
    assert served(metrics, release.y) == 0
    reconciles(make_endpoint, release.x, until)
    mark = api.audit_offset()
    endpoint.patch(spec={"replicas": 2})
    release.install()
    until(
        lambda: endpoint.child("Deployment", "-workers")["spec"]["replicas"] == 2, operator.text, seconds=60
    )
    after = endpoint.child("Deployment", "-workers")
    assert after["spec"]["template"] == before["spec"]["template"]
    written = api.writes(mark, namespace=release.y)
    assert not [what for what in written if "controllerrevisions" in what], written


def test_a_replica_is_ready_once_it_could_lead(release, operate, api, until):
    health = free_port()
    flags = release.flags()
    operate(release.ops, identity="first", **flags).leads()
    second = operate(release.ops, identity="second", health_port=health, **flags)
    until(lambda: answer(health)[0] == 200, second.text)
    assert "every watched kind is listed" not in second.text(), "it waits for the lease"


def test_a_replica_without_rights_is_not_ready(release, operate, api, until, tmp_path):
    """As one that a rollout brings together with an account of its own."""
    api.kubectl("create", "serviceaccount", "bare", "-n", release.ops)
    role = f"{NAME}-leader-election"
    api.kubectl(
        *("create", "rolebinding", "bare", "-n", release.ops),
        *(f"--role={role}", f"--serviceaccount={release.ops}:bare"),
    )
    bare = kubeconfig_of(api.kubectl, release.ops, "bare", tmp_path / "bare")
    health = free_port()
    flags = release.flags()
    operate(release.ops, identity="first", **flags).leads()
    second = operate(release.ops, identity="second", health_port=health, **{**flags, "kubeconfig": bare})
    until(lambda: len(second.logged("a watched namespace is not served")) == 2, second.text)
    status, text = answer(health)
    assert (status, "No watched namespace is reconciled yet." in text) == (503, True)
