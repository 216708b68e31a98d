"""The chart without a cluster: lint, schema of the values, documents, CRDs and notes."""

import json
import re
from typing import Any

import pytest
import yaml

from tests.unit.rendered_chart import (
    ALL_SET,
    CHART,
    DYNAMO,
    ENDPOINTS,
    HELMS,
    NAME,
    VALUES,
    Object,
    container,
    env,
    kinds_of,
    leaves,
    one,
    run_helm,
    template,
)
from vllmendpoint_api import VLLMEndpointSpec, custom_resource_definition


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize("values", [{}, ALL_SET], ids=["defaults", "all-set"])
def test_the_chart_passes_helm_lint(program: str, values: Object) -> None:
    run_helm("lint", "--strict", str(CHART), program=program, values=values)


@pytest.mark.parametrize("values", [{}, ALL_SET], ids=["defaults", "all-set"])
def test_both_versions_of_helm_render_the_same(values: Object) -> None:
    assert template(values) == template(values, program="helm3")


@pytest.mark.parametrize(
    "wrong",
    [
        {"replica": 1},
        {"image": {"name": "x"}},
        {"crds": {"dynamo": "yes"}},
        {"watchNamespaces": ["a", "a"]},
        {"watchNamespaces": ["a,b"]},
        {"image": {"digest": "abc"}},
        {"leaseSeconds": 1},
        {"admissionPolicy": {"podRights": ["worker.env']"]}},
    ],
    ids=json.dumps,
)
def test_the_schema_rejects_invalid_values(wrong: Object) -> None:
    with pytest.raises(AssertionError, match="values don't meet the specifications of the schema"):
        template(wrong)


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize("value", [8, "8", 0])
def test_a_renamed_value_is_rejected_with_its_new_name(program: str, value: Any) -> None:
    message = "concurrency: The value was renamed. Use maxConcurrentReconciles instead."
    with pytest.raises(AssertionError, match=re.escape(message)):
        run_helm("template", "r", str(CHART), program=program, values={"concurrency": value})


RENAMED = {"concurrency"}


def test_the_schema_has_exactly_the_values_of_the_chart() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def resolved(node: Object) -> Object:
        while "$ref" in node:
            at: Object = schema
            for part in node["$ref"].removeprefix("#/").split("/"):
                at = at[part]
            node = at
        return node

    def check(node: Object, value: Any, path: str) -> None:
        node = resolved(node)
        if "properties" in node and isinstance(value, dict):
            if path != "resources":  # claims have no default
                assert node["properties"].keys() - (set() if path else RENAMED) == value.keys(), path
            assert path == "global" or node["additionalProperties"] is False, path
            for name, item in value.items():
                check(node["properties"][name], item, f"{path}.{name}".strip("."))

    check(schema, VALUES, "")


def test_the_readme_documents_every_value_with_its_default() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \| (.*?) \| (.*?) ?\|$", (CHART / "README.md").read_text(), re.MULTILINE
    )
    documented = {name: default for name, default, _ in rows}
    contexts = ("podSecurityContext", "securityContext")
    expected = {
        name: f"`{json.dumps(value)}`"
        for name, value in leaves(VALUES).items()
        if not name.startswith(tuple(f"{context}." for context in contexts))
    }
    assert {k: v for k, v in documented.items() if k not in contexts} == expected
    assert set(contexts) <= documented.keys()


def test_all_set_changes_every_value() -> None:
    in_other_tests = {"global.imageRegistry", "crds.enabled", "serviceAccount.create"}
    all_set = leaves(ALL_SET)
    for leaf, default in leaves(VALUES).items():
        if not leaf.startswith(("podSecurityContext.", "securityContext.")):
            # An object that is empty by default can have any fields.
            found = {k: v for k, v in all_set.items() if k == leaf or k.startswith(f"{leaf}.")}
            assert found not in ({}, {leaf: default}) or leaf in in_other_tests, leaf


def test_the_annotations_list_the_images_and_crds_of_the_chart() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    annotations = chart["annotations"]
    images = {item["name"]: item["image"] for item in yaml.safe_load(annotations["artifacthub.io/images"])}
    docs = template()
    assert images == {
        "operator": container(docs)["image"],
        "worker": env(docs)["VLLMENDPOINT_WORKER_IMAGE"],
        "frontend": env(docs)["VLLMENDPOINT_FRONTEND_IMAGE"],
    }
    (crd,) = yaml.safe_load(annotations["artifacthub.io/crds"])
    assert crd["name"] == ENDPOINTS
    assert chart["type"] == "application"


def test_a_cluster_before_kubernetes_1_30_is_rejected() -> None:
    with pytest.raises(AssertionError, match="kubeVersion"):
        run_helm("template", str(CHART), "--kube-version", "1.29.9")
    run_helm("template", str(CHART), "--kube-version", "1.30.0-gke.1")


def test_the_crd_of_the_chart_is_the_generated_one() -> None:
    generated = custom_resource_definition()
    crd = one(template(), "CustomResourceDefinition", ENDPOINTS)
    assert crd["spec"] == generated["spec"], "run `make generate`"


def test_crds_are_kept_or_left_out_as_the_values_state() -> None:
    for keep in (True, False):
        for name in (ENDPOINTS, DYNAMO):
            metadata = one(template({"crds": {"keep": keep}}), "CustomResourceDefinition", name)["metadata"]
            expected = {"helm.sh/resource-policy": "keep"} if keep else {}
            assert metadata.get("annotations", {}) == expected
    assert "CustomResourceDefinition" not in kinds_of(template({"crds": {"enabled": False, "dynamo": True}}))
    one(template({"crds": {"dynamo": False}}), "CustomResourceDefinition", ENDPOINTS)


def test_the_dynamo_crd_accepts_any_data() -> None:
    crd = one(template(), "CustomResourceDefinition", DYNAMO)["spec"]
    assert crd["scope"] == "Namespaced"
    assert crd["names"]["shortNames"] == ["dwm"]
    (version,) = crd["versions"]
    assert version["name"] == "v1alpha1"
    data = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["data"]
    assert data["x-kubernetes-preserve-unknown-fields"] is True


def test_the_notes_contain_a_valid_endpoint() -> None:
    for values, namespace in (({}, "default"), ({"watchNamespaces": ["a", "b"]}, "a")):
        text = run_helm("install", NAME, str(CHART), "--dry-run=client", values=values)
        notes = text.split("NOTES:", 1)[1]
        (block,) = re.findall(r"<<EOF\n(.*?)\n  EOF", notes, re.DOTALL)
        endpoint = yaml.safe_load(block)
        VLLMEndpointSpec.model_validate(endpoint["spec"])
        assert endpoint["metadata"]["namespace"] == namespace
        assert f"kubectl -n {namespace} wait --for=condition=Ready" in notes
