"""No list in the output of the chart has a key twice: Helm 4 applies server-side, which rejects that."""

from typing import Any

import pytest
import yaml

from tests.unit.rendered_chart import ALL_SET, CHART, HELMS, Object, env, parse, run_helm, template
from vllmendpoint_operator.settings import Settings

KEYS = {
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "containers": ("name",),
    "imagePullSecrets": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "claims": ("name",),
}
"""Lists that the Kubernetes API merges by key, and their keys."""
CONCURRENCY = "VLLMENDPOINT_MAX_CONCURRENT_RECONCILES"


def mount(path: str) -> Object:
    return {"name": "a", "mountPath": path}


def spread(skew: int) -> Object:
    return {"maxSkew": skew, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"extraEnv": [{"name": "VLLMENDPOINT_LOG_LEVEL", "value": "DEBUG"}]},
            "The name VLLMENDPOINT_LOG_LEVEL is set by the chart. Remove it: use the value log.level.",
        ),
        (
            {"extraEnv": [{"name": CONCURRENCY.lower(), "value": "1"}]},
            f"The name {CONCURRENCY} is set by the chart. Remove it: use the value maxConcurrentReconciles.",
        ),
        (
            {"extraEnv": [{"name": "A", "value": "1"}, {"name": "B"}, {"name": "A", "value": "1"}]},
            "extraEnv: The name A is given twice. Remove one.",
        ),
        (
            {"extraArgs": ["--log-level=DEBUG"]},
            "extraArgs: The flag --log-level is set by the chart. Remove it: use the value log.level.",
        ),
        (
            {"extraArgs": ["--LOG-Level=DEBUG"]},
            "extraArgs: The flag --log-level is set by the chart. Remove it: use the value log.level.",
        ),
        (
            {"extraArgs": ["--report-port", "1", "--report-port=2"]},
            "extraArgs: The flag --report-port is given twice. Remove one.",
        ),
        (
            {"extraVolumes": [{"name": "tmp", "emptyDir": {}}]},
            "extraVolumes: The name tmp is a volume of the chart. Choose another name.",
        ),
        (
            {"extraVolumes": [{"name": "a", "emptyDir": {}}, {"name": "a", "emptyDir": {}}]},
            "extraVolumes: The name a is given twice. Remove one.",
        ),
        (
            {"extraVolumeMounts": [mount("/tmp/")]},
            "extraVolumeMounts: The mountPath /tmp is a mount of the chart. Choose another path.",
        ),
        (
            {"extraVolumeMounts": [mount("/a"), mount("/a/")]},
            "extraVolumeMounts: The mountPath /a is given twice. Remove one.",
        ),
        (
            {"topologySpreadConstraints": [spread(1), spread(2)]},
            "topologySpreadConstraints: The topologyKey and whenUnsatisfiable zone, DoNotSchedule is given",
        ),
        (
            {"resources": {"claims": [{"name": "a"}, {"name": "a"}]}},
            "resources.claims: The name a is given twice. Remove one.",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_duplicate_key_in_the_values_is_rejected(program: str, values: Object, message: str) -> None:
    with pytest.raises(AssertionError) as caught:
        run_helm("template", "r", str(CHART), program=program, values=values)
    assert message in str(caught.value)


def test_a_setting_of_the_chart_is_rejected_in_extra_env_and_extra_args() -> None:
    message = r"is set by the chart\. Remove it: (use |its value is )\S+"
    own = [name for name in env(template()) if name.startswith("VLLMENDPOINT_")]
    assert len(own) >= 13
    flags = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    for name in own:
        flag = f"--{name.removeprefix('VLLMENDPOINT_').lower().replace('_', '-')}"
        assert flag in flags
        for values in ({"extraEnv": [{"name": name, "value": "x"}]}, {"extraArgs": [flag, "x"]}):
            with pytest.raises(AssertionError, match=message):
                run_helm("template", "r", str(CHART), values=values)


def test_other_variables_and_flags_are_accepted() -> None:
    template(
        {
            "extraEnv": [{"name": "HTTPS_PROXY", "value": "x"}, {"name": "https_proxy", "value": "x"}],
            "extraArgs": ["--report-port", "9091", "--bind-address=::1"],
        }
    )


def check_unique(value: Any, path: str = "") -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            check_unique(item, f"{path}.{name}")
            if name in KEYS and isinstance(item, list):
                keys = [tuple(entry.get(key) for key in KEYS[name]) for entry in item]
                assert len(set(keys)) == len(keys), f"{path}.{name}: {keys}"
    elif isinstance(value, list):
        for item in value:
            check_unique(item, path)


def check_keys(node: yaml.Node | None) -> None:
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        assert len(set(keys)) == len(keys), keys
        for _, value in node.value:
            check_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            check_keys(item)


def duplicated_labels() -> Object:
    own = ("app.kubernetes.io/name", "app.kubernetes.io/managed-by", "helm.sh/chart")
    aggregated = [f"rbac.authorization.k8s.io/aggregate-to-{role}" for role in ("view", "edit", "admin")]
    labels = dict.fromkeys((*own, *aggregated), "x")
    return {
        "commonLabels": labels,
        "podLabels": labels,
        "podAnnotations": {"kubectl.kubernetes.io/default-container": "x"},
        "podMonitor": {"enabled": True, "labels": labels},
        "prometheusRule": {"enabled": True, "labels": labels},
        "global": {"imagePullSecrets": [{"name": "a"}]},
        "imagePullSecrets": [{"name": "a"}, {"name": "b"}],
    }


@pytest.mark.parametrize("values", [{}, ALL_SET, duplicated_labels()], ids=["defaults", "all-set", "labels"])
def test_the_output_has_no_duplicate_keys(values: Object) -> None:
    text = run_helm("template", "r", str(CHART), values=values)
    for node in yaml.compose_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        check_keys(node)
    for doc in parse(text):
        check_unique(doc)
