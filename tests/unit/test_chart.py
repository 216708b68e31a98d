"""The chart as helm renders it, without a cluster; both helms, every value empty and set."""

import copy
import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllmendpoint_api import VLLMEndpointSpec, custom_resource_definition
from vllmendpoint_operator import kinds
from vllmendpoint_operator.kinds import Kind
from vllmendpoint_operator.metrics import Metrics
from vllmendpoint_operator.settings import Settings

Object = dict[str, Any]

CHART = Path(__file__).parents[2] / "charts" / "vllmendpoint-operator"
CACHE = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
BIN = Path(os.environ.get("VLLMENDPOINT_CACHE") or Path(CACHE) / "vllmendpoint") / "bin"
HELMS = ("helm", "helm3")
VALUES: Object = yaml.safe_load((CHART / "values.yaml").read_text())
NAME = "vllmendpoint-operator"
DYNAMO = "dynamoworkermetadatas.nvidia.com"
ENDPOINTS = "vllmendpoints.serving.vllmendpoint.dev"
CLUSTER_SCOPED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}

ALL_SET: Object = {
    "nameOverride": "other",
    "fullnameOverride": "full",
    "commonLabels": {"team": "ml", "app.kubernetes.io/managed-by": "never"},
    "global": {"imageRegistry": "", "imagePullSecrets": [{"name": "global-pull"}]},
    "image": {
        "registry": "r.example",
        "repository": "a/operator",
        "tag": "t1",
        "digest": "sha256:" + "0" * 64,
        "pullPolicy": "Always",
    },
    "imagePullSecrets": [{"name": "pull"}],
    "worker": {
        "image": {
            "registry": "w.example",
            "repository": "a/worker",
            "tag": "t2",
            "digest": "sha256:" + "1" * 64,
        }
    },
    "watchNamespaces": ["a", "b"],
    "replicas": 3,
    "leaseSeconds": 20,
    "concurrency": 4,
    "resyncSeconds": 60,
    "log": {"level": "DEBUG", "format": "text"},
    "crds": {"enabled": True, "keep": False, "dynamo": True},
    "serviceAccount": {"create": True, "name": "account", "annotations": {"on-account": "1"}},
    "rbac": {"aggregateRoles": False},
    "admissionPolicy": {"enabled": False, "podRights": ["engine.args"]},
    "extraArgs": ["--report-port=9191"],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
    "extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-extra"}},
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: text}",
    ],
    "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"memory": "2Gi", "cpu": "2"}},
    "podLabels": {"on-pod": "1", "app.kubernetes.io/name": "never"},
    "podAnnotations": {"on-pod-too": "1"},
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "podSecurityContext": {"runAsNonRoot": True, "fsGroup": 7},
    "securityContext": {"privileged": False},
    "service": {"annotations": {"on-service": "1"}},
    "podMonitor": {"enabled": True, "interval": "7s", "labels": {"pm": "1"}},
    "serviceMonitor": {"enabled": True, "interval": "8s", "labels": {"sm": "1"}},
    "prometheusRule": {"enabled": True, "labels": {"rule": "1"}},
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"namespaceSelector": {}}],
        "egress": [{"ports": [{"port": 443}]}],
    },
}
"""Every value, set to something that is not its default."""


def run_helm(*arguments: str, program: str = "helm", values: Object | None = None) -> str:
    binary = BIN / program
    if not binary.exists():
        pytest.skip(f"no {program}: hack/tools.sh fetches it")
    done = subprocess.run(
        [binary, *arguments, *(["--values", "-"] if values else [])],
        input=json.dumps(values) if values else "",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AssertionError(done.stderr + done.stdout)
    return done.stdout


def parse(text: str) -> list[Object]:
    # The C loader, where there is one: the CRD is long.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [doc for doc in yaml.load_all(text, loader) if doc]


@cache
def _template(program: str, release: str, values: str) -> list[Object]:
    return parse(
        run_helm(
            "template", release, str(CHART), "--namespace", "ops", program=program, values=json.loads(values)
        )
    )


def template(values: Object | None = None, *, program: str = "helm", release: str = NAME) -> list[Object]:
    return copy.deepcopy(_template(program, release, json.dumps(values or {})))


def one(docs: list[Object], kind: str, name: str | None = None, namespace: str | None = None) -> Object:
    (found,) = [
        doc
        for doc in docs
        if doc["kind"] == kind
        and name in (None, doc["metadata"]["name"])
        and namespace in (None, doc["metadata"].get("namespace"))
    ]
    return found


def kinds_of(docs: list[Object]) -> set[str]:
    return {doc["kind"] for doc in docs}


def container(docs: list[Object]) -> Object:
    found: Object = one(docs, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return found


def env(docs: list[Object]) -> dict[str, str]:
    return {item["name"]: item.get("value", "a-pod") for item in container(docs)["env"]}


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Values by dotted name; an empty object is a leaf."""
    if not isinstance(value, dict) or not value:
        return {path: value}
    found: dict[str, Any] = {}
    for name, item in value.items():
        found |= leaves(item, f"{path}.{name}".strip("."))
    return found


# Lint, schema, documentation


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize("values", [{}, ALL_SET], ids=["defaults", "all-set"])
def test_lint(program: str, values: Object) -> None:
    run_helm("lint", "--strict", str(CHART), program=program, values=values)


@pytest.mark.parametrize("values", [{}, ALL_SET], ids=["defaults", "all-set"])
def test_both_helms_render_alike(values: Object) -> None:
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
def test_schema_refuses(wrong: Object) -> None:
    with pytest.raises(AssertionError, match="values don't meet the specifications of the schema"):
        template(wrong)


def test_schema_knows_every_value() -> None:
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
                assert node["properties"].keys() == value.keys(), path
            assert path == "global" or node["additionalProperties"] is False, path
            for name, item in value.items():
                check(node["properties"][name], item, f"{path}.{name}".strip("."))

    check(schema, VALUES, "")


def test_readme_documents_every_value() -> None:
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


def test_every_value_is_set_in_these_tests() -> None:
    elsewhere = {"global.imageRegistry", "crds.enabled", "serviceAccount.create"}
    ours = leaves(ALL_SET)
    for leaf, default in leaves(VALUES).items():
        if not leaf.startswith(("podSecurityContext.", "securityContext.")):
            # An object that is empty by default may hold anything.
            found = {k: v for k, v in ours.items() if k == leaf or k.startswith(f"{leaf}.")}
            assert found not in ({}, {leaf: default}) or leaf in elsewhere, leaf


def test_chart_says_what_it_installs() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    annotations = chart["annotations"]
    images = {item["name"]: item["image"] for item in yaml.safe_load(annotations["artifacthub.io/images"])}
    docs = template()
    assert images == {"operator": container(docs)["image"], "worker": env(docs)["VLLMENDPOINT_WORKER_IMAGE"]}
    (crd,) = yaml.safe_load(annotations["artifacthub.io/crds"])
    assert crd["name"] == ENDPOINTS
    assert chart["type"] == "application"


def test_too_old_a_cluster_is_refused() -> None:
    with pytest.raises(AssertionError, match="kubeVersion"):
        run_helm("template", str(CHART), "--kube-version", "1.29.9")
    run_helm("template", str(CHART), "--kube-version", "1.30.0-gke.1")


# CRDs


def test_crd_is_the_generated_one() -> None:
    generated = custom_resource_definition()
    crd = one(template(), "CustomResourceDefinition", ENDPOINTS)
    assert crd["spec"] == generated["spec"], "run `make generate`"
    for file in (CHART / "files" / "crds").iterdir():
        assert file.stat().st_size < 64 * 1024


def test_crds_keep_and_enabled() -> None:
    for keep in (True, False):
        for name in (ENDPOINTS, DYNAMO):
            metadata = one(template({"crds": {"keep": keep}}), "CustomResourceDefinition", name)["metadata"]
            expected = {"helm.sh/resource-policy": "keep"} if keep else {}
            assert metadata.get("annotations", {}) == expected
    assert "CustomResourceDefinition" not in kinds_of(template({"crds": {"enabled": False, "dynamo": True}}))
    one(template({"crds": {"dynamo": False}}), "CustomResourceDefinition", ENDPOINTS)


def test_dynamo_crd_takes_any_data() -> None:
    crd = one(template(), "CustomResourceDefinition", DYNAMO)["spec"]
    assert crd["scope"] == "Namespaced"
    assert crd["names"]["shortNames"] == ["dwm"]
    (version,) = crd["versions"]
    assert version["name"] == "v1alpha1"
    data = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["data"]
    assert data["x-kubernetes-preserve-unknown-fields"] is True


# Access

CHILD = {"get", "list", "watch", "create", "patch", "delete"}
WATCHED = {"list", "watch"}


def granted(role: Object) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


def resource(kind: Kind, subresource: str = "") -> tuple[str, str]:
    return kind.group, kind.plural + subresource


@pytest.mark.parametrize(
    ("values", "kind", "roles"),
    [({}, "ClusterRole", "clusterroles"), ({"watchNamespaces": ["a"]}, "Role", "roles")],
)
def test_operator_may_what_it_does_and_no_more(values: Object, kind: str, roles: str) -> None:
    role = one(template(values), kind, NAME)
    expected = {
        **{resource(child): CHILD for child in kinds.MANAGED},
        **{resource(seen): WATCHED for seen in (kinds.ENDPOINT, kinds.REPLICA_SET)},
        resource(kinds.POD): {*WATCHED, "patch"},
        resource(kinds.EVENT): {"create"},
        resource(kinds.ENDPOINT, "/status"): {"patch"},
        resource(kinds.ENDPOINT, "/finalizers"): {"update"},
        ("rbac.authorization.k8s.io", roles): {"bind"},
    }
    assert granted(role) == expected
    (bind,) = [rule for rule in role["rules"] if "bind" in rule["verbs"]]
    assert bind["resourceNames"] == [f"{NAME}-worker"]


def test_lease_only_in_its_own_namespace() -> None:
    role = one(template(), "Role")
    assert role["metadata"]["namespace"] == "ops"
    assert granted(role) == {resource(kinds.LEASE): {"get", "create", "update"}}
    assert [rule.get("resourceNames") for rule in role["rules"]] == [None, [NAME]]


def test_no_role_reads_secrets_or_has_wildcards() -> None:
    for values in ({}, ALL_SET):
        for doc in template(values):
            if doc["kind"] in ("Role", "ClusterRole"):
                text = json.dumps(doc["rules"])
                assert "secrets" not in text
                assert '"*"' not in text


def test_namespaced_mode_makes_nothing_cluster_scoped() -> None:
    values = {"watchNamespaces": ["a", "b"], "crds": {"enabled": False}}
    docs = template(values)
    assert not kinds_of(docs) & {*CLUSTER_SCOPED, "CustomResourceDefinition"}
    for doc in docs:
        assert doc["metadata"]["namespace"] in ("ops", "a", "b"), doc
    for namespace in ("a", "b"):
        names = {
            (doc["kind"], doc["metadata"]["name"])
            for doc in docs
            if doc["metadata"]["namespace"] == namespace
        }
        assert names == {("Role", NAME), ("RoleBinding", NAME), ("Role", f"{NAME}-worker")}
        (subject,) = one(docs, "RoleBinding", NAME, namespace)["subjects"]
        assert subject == {"kind": "ServiceAccount", "name": NAME, "namespace": "ops"}
    every = {**values, "rbac": {"aggregateRoles": True}, "admissionPolicy": {"enabled": True}}
    assert not kinds_of(template({**ALL_SET, **every})) & CLUSTER_SCOPED


def test_the_rest_is_the_same_in_both_modes() -> None:
    cluster, namespaced = template(), template({"watchNamespaces": ["a"]})
    worker = f"{NAME}-worker"
    found = granted(one(cluster, "ClusterRole", worker))
    assert found.pop(("serving.vllmendpoint.dev", "workers")) == {"run"}, "what the policy knows a worker by"
    assert found == granted(one(namespaced, "Role", worker))
    assert found == {
        ("", "endpoints"): {"get", "list", "watch"},
        ("", "pods"): {"get", "list", "watch"},
        ("discovery.k8s.io", "endpointslices"): {"get", "list", "watch"},
        ("nvidia.com", "dynamoworkermetadatas"): {
            "create",
            "get",
            "list",
            "watch",
            "update",
            "patch",
            "delete",
        },
    }


def test_aggregated_roles() -> None:
    docs = template()
    for role in ("view", "edit", "admin"):
        labels = one(docs, "ClusterRole", f"{NAME}-{role}")["metadata"]["labels"]
        assert labels[f"rbac.authorization.k8s.io/aggregate-to-{role}"] == "true"
    without = template({"rbac": {"aggregateRoles": False}, "admissionPolicy": {"enabled": False}})
    names = {doc["metadata"]["name"] for doc in without if doc["kind"] in CLUSTER_SCOPED}
    assert names == {NAME, f"{NAME}-worker"}


def spec_has(path: str) -> bool:
    model: Any = VLLMEndpointSpec
    for step in path.split("."):
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if step not in fields:
            return False
        kinds_ = [fields[step].annotation, *getattr(fields[step].annotation, "__args__", ())]
        model = next((kind for kind in kinds_ if hasattr(kind, "model_fields")), None)
    return True


def test_fields_that_take_the_right_to_make_pods() -> None:
    docs = template()
    policy = one(docs, "ValidatingAdmissionPolicy", f"{NAME}-pod-rights")
    told = [validation["message"].split(":")[0] for validation in policy["spec"]["validations"]]
    assert told == VALUES["admissionPolicy"]["podRights"]
    assert all(spec_has(path) for path in told)
    assert not spec_has("worker.nothing")
    first = policy["spec"]["validations"][0]["expression"]
    assert "!object.spec.?worker.?serviceAccountName.hasValue()" in first
    none = kinds_of(template({"admissionPolicy": {"podRights": []}}))
    assert "ValidatingAdmissionPolicy" in none
    names = {d["metadata"]["name"] for d in template({"admissionPolicy": {"podRights": []}})}
    assert f"{NAME}-pod-rights" not in names


# The operator's configuration


@pytest.mark.parametrize("values", [{}, ALL_SET], ids=["defaults", "all-set"])
def test_environment_is_the_operators(values: Object, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = template(values)
    given = env(docs)
    for name, value in given.items():
        if name.startswith("VLLMENDPOINT_"):
            assert name.removeprefix("VLLMENDPOINT_").lower() in Settings.model_fields
            monkeypatch.setenv(name, value)
    settings = Settings(_cli_parse_args=[str(item) for item in container(docs).get("args", [])])
    pod = one(docs, "Deployment")["spec"]["template"]["metadata"]["labels"]
    options = settings.options
    assert options.operator_labels.items() <= pod.items()
    assert one(docs, "Deployment")["spec"]["selector"]["matchLabels"] == options.operator_labels
    assert options.operator_namespace == "ops"
    assert settings.scopes == tuple(values.get("watchNamespaces", ()))
    for namespace in settings.scopes or (None,):
        one(docs, options.role_kind, options.role_name, namespace)
    lease = next(rule for rule in one(docs, "Role", namespace="ops")["rules"] if "resourceNames" in rule)
    assert lease["resourceNames"] == [settings.lease_name]
    assert settings.identity == "a-pod"


def test_images() -> None:
    digest = "sha256:" + "0" * 64

    def images(values: Object) -> tuple[str, str]:
        docs = template(values)
        test = one(docs, "Pod")["spec"]["containers"][0]["image"]
        assert test == container(docs)["image"]
        return test, env(docs)["VLLMENDPOINT_WORKER_IMAGE"]

    assert images({}) == ("ghcr.io/vllmendpoint/operator:0.1.0", "ghcr.io/vllmendpoint/worker:0.1.0")
    mirrored = {"global": {"imageRegistry": "mirror:5000"}, "image": {"tag": "x"}}
    assert images(mirrored) == (
        "mirror:5000/vllmendpoint/operator:x",
        "mirror:5000/vllmendpoint/worker:0.1.0",
    )
    bare = {"image": {"registry": "", "digest": digest}, "worker": {"image": {"digest": digest}}}
    assert images(bare) == (f"vllmendpoint/operator@{digest}", f"ghcr.io/vllmendpoint/worker@{digest}")


# The pod


def test_restricted_pods() -> None:
    docs = template()
    for pod in (one(docs, "Deployment")["spec"]["template"]["spec"], one(docs, "Pod")["spec"]):
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        for item in pod["containers"]:
            assert item["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container(docs).keys()


def test_everything_set_arrives() -> None:
    docs = template(ALL_SET)
    deployment = one(docs, "Deployment")
    pod = deployment["spec"]["template"]
    spec = pod["spec"]
    main = container(docs)
    values = ALL_SET
    assert deployment["metadata"]["name"] == "full"
    assert deployment["spec"]["replicas"] == 3
    assert main["image"] == f"r.example/a/operator@{values['image']['digest']}"
    assert main["imagePullPolicy"] == "Always"
    worker = values["worker"]["image"]
    assert env(docs)["VLLMENDPOINT_WORKER_IMAGE"] == f"w.example/a/worker@{worker['digest']}"
    assert spec["imagePullSecrets"] == [{"name": "global-pull"}, {"name": "pull"}]
    assert main["args"] == values["extraArgs"]
    assert main["env"][-1:] == values["extraEnv"]
    assert main["volumeMounts"][1:] == values["extraVolumeMounts"]
    assert spec["volumes"][1:] == values["extraVolumes"]
    assert main["resources"] == values["resources"]
    assert pod["metadata"]["labels"]["on-pod"] == "1"
    assert pod["metadata"]["labels"]["team"] == "ml"
    assert pod["metadata"]["labels"]["app.kubernetes.io/name"] == "other"
    assert pod["metadata"]["annotations"]["on-pod-too"] == "1"
    for name in ("priorityClassName", "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints"):
        assert spec[name] == values[name]
    assert values["podSecurityContext"].items() <= spec["securityContext"].items()
    assert values["securityContext"].items() <= main["securityContext"].items()
    assert spec["serviceAccountName"] == "account"
    assert one(docs, "ServiceAccount")["metadata"]["annotations"] == {"on-account": "1"}
    assert one(docs, "Service")["metadata"]["annotations"] == {"on-service": "1"}
    assert one(docs, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    extra = {doc["metadata"]["name"] for doc in docs if doc["kind"] == "ConfigMap"}
    assert extra == {f"{NAME}-extra", "text"}
    given = env(docs)
    assert given["VLLMENDPOINT_NAMESPACES"] == "a,b"
    assert given["VLLMENDPOINT_LEASE_SECONDS"] == "20"
    assert given["VLLMENDPOINT_WORKERS"] == "4"
    assert given["VLLMENDPOINT_RESYNC_SECONDS"] == "60"
    assert (given["VLLMENDPOINT_LOG_LEVEL"], given["VLLMENDPOINT_LOG_FORMAT"]) == ("DEBUG", "text")
    for kind, field, label in (
        ("PodMonitor", "podMetricsEndpoints", "pm"),
        ("ServiceMonitor", "endpoints", "sm"),
    ):
        monitor = one(docs, kind)
        (scraped,) = monitor["spec"][field]
        assert scraped["honorLabels"] is True
        assert scraped["interval"] == ("7s" if kind == "PodMonitor" else "8s")
        assert monitor["metadata"]["labels"][label] == "1"
    assert one(docs, "PrometheusRule")["metadata"]["labels"]["rule"] == "1"
    policy = one(docs, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"][0]["from"] == values["networkPolicy"]["metricsFrom"]
    assert policy["egress"] == values["networkPolicy"]["egress"]
    for doc in docs:
        if doc["kind"] != "ConfigMap":
            labels = doc["metadata"]["labels"]
            assert labels["team"] == "ml", doc["kind"]
            assert labels["app.kubernetes.io/managed-by"] == "Helm"


def test_everything_empty_is_left_out() -> None:
    # Null takes a default away; so it must do no harm where the default is empty already.
    empty = [name for name, value in VALUES.items() if value in ({}, [], "")]
    empty += ["resources", "podSecurityContext", "securityContext"]
    docs = template(
        {**dict.fromkeys(empty), "networkPolicy": {"enabled": True}, "serviceAccount": {"create": False}}
    )
    spec = one(docs, "Deployment")["spec"]["template"]["spec"]
    assert spec.keys() == {
        "serviceAccountName",
        "automountServiceAccountToken",
        "enableServiceLinks",
        "containers",
        "volumes",
    }
    assert container(docs).keys() == {
        "name",
        "image",
        "imagePullPolicy",
        "env",
        "ports",
        "startupProbe",
        "livenessProbe",
        "readinessProbe",
        "volumeMounts",
    }
    assert spec["serviceAccountName"] == "default"
    policy = one(docs, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert "from" not in policy["ingress"][0]
    assert "egress" not in policy
    assert "annotations" not in one(docs, "Service")["metadata"]
    off = {"ServiceAccount", "PodDisruptionBudget", "PodMonitor", "ServiceMonitor", "PrometheusRule"}
    assert not kinds_of(docs) & off
    assert "NetworkPolicy" not in kinds_of(template())


def test_names_fit_whatever_the_release_is_called() -> None:
    for doc in template(release="r" * 53):
        if doc["kind"] in ("Deployment", "Pod", "Service"):
            assert len(doc["metadata"]["name"]) <= 63
    assert one(template(release="op"), "Deployment")["metadata"]["name"] == f"op-{NAME}"


def test_the_test_pod_is_no_operator() -> None:
    docs = template()
    selector = one(docs, "Service")["spec"]["selector"]
    pod = one(docs, "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert not selector.items() <= pod["metadata"]["labels"].items()
    compile(pod["spec"]["containers"][0]["args"][0], "test", "exec")


# Alerts and notes


def test_alerts_use_metrics_that_exist() -> None:
    groups = one(template({"prometheusRule": {"enabled": True}}), "PrometheusRule")["spec"]["groups"]
    exported = set()
    for family in Metrics().registry.collect():
        exported |= {family.name, f"{family.name}_total", f"{family.name}_bucket"}
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 5
    for rule in rules:
        used = set(re.findall(r"vllmendpoint_\w+", rule["expr"]))
        assert used
        assert used <= exported
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_notes_hold_a_first_endpoint() -> None:
    for values, namespace in (({}, "default"), ({"watchNamespaces": ["a", "b"]}, "a")):
        text = run_helm("install", NAME, str(CHART), "--dry-run=client", values=values)
        notes = text.split("NOTES:", 1)[1]
        (block,) = re.findall(r"<<EOF\n(.*?)\n  EOF", notes, re.DOTALL)
        endpoint = yaml.safe_load(block)
        VLLMEndpointSpec.model_validate(endpoint["spec"])
        assert endpoint["metadata"]["namespace"] == namespace
        assert f"kubectl -n {namespace} wait --for=condition=Ready" in notes
