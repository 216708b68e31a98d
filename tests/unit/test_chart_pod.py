"""The operator's pod as the chart renders it: configuration, images, and every value set or empty."""

import json
from typing import Any

import pytest
import yaml

from tests.unit.rendered_chart import (
    ALL_SET,
    CHART,
    HELMS,
    NAME,
    VALUES,
    Object,
    container,
    env,
    kinds_of,
    one,
    parse,
    run_helm,
    template,
)
from vllmendpoint_operator.settings import Settings


@pytest.mark.parametrize("values", [{}, ALL_SET], ids=["defaults", "all-set"])
def test_the_environment_contains_valid_settings_of_the_operator(
    values: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = template(values)
    environment = env(docs)
    for name, value in environment.items():
        if name.startswith("VLLMENDPOINT_"):
            assert name.removeprefix("VLLMENDPOINT_").lower() in Settings.model_fields
            monkeypatch.setenv(name, value)
    settings = Settings(_cli_parse_args=[str(item) for item in container(docs).get("args", [])])
    pod = one(docs, "Deployment")["spec"]["template"]["metadata"]["labels"]
    options = settings.options
    assert options.fixed_user is (values.get("openshift") is not True)
    assert len(options.additional_ingress) == len(
        values.get("networkPolicy", {}).get("additionalIngress", ())
    )
    assert options.operator_labels.items() <= pod.items()
    assert one(docs, "Deployment")["spec"]["selector"]["matchLabels"] == options.operator_labels
    assert options.operator_namespace == "ops"
    assert settings.watched_namespaces == tuple(values.get("watchNamespaces", ()))
    for namespace in settings.watched_namespaces or (None,):
        one(docs, options.role_kind, options.role_name, namespace)
    lease = next(rule for rule in one(docs, "Role", namespace="ops")["rules"] if "resourceNames" in rule)
    assert lease["resourceNames"] == [settings.lease_name]
    assert settings.identity == "a-pod"


def test_images_are_set_by_registry_tag_and_digest() -> None:
    digest = "sha256:" + "0" * 64
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]

    def images(values: Object) -> tuple[str, str, str]:
        docs = template(values)
        test = one(docs, "Pod")["spec"]["containers"][0]["image"]
        assert test == container(docs)["image"]
        environment = env(docs)
        return test, environment["VLLMENDPOINT_WORKER_IMAGE"], environment["VLLMENDPOINT_FRONTEND_IMAGE"]

    assert images({}) == (
        f"ghcr.io/vllmendpoint/operator:{version}",
        f"ghcr.io/vllmendpoint/worker:{version}",
        f"ghcr.io/vllmendpoint/frontend:{version}",
    )
    mirrored = {"global": {"imageRegistry": "mirror:5000"}, "image": {"tag": "x"}}
    assert images(mirrored) == (
        "mirror:5000/vllmendpoint/operator:x",
        f"mirror:5000/vllmendpoint/worker:{version}",
        f"mirror:5000/vllmendpoint/frontend:{version}",
    )
    bare = {
        "image": {"registry": "", "digest": digest},
        "worker": {"image": {"digest": digest}},
        "frontend": {"image": {"digest": digest}},
    }
    assert images(bare) == (
        f"vllmendpoint/operator@{digest}",
        f"ghcr.io/vllmendpoint/worker@{digest}",
        f"ghcr.io/vllmendpoint/frontend@{digest}",
    )


def test_pods_meet_the_restricted_standard() -> None:
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


def test_every_value_that_is_set_is_rendered() -> None:
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
    frontend = values["frontend"]["image"]
    assert env(docs)["VLLMENDPOINT_FRONTEND_IMAGE"] == f"f.example/a/frontend@{frontend['digest']}"
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
    environment = env(docs)
    assert environment["VLLMENDPOINT_NAMESPACES"] == "a,b"
    assert environment["VLLMENDPOINT_LEASE_SECONDS"] == "20"
    assert environment["VLLMENDPOINT_MAX_CONCURRENT_RECONCILES"] == "4"
    assert environment["VLLMENDPOINT_RESYNC_SECONDS"] == "60"
    assert (environment["VLLMENDPOINT_LOG_LEVEL"], environment["VLLMENDPOINT_LOG_FORMAT"]) == (
        "DEBUG",
        "text",
    )
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


def test_empty_values_are_omitted() -> None:
    # Null removes a default. It must also be accepted where the default is empty.
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


SECURITY = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize(
    ("values", "api", "is_openshift"),
    [
        ({}, (), False),
        ({}, ("security.openshift.io/v1",), True),
        ({}, ("security.openshift.io/v2",), False),
        ({"openshift": True}, (), True),
        ({"openshift": False}, ("security.openshift.io/v1",), False),
    ],
)
def test_on_openshift_pods_set_no_user(
    program: str, values: Object, api: tuple[str, ...], is_openshift: bool
) -> None:
    versions = [argument for version in api for argument in ("--api-versions", version)]
    docs = parse(run_helm("template", "r", str(CHART), *versions, program=program, values=values))
    user = {} if is_openshift else {"runAsUser": 65532, "runAsGroup": 65532}
    for pod in (one(docs, "Deployment")["spec"]["template"]["spec"], one(docs, "Pod")["spec"]):
        assert pod["securityContext"] == SECURITY | user
    assert env(docs)["VLLMENDPOINT_FIXED_USER"] == ("false" if is_openshift else "true")


def test_on_openshift_a_user_in_the_values_is_kept() -> None:
    own = {"runAsUser": 1000700000, "runAsGroup": None, "fsGroup": 1000700000}
    docs = template({"openshift": True, "podSecurityContext": own})
    context = one(docs, "Deployment")["spec"]["template"]["spec"]["securityContext"]
    assert context == SECURITY | {"runAsUser": 1000700000, "fsGroup": 1000700000}


def test_additional_ingress_is_in_the_operators_settings_and_network_policy() -> None:
    rules = [
        {"ports": [{"port": 15008}]},
        {"from": [{"ipBlock": {"cidr": "169.254.7.127/32", "except": []}}, {"podSelector": {}}]},
        {
            "from": [{"ipBlock": {"cidr": "fd00::/8", "except": ["fd00:1::/128"]}}],
            "ports": [{"port": "http-9"}],
        },
        {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}}]},
    ]
    for enabled in (False, True):
        docs = template({"networkPolicy": {"enabled": enabled, "additionalIngress": rules}})
        assert json.loads(env(docs)["VLLMENDPOINT_ADDITIONAL_INGRESS"]) == rules
        if enabled:
            assert one(docs, "NetworkPolicy")["spec"]["ingress"][2:] == rules
    assert len(one(template({"networkPolicy": {"enabled": True}}), "NetworkPolicy")["spec"]["ingress"]) == 2


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"from": []},
        {"to": []},
        {"ports": [{"port": 0}]},
        {"ports": [{"port": 1, "protocol": "HTTP"}]},
        {"from": [{}]},
        {"from": [{"ipBlock": {"cidr": "10.0.0.1"}}]},
        {"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]},
        {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/129"]}}]},
        {"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]},
        {"from": [{"podSelector": {"matchExpressions": [{"key": "a"}]}}]},
        {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}]},
        {"ports": [{"port": "15008"}]},
        {"ports": [{"port": "Metrics"}]},
        {"ports": [{"endPort": 9}]},
        {"ports": [{"port": "metrics", "endPort": 9}]},
        {"from": [{"podSelector": {"matchLabels": {"a": 1}}}]},
        "x",
    ],
    ids=str,
)
def test_invalid_additional_ingress_is_rejected(rule: Any) -> None:
    with pytest.raises(AssertionError, match="additionalIngress"):
        template({"networkPolicy": {"additionalIngress": [rule]}})


def test_names_are_valid_with_a_release_name_of_the_maximum_length() -> None:
    for doc in template(release="r" * 53):
        if doc["kind"] in ("Deployment", "Pod", "Service"):
            assert len(doc["metadata"]["name"]) <= 63
    assert one(template(release="op"), "Deployment")["metadata"]["name"] == f"op-{NAME}"


def test_the_service_does_not_select_the_test_pod() -> None:
    docs = template()
    selector = one(docs, "Service")["spec"]["selector"]
    pod = one(docs, "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert not selector.items() <= pod["metadata"]["labels"].items()
    compile(pod["spec"]["containers"][0]["args"][0], "test", "exec")
