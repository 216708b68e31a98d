"""The chart for some namespaces, installed by an owner of the namespaces without cluster-wide permissions."""

from pathlib import Path

import pytest

from tests.integration.chart.installed_chart import CHART, NAME, Cluster, endpoint, readme_object
from tests.integration.chart.lifecycle import (
    check_permissions,
    check_pod_is_admitted,
    check_workers,
    run_lifecycle,
)
from tests.integration.polling import until

OWNER = "namespace-owner"
"""A user with a role in some namespaces, and no cluster-wide permissions."""


def bind_owner(cluster: Cluster, role: str, names: tuple[str, ...]) -> None:
    for name in names:
        cluster.kubectl(
            "create", "rolebinding", "owner", f"--clusterrole={role}", f"--user={OWNER}", "-n", name
        )


@pytest.mark.parametrize(("role", "program"), [("admin", "helm"), ("cluster-admin", "helm3")])
def test_an_owner_of_namespaces_installs_the_chart_in_namespaced_mode(
    cluster: Cluster, namespaces: tuple[str, str, str], role: str, program: str, tmp_path: Path
) -> None:
    ops, a, b = namespaces
    crds = cluster.helm("template", NAME, str(CHART), "--show-only", "templates/crds.yaml")
    cluster.kubectl("apply", "--server-side", "-f", "-", text=crds)
    if role == "admin":
        cluster.kubectl("apply", "-f", "-", text=readme_object("ClusterRole"))
    bind_owner(cluster, role, namespaces)
    until(lambda: cluster.can(a, OWNER, "bind", f"roles/{NAME}-worker"), "aggregation")
    assert not cluster.can("default", OWNER, "get", "customresourcedefinitions")
    before = cluster.cluster_scoped()

    def helm(*arguments: str) -> str:
        return cluster.helm(*arguments, "--namespace", ops, "--kube-as-user", OWNER, program=program)

    values = ("--set", f"watchNamespaces={{{a},{b}}}", "--set", "crds.enabled=false")
    helm("install", NAME, str(CHART), *values)
    assert cluster.cluster_scoped() == before
    check_pod_is_admitted(cluster, ops)
    account = f"{ops}/{NAME}"
    for namespace in (a, b):
        assert cluster.can(namespace, account, "bind", f"roles/{NAME}-worker")
        assert cluster.can(namespace, account, "list", "vllmendpoints")
    for namespace in ("default", ops):
        assert not cluster.can(namespace, account, "list", "vllmendpoints")
    if role == "admin":
        run_lifecycle(cluster, ops, b, tmp_path)
        check_permissions(cluster, ops, {ops, a, b})
        check_workers(cluster, b)
    else:
        cluster.kubectl("create", "-f", "-", text=endpoint(b))
    helm("upgrade", NAME, str(CHART), *values, "--set", "replicas=2")
    helm("uninstall", NAME)
    assert cluster.cluster_scoped() == before
    assert not [name for name in cluster.names("roles", "-n", a) if NAME in name]
    assert cluster.get("vllmendpoint", "tiny", "-n", b)
