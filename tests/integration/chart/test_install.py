"""The chart for a whole cluster: install, upgrade, uninstall, by both helms; what it renders is valid."""

import json
import re
from pathlib import Path

import pytest

from tests.integration.api_server import BIN
from tests.integration.chart.installed_chart import CHART, NAME, Cluster, endpoint, run
from tests.integration.chart.lifecycle import admitted, check_rights, check_workers, live
from tests.integration.polling import until


@pytest.mark.parametrize("program", ["helm", "helm3"])
def test_cluster_mode(
    cluster: Cluster, namespaces: tuple[str, str, str], program: str, tmp_path: Path
) -> None:
    ops, a, _ = namespaces

    def helm(*arguments: str) -> str:
        return cluster.helm(*arguments, "--namespace", ops, program=program)

    helm("install", NAME, str(CHART))
    admitted(cluster, ops)
    account = f"{ops}/{NAME}"
    assert cluster.can(a, account, "bind", f"clusterroles/{NAME}-worker")
    assert not cluster.can(a, account, "bind", "clusterroles/cluster-admin")
    if program == "helm":
        live(cluster, ops, a, tmp_path)
        check_rights(cluster, ops)
        check_workers(cluster, a)
    else:  # what it renders is the same
        cluster.kubectl("create", "-f", "-", text=endpoint(a))

    # Changed and back, the release's own DynamoWorkerMetadata CRD staying in it.
    helm("upgrade", NAME, str(CHART), "--set", "replicas=2")
    assert cluster.get("pdb", NAME, "-n", ops)
    helm("upgrade", NAME, str(CHART))
    assert "dynamoworkermetadatas.nvidia.com" in helm("get", "manifest", NAME)

    # Aggregation is the controller manager's work.
    cluster.kubectl("create", "rolebinding", "eve", "--clusterrole=edit", "--user=eve", "-n", a)
    until(lambda: cluster.can(a, "eve", "create", "vllmendpoints"), "edit of VLLMEndpoints")

    uid = cluster.get("vllmendpoint", "tiny", "-n", a)["metadata"]["uid"]
    helm("uninstall", NAME)
    assert not [name for name in cluster.names("clusterroles,clusterrolebindings") if NAME in name]
    assert cluster.get("vllmendpoint", "tiny", "-n", a)["metadata"]["uid"] == uid
    helm("install", NAME, str(CHART))
    assert cluster.get("vllmendpoint", "tiny", "-n", a)["metadata"]["uid"] == uid
    helm("uninstall", NAME)


def test_everything_at_once_is_valid(installed: Cluster) -> None:
    """All but what needs the Prometheus operator: the API server knows every field."""
    values = {
        "replicas": 2,
        "openshift": True,
        "commonLabels": {"team": "ml"},
        "networkPolicy": {
            "enabled": True,
            "metricsFrom": [{"namespaceSelector": {}}],
            "additionalIngress": [{"ports": [{"port": 15008}]}],
            "egress": [{}],
        },
        "extraEnv": [{"name": "A", "value": "b"}],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "crds": {"keep": False},
    }
    text = run(
        BIN / "helm", "template", "other", CHART, "--namespace", "b", "--values", "-", text=json.dumps(values)
    ).stdout
    # With its hook, the test pod.
    apply = ("apply", "--server-side", "--force-conflicts", "--validate=strict", "--dry-run=server")
    out = installed.kubectl(*apply, "-f", "-", text=text)
    assert f"pod/other-{NAME}-test" in out


def test_dynamo_crd_of_another_is_left_alone(cluster: Cluster, namespaces: tuple[str, str, str]) -> None:
    ops, _, _ = namespaces
    crds = cluster.helm("template", "x", str(CHART), "--show-only", "templates/crds.yaml")
    (theirs,) = [
        doc for doc in re.split("^---$", crds, flags=re.MULTILINE) if "kind: DynamoWorkerMetadata" in doc
    ]
    cluster.kubectl("apply", "--server-side", "-f", "-", text=theirs)
    cluster.helm("install", NAME, str(CHART), "--namespace", ops, "--set", "crds.keep=false")
    assert "dynamoworkermetadatas.nvidia.com" not in cluster.helm("get", "manifest", NAME, "--namespace", ops)
    cluster.helm("uninstall", NAME, "--namespace", ops)
    crd = "customresourcedefinition.apiextensions.k8s.io"
    # Helm asks for the deletion; the API server takes a definition away once its resources are gone.
    until(
        lambda: f"{crd}/vllmendpoints.serving.vllmendpoint.dev" not in cluster.names("crd"),
        "our definition gone",
    )
    assert f"{crd}/dynamoworkermetadatas.nvidia.com" in cluster.names("crd")


@pytest.mark.parametrize("program", ["helm", "helm3"])
def test_names_that_yaml_reads_as_numbers(cluster: Cluster, program: str) -> None:
    for release, namespace in (("2024", "123456"), ("true", "1e3"), ("1.5", "null")):
        cluster.kubectl("create", "namespace", namespace)
        # The definitions are the first release's.
        where = (
            "--namespace",
            namespace,
            "--set",
            f"crds.enabled={'true' if release == '2024' else 'false'}",
        )
        cluster.helm("install", release, str(CHART), *where, program=program)
        cluster.helm("upgrade", release, str(CHART), *where, "--set", "replicas=2", program=program)
        (deployment,) = cluster.get("deployments", "-n", namespace)["items"]
        assert deployment["spec"]["replicas"] == 2
        (service,) = cluster.get("services", "-n", namespace)["items"]
        assert service["spec"]["selector"]["app.kubernetes.io/instance"] == release
        cluster.helm("uninstall", release, *where[:2], program=program)
