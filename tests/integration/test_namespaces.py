"""The chart's operator for two namespaces, one of which is deleted or loses its permissions."""

import itertools
import json
import subprocess

import pytest
import yaml

from tests.free_port import free_port
from tests.integration.chart_account import CHART, NAME, kubeconfig_of
from tests.integration.http_get import http_get, metrics_text
from tests.project_cache import BIN

_numbers = itertools.count(1)


class Release:
    """The chart's permissions in two namespaces, for operators that run outside of the cluster."""

    def __init__(self, api, folder):
        number = next(_numbers)
        self.api = api
        self.ops, self.kept, self.deleted = (f"{name}-{number}" for name in ("release", "kept", "deleted"))
        for namespace in (self.ops, self.kept, self.deleted):
            api.kubectl("create", "namespace", namespace)
        self.install()
        self.kubeconfig = kubeconfig_of(api.kubectl, self.ops, NAME, folder / "kubeconfig")

    def install(self):
        only = [f"--show-only=templates/{name}.yaml" for name in ("rbac", "serviceaccount")]
        values = ["--set", f"watchNamespaces={{{self.kept},{self.deleted}}}"]
        command = [BIN / "helm", "template", NAME, CHART, "--namespace", self.ops, *only, *values]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        objects = [found for found in yaml.safe_load_all(done.stdout) if found]
        self.api.kubectl(
            "apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        )

    def flags(self, **more):
        watched = f"{self.kept},{self.deleted}"
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


def served(port, namespace):
    series = f'vllmendpoint_operator_namespace_served{{watched_namespace="{namespace}"}} '
    found = [line for line in http_get(port, "/metrics")[1].splitlines() if line.startswith(series)]
    return float(found[0].removeprefix(series)) if found else None


def create_reconciled(make_endpoint, namespace, until):
    """Create an endpoint in the namespace and wait until it is reconciled."""
    endpoint = make_endpoint(namespace).create()
    until(lambda: endpoint.child("Deployment", "-workers"), lambda: endpoint.get().get("status"))
    return endpoint


def test_a_deleted_namespace_does_not_affect_the_other(release, operate, make_endpoint, api, until):
    api.kubectl("delete", "namespace", release.deleted, "--timeout=50s")
    metrics, health = free_port(), free_port()
    flags = release.flags(metrics_port=metrics, health_port=health)
    operator = operate(release.ops, **flags).until_leading()
    assert http_get(health, "/readyz") == (200, "ok\n")
    create_reconciled(make_endpoint, release.kept, until)
    assert (served(metrics, release.kept), served(metrics, release.deleted)) == (1, 0)
    assert "vllmendpoint_operator_leader 1.0" in metrics_text(metrics)

    def failures():
        return operator.logged("a watched namespace is not served", watched_namespace=release.deleted)

    until(failures, operator.text)

    api.kubectl("create", "namespace", release.deleted)
    release.install()
    until(lambda: served(metrics, release.deleted) == 1, operator.text, seconds=60)
    create_reconciled(make_endpoint, release.deleted, until)
    create_reconciled(make_endpoint, release.kept, until)
    assert len(failures()) == 1, operator.text()
    assert http_get(health, "/readyz") == (200, "ok\n")


def test_the_operator_resumes_a_namespace_when_its_permissions_are_restored(
    release, operate, make_endpoint, api, until
):
    metrics = free_port()
    flags = release.flags(metrics_port=metrics)
    operator = operate(release.ops, **flags).until_leading()
    endpoint = create_reconciled(make_endpoint, release.deleted, until)
    before = endpoint.child("Deployment", "-workers")
    listed = api.kubectl("get", "rolebindings", "-n", release.deleted, "-o", "name").split()
    roles = [name for name in listed if NAME in name]
    api.kubectl("delete", "-n", release.deleted, *roles)
    # Open watches continue without permissions, so the test restarts the operator.
    assert operator.stop() == 0
    operator = operate(release.ops, **flags).until_leading()
    assert served(metrics, release.deleted) == 0
    create_reconciled(make_endpoint, release.kept, until)
    offset = api.audit_offset()
    endpoint.patch(spec={"replicas": 2})
    release.install()
    until(
        lambda: endpoint.child("Deployment", "-workers")["spec"]["replicas"] == 2, operator.text, seconds=60
    )
    after = endpoint.child("Deployment", "-workers")
    assert after["spec"]["template"] == before["spec"]["template"]
    written = api.writes(offset, namespace=release.deleted)
    assert not [what for what in written if "controllerrevisions" in what], written


def test_a_standby_replica_with_permissions_is_ready(release, operate, api, until):
    health = free_port()
    flags = release.flags()
    operate(release.ops, identity="first", **flags).until_leading()
    second = operate(release.ops, identity="second", health_port=health, **flags)
    until(lambda: http_get(health, "/readyz")[0] == 200, second.text)
    assert "every watched kind is listed" not in second.text(), "it waits for the lease"


def test_a_standby_replica_without_permissions_is_not_ready(release, operate, api, until, tmp_path):
    """For example a replica of a rollout that also changes the service account."""
    api.kubectl("create", "serviceaccount", "bare", "-n", release.ops)
    role = f"{NAME}-leader-election"
    api.kubectl(
        *("create", "rolebinding", "bare", "-n", release.ops),
        *(f"--role={role}", f"--serviceaccount={release.ops}:bare"),
    )
    bare = kubeconfig_of(api.kubectl, release.ops, "bare", tmp_path / "bare")
    health = free_port()
    flags = release.flags()
    operate(release.ops, identity="first", **flags).until_leading()
    second = operate(release.ops, identity="second", health_port=health, **{**flags, "kubeconfig": bare})
    until(lambda: len(second.logged("a watched namespace is not served")) == 2, second.text)
    status, text = http_get(health, "/readyz")
    assert (status, "No watched namespace is reconciled yet." in text) == (503, True)
