"""Names and values that YAML reads as numbers, booleans, dates or null stay strings in the chart's output."""

import json
import re
from collections.abc import Iterator

import pytest
import yaml

from tests.unit.rendered_chart import CHART, HELMS, Object, container, env, one, parse, run_helm
from vllmendpoint_operator.settings import Settings

NOT_STRINGS = {
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "containerPort",
    "enableServiceLinks",
    "failureThreshold",
    "honorLabels",
    "maxSkew",
    "maxUnavailable",
    "optional",
    "periodSeconds",
    "port",
    "readOnlyRootFilesystem",
    "replicas",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "timeoutSeconds",
    "tolerationSeconds",
}
"""Fields of the chart that are integers or booleans in the Kubernetes API. All others are strings."""

# Scalars that YAML 1.1 (helm), YAML 1.2 or one of their libraries reads as something other than a string.
AMBIGUOUS_SCALAR = re.compile(
    r"[-+.]?[0-9][0-9_,.]*([eE][-+]?[0-9]+)?|0[xob][0-9a-fA-F_]+|[0-9]+(:[0-9]+)+|[0-9]{4}-[0-9]+-[0-9]+.*"
    r"|~|null|true|false|yes|no|on|off|y|n|[-+]?\.(inf|nan)|",
    re.IGNORECASE,
)

AMBIGUOUS_NAMES = (
    "123456",
    "true",
    "1e3",
    "0x10",
    "null",
    "yes",
    "n",
    "2024-01-01",
    "0123",
    "0o17",
    "1.5",
    "off",
    "1e400",
)
PAIRS = [(AMBIGUOUS_NAMES[i], AMBIGUOUS_NAMES[i - 1].replace(".", "-")) for i in range(len(AMBIGUOUS_NAMES))]
"""Release and namespace; a namespace has no dots."""


def values_with(name: str) -> Object:
    """Values with ``name`` wherever the chart accepts any name or string."""
    label = name.replace("~", "x")
    return {
        "commonLabels": {"common": label},
        "global": {"imagePullSecrets": [{"name": name}]},
        "image": {"tag": name},
        "worker": {"image": {"registry": "", "repository": name, "tag": name}},
        "imagePullSecrets": [{"name": f"{name}0"}],
        "serviceAccount": {"name": name, "annotations": {name: name, "nothing": "~"}},
        "extraArgs": [name],
        "extraEnv": [{"name": "A", "value": name}, {"name": "B", "value": "~"}],
        "extraVolumes": [{"name": name, "configMap": {"name": name, "optional": True}}],
        "extraVolumeMounts": [{"name": name, "mountPath": "/a", "subPath": name}],
        "extraObjects": [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "{{ .Release.Name }}", "namespace": "{{ .Release.Namespace }}"},
                "data": {"a": name, "b": "{{ .Release.Name }}"},
            }
        ],
        "resources": {"requests": {"cpu": "1", "memory": "1e3"}, "limits": {}},
        "podLabels": {"pod": label},
        "podAnnotations": {name: name},
        "priorityClassName": name,
        "nodeSelector": {"node": label},
        "tolerations": [{"key": name, "operator": "Equal", "value": label, "tolerationSeconds": 3}],
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": name, "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "service": {"annotations": {name: name}},
        "podMonitor": {"enabled": True, "labels": {"pm": label}},
        "serviceMonitor": {"enabled": True, "labels": {"sm": label}},
        "prometheusRule": {"enabled": True, "labels": {"rule": label}},
        "networkPolicy": {
            "enabled": True,
            "metricsFrom": [{"podSelector": {"matchLabels": {"from": label}}}],
        },
        "replicas": 2,
    }


def scalars(node: yaml.Node, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], yaml.ScalarNode]]:
    """Scalars with their paths. Keys count as values, because JSON requires strings."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, "a key"), key
            yield from scalars(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from scalars(item, path)
    elif isinstance(node, yaml.ScalarNode):
        yield path, node


def unquoted(text: str) -> list[str]:
    """``path: value`` of each scalar that can be read as another type although its field is a string."""
    found = []
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for document in yaml.compose_all(text, loader):
        if document is None:
            continue
        for path, node in scalars(document):
            of_crd = path[:1] == ("spec",) and any(
                value.value == "CustomResourceDefinition" for _, value in document.value
            )
            ambiguous = node.style is None and (
                not node.tag.endswith(":str") or AMBIGUOUS_SCALAR.fullmatch(node.value) is not None
            )
            if ambiguous and not of_crd and path[-1] not in NOT_STRINGS:
                found.append(f"{'.'.join(path)}: {node.value}")
    return found


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize(("release", "namespace"), PAIRS)
def test_ambiguous_names_stay_strings(program: str, release: str, namespace: str) -> None:
    values = values_with(release)
    if AMBIGUOUS_NAMES.index(release) % 2:
        values |= {"watchNamespaces": [namespace, "123"], "fullnameOverride": namespace}
    text = run_helm("template", release, str(CHART), "--namespace", namespace, program=program, values=values)
    assert unquoted(text) == []
    docs = parse(text)
    assert one(docs, "Deployment")["metadata"]["namespace"] == namespace
    assert container(docs)["image"].endswith(f":{release}")
    service = one(docs, "Service")
    # Names of Services are more restricted than the other names.
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", service["metadata"]["name"])
    assert f"//{service['metadata']['name']}.{namespace}.svc" in json.dumps(one(docs, "Pod"))
    selector = service["spec"]["selector"]
    assert selector["app.kubernetes.io/instance"] == release
    assert selector.items() <= one(docs, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    for item in container(docs)["env"]:
        assert isinstance(item.get("value", ""), str), item


@pytest.mark.parametrize("name", AMBIGUOUS_NAMES[:5])
def test_the_service_selects_the_pods_with_an_overridden_name(name: str) -> None:
    values = {"nameOverride": name.replace(".", "-"), "fullnameOverride": "full"}
    docs = parse(run_helm("template", "r", str(CHART), values=values))
    labels = one(docs, "Deployment")["metadata"]["labels"]
    assert one(docs, "Service")["spec"]["selector"].items() <= labels.items()
    assert labels["app.kubernetes.io/name"] == values["nameOverride"]


@pytest.mark.parametrize("name", [name.replace(".", "-") for name in AMBIGUOUS_NAMES[1::2]])
def test_the_operator_reads_ambiguous_names_unchanged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = parse(
        run_helm(
            "template", name, str(CHART), "--namespace", name, values={"watchNamespaces": [name, "other"]}
        )
    )
    for variable, value in env(docs).items():
        monkeypatch.setenv(variable, value)
    settings = Settings(_cli_parse_args=[])
    assert settings.namespace == name
    assert settings.watched_namespaces == (name, "other")
    assert settings.options.operator_labels["app.kubernetes.io/instance"] == name


def test_large_numbers_stay_integers() -> None:
    """Helm reads the numbers of a values file as floating-point numbers."""
    values = {"resyncSeconds": 12345678, "leaseSeconds": 1000000, "replicas": 2000000}
    docs = parse(run_helm("template", "r", str(CHART), values=values))
    assert env(docs)["VLLMENDPOINT_RESYNC_SECONDS"] == "12345678"
    assert env(docs)["VLLMENDPOINT_LEASE_SECONDS"] == "1000000"
    assert one(docs, "Deployment")["spec"]["replicas"] == 2000000


@pytest.mark.parametrize(
    ("assignment", "field"),
    [
        ("watchNamespaces={123456}", "watchNamespaces"),
        ("image.tag=2024", "image/tag|image.tag"),
        ("nodeSelector.a=true", "nodeSelector"),
        ("podLabels.a=1", "podLabels"),
        ("extraEnv[0].name=A,extraEnv[0].value=1", "extraEnv"),
        ("tolerations[0].key=a,tolerations[0].value=true", "tolerations"),
        ("serviceAccount.annotations.a=1", "serviceAccount"),
        ("fullnameOverride=1", "fullnameOverride"),
    ],
)
def test_set_string_is_accepted_where_set_makes_a_number_that_is_rejected(
    assignment: str, field: str
) -> None:
    for program in HELMS:
        with pytest.raises(AssertionError, match=f"({field})(.|\n)*string"):
            run_helm("template", "r", str(CHART), "--set", assignment, program=program)
        assert (
            unquoted(run_helm("template", "r", str(CHART), "--set-string", assignment, program=program)) == []
        )


@pytest.mark.parametrize("namespace", ["true", "123456", "n"])
def test_notes_quote_the_namespace(namespace: str) -> None:
    text = run_helm(
        "install", "r", str(CHART), "--dry-run=client", values={"watchNamespaces": [namespace]}
    ).split("NOTES:", 1)[1]
    (block,) = re.findall(r"<<EOF\n(.*?)\n  EOF", text, re.DOTALL)
    assert yaml.safe_load(block)["metadata"]["namespace"] == namespace
