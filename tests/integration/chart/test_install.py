"""The chart for a whole cluster: install, upgrade and uninstall with Helm 3 and 4; its objects are valid."""

import json
import re
from pathlib import Path

import pytest

from tests.integration.chart.installed_chart import CHART, NAME, Cluster, endpoint, run
from tests.integration.chart.lifecycle import (
    check_permissions,
    check_pod_is_admitted,
    check_workers,
    run_lifecycle,
)
from tests.integration.polling import until
from tests.project_cache import BIN


@pytest.mark.parametrize("program", ["helm", "helm3"])
def test_the_chart_is_installed_upgraded_and_uninstalled_for_the_cluster(
    cluster: Cluster, namespaces: tuple[str, str, str], program: str, tmp_path: Path
) -> None:
    ops, a, _ = namespaces

    def helm(*arguments: str) -> str:
        return cluster.helm(*arguments, "--namespace", ops, program=program)

    helm("install", NAME, str(CHART))
    check_pod_is_admitted(cluster, ops)
    account = f"{ops}/{NAME}"
    assert cluster.can(a, account, "bind", f"clusterroles/{NAME}-worker")
    assert not cluster.can(a, account, "bind", "clusterroles/cluster-admin")
    if program == "helm":
        run_lifecycle(cluster, ops, a, tmp_path)
        check_permissions(cluster, ops)
        check_workers(cluster, a)
    else:  # both programs render the same
        cluster.kubectl("create", "-f", "-", text=endpoint(a))

    # An upgrade and back; the DynamoWorkerMetadata CRD stays in the release.
    helm("upgrade", NAME, str(CHART), "--set", "replicas=2")
    assert cluster.get("pdb", NAME, "-n", ops)
    helm("upgrade", NAME, str(CHART))
    assert "dynamoworkermetadatas.nvidia.com" in helm("get", "manifest", NAME)

    # The controller manager aggregates the ClusterRoles.
    cluster.kubectl("create", "rolebinding", "eve", "--clusterrole=edit", "--user=eve", "-n", a)
    until(lambda: cluster.can(a, "eve", "create", "vllmendpoints"), "edit of VLLMEndpoints")

    uid = cluster.get("vllmendpoint", "tiny", "-n", a)["metadata"]["uid"]
    helm("uninstall", NAME)
    assert not [name for name in cluster.names("clusterroles,clusterrolebindings") if NAME in name]
    assert cluster.get("vllmendpoint", "tiny", "-n", a)["metadata"]["uid"] == uid
    helm("install", NAME, str(CHART))
    assert cluster.get("vllmendpoint", "tiny", "-n", a)["metadata"]["uid"] == uid
    helm("uninstall", NAME)


def test_a_release_with_all_values_is_valid(installed: Cluster) -> None:
    """All objects but those of the Prometheus operator: the API server knows every field."""
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
    # Includes the hook, the test pod.
    apply = ("apply", "--server-side", "--force-conflicts", "--validate=strict", "--dry-run=server")
    out = installed.kubectl(*apply, "-f", "-", text=text)
    assert f"pod/other-{NAME}-test" in out


def test_an_existing_dynamo_crd_is_not_part_of_the_release(
    cluster: Cluster, namespaces: tuple[str, str, str]
) -> None:
    ops, _, _ = namespaces
    crds = cluster.helm("template", "x", str(CHART), "--show-only", "templates/crds.yaml")
    (existing,) = [
        doc for doc in re.split("^---$", crds, flags=re.MULTILINE) if "kind: DynamoWorkerMetadata" in doc
    ]
    cluster.kubectl("apply", "--server-side", "-f", "-", text=existing)
    cluster.helm("install", NAME, str(CHART), "--namespace", ops, "--set", "crds.keep=false")
    assert "dynamoworkermetadatas.nvidia.com" not in cluster.helm("get", "manifest", NAME, "--namespace", ops)
    cluster.helm("uninstall", NAME, "--namespace", ops)
    crd = "customresourcedefinition.apiextensions.k8s.io"
    # Helm requests the deletion; the API server deletes a definition after its resources.
    until(
        lambda: f"{crd}/vllmendpoints.serving.vllmendpoint.dev" not in cluster.names("crd"),
        "the VLLMEndpoint CRD is deleted",
    )
    assert f"{crd}/dynamoworkermetadatas.nvidia.com" in cluster.names("crd")


@pytest.mark.parametrize("program", ["helm", "helm3"])
def test_names_that_are_numbers_in_yaml_stay_strings(cluster: Cluster, program: str) -> None:
    for release, namespace in (("2024", "123456"), ("true", "1e3"), ("1.5", "null")):
        cluster.kubectl("create", "namespace", namespace)
        # The CRDs belong to the first release.
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
