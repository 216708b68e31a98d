"""The user's podTemplate over the operator's: merged as kubectl does, and checked for conflicts."""

import contextlib
import json
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.project_cache import CACHE
from vllmendpoint_api import Reason
from vllmendpoint_operator.errors import PlanError
from vllmendpoint_operator.plan.pods.strategic_merge import strategic_merge
from vllmendpoint_operator.plan.pods.user_template import merge_user_template

BASE = {
    "metadata": {"labels": {"a": "1", "b": "2"}, "annotations": {"x": "y"}},
    "spec": {
        "serviceAccountName": "s",
        "nodeSelector": {"zone": "1"},
        "tolerations": [{"key": "gpu"}],
        "containers": [
            {
                "name": "main",
                "image": "i:1",
                "args": ["--model", "m"],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                "ports": [{"name": "report", "containerPort": 9091, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "cache", "emptyDir": {"sizeLimit": "1Gi"}}],
    },
}


def main(**fields):
    return {"spec": {"containers": [{"name": "main", **fields}]}}


PATCHES = {
    "labels merge": {"metadata": {"labels": {"a": "9", "c": "3"}}},
    "null deletes": {"metadata": {"annotations": None}, "spec": {"nodeSelector": {"zone": None}}},
    "null of a missing field": {"spec": {"nodeName": None, "affinity": {"nodeAffinity": None}}},
    "env merges by name": main(env=[{"name": "B", "value": "9"}, {"name": "C", "value": "3"}]),
    "env deleted": main(env=[{"name": "A", "$patch": "delete"}]),
    "env from a source": main(
        env=[{"name": "A", "value": None, "valueFrom": {"fieldRef": {"fieldPath": "p"}}}]
    ),
    "ports merge by number": main(ports=[{"containerPort": 9091, "hostPort": 1}, {"containerPort": 5}]),
    "mounts merge by path": main(
        volumeMounts=[{"mountPath": "/tmp", "name": "cache"}, {"mountPath": "/x", "name": "t"}]
    ),
    "resources merge": main(resources={"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}),
    "another container": {"spec": {"containers": [{"name": "sidecar", "image": "s"}]}},
    "tolerations replace": {"spec": {"tolerations": [{"key": "other"}]}},
    "args replace": main(args=["x"]),
    "volume deleted": {"spec": {"volumes": [{"name": "cache", "$patch": "delete"}]}},
    "volume of another kind": {
        "spec": {"volumes": [{"name": "cache", "emptyDir": None, "hostPath": {"path": "/c"}}]}
    },
    "volume retaining keys": {
        "spec": {
            "volumes": [{"$retainKeys": ["name", "hostPath"], "name": "cache", "hostPath": {"path": "/c"}}]
        }
    },
    "map replaced": {"spec": {"nodeSelector": {"$patch": "replace", "x": "y"}}},
    "map deleted": {"spec": {"nodeSelector": {"$patch": "delete"}}},
    "map deleted that is not there": {"spec": {"securityContext": {"$patch": "delete", "runAsUser": 1}}},
    "map deleted in one that is not there": {
        "spec": {"securityContext": {"runAsUser": 1, "seLinuxOptions": {"$patch": "delete", "role": "r"}}}
    },
    "list replaced by a marked item": {
        "spec": {"volumes": [{"name": "cache", "$patch": "replace"}, {"name": "only", "emptyDir": {}}]}
    },
    "list replaced": {"spec": {"volumes": [{"$patch": "replace"}, {"name": "only", "emptyDir": {}}]}},
    "delete where there is nothing": {"spec": {"imagePullSecrets": [{"name": "p", "$patch": "delete"}]}},
    "pull secrets merge": {"spec": {"imagePullSecrets": [{"name": "p"}]}},
    "host aliases": {"spec": {"hostAliases": [{"ip": "1.2.3.4", "hostnames": ["h"]}]}},
    "spread": {"spec": {"topologySpreadConstraints": [{"topologyKey": "zone", "maxSkew": 1}]}},
    "scheduling gates": {"spec": {"schedulingGates": [{"name": "g"}]}},
    "init containers": {"spec": {"initContainers": [{"name": "i", "image": "x"}]}},
}


@pytest.mark.parametrize(
    ("patch", "path", "value"),
    [
        ("labels merge", ("metadata", "labels"), {"a": "9", "b": "2", "c": "3"}),
        ("null deletes", ("spec", "nodeSelector"), {}),
        ("env merges by name", ("spec", "containers", 0, "env", 1), {"name": "B", "value": "9"}),
        ("tolerations replace", ("spec", "tolerations"), [{"key": "other"}]),
        ("volume deleted", ("spec", "volumes"), [{"name": "tmp", "emptyDir": {}}]),
        ("map replaced", ("spec", "nodeSelector"), {"x": "y"}),
        ("resources merge", ("spec", "containers", 0, "resources", "limits"), {"cpu": "2", "memory": "1Gi"}),
    ],
)
def test_merges(patch, path, value):
    found = strategic_merge(BASE, PATCHES[patch])
    for step in path:
        found = found[step]
    assert found == value


def ordered(value):
    """Keyed lists by their key: kubectl puts added items first."""
    if isinstance(value, dict):
        # An emptied list and an absent one are the same to the API server.
        return {k: ordered(v) for k, v in value.items() if v not in ({}, [], None)}
    if isinstance(value, list):
        return sorted((ordered(v) for v in value), key=lambda v: json.dumps(v, sort_keys=True))
    return value


@pytest.mark.parametrize("name", PATCHES)
def test_merges_as_kubectl_does(tmp_path, name):
    kubectl = CACHE / "bin" / "kubectl"
    if not kubectl.exists():
        pytest.skip(f"no kubectl in {kubectl.parent}: `make cluster` builds it")
    template = {"metadata": {"name": "x"}, "template": BASE}
    file = tmp_path / "template.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "PodTemplate", **template}))
    patch = json.dumps({"template": PATCHES[name]})
    done = subprocess.run(
        [kubectl, "patch", "--local", "-f", file, "--type=strategic", "-p", patch, "-o", "json"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)["template"]
    assert ordered(strategic_merge(BASE, PATCHES[name])) == ordered(theirs)


def test_the_base_is_not_changed():
    before = json.dumps(BASE)
    for patch in PATCHES.values():
        strategic_merge(BASE, patch)
    assert json.dumps(BASE) == before


@pytest.mark.parametrize("field", ["worker.podTemplate", "frontend.podTemplate"])
def test_the_message_names_the_invalid_template(field):
    with pytest.raises(PlanError, match=f"^{field}: The field containers must be a list."):
        merge_user_template(OURS, {"spec": {"containers": {"name": "x"}}}, field)


OURS = {
    "metadata": {"labels": {"app": "x"}},
    "spec": {
        "containers": [
            {
                "name": "main",
                "args": ["--model", "m"],
                "env": [{"name": "POD_NAME", "value": "p"}],
                "ports": [],
            }
        ]
    },
}


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"kind": "Pod"}, "The field kind does not exist. A PodTemplateSpec has metadata and spec."),
        (
            {"metadata": {"labels": {"app": "y"}}},
            "The operator sets the label app. Remove it from metadata.labels.",
        ),
        ({"metadata": {"labels": None}}, "The operator sets the label app."),
        (
            {"spec": {"containers": [{"name": "main", "$patch": "delete"}]}},
            "main must not be removed. Remove $patch",
        ),
        (
            {"spec": {"containers": [{"$patch": "replace"}, {"name": "x"}]}},
            "main must not be removed. Remove $patch",
        ),
        ({"spec": {"containers": [{"image": "x"}]}}, "An item of containers has no name. Add it."),
        (
            main(env=[{"name": "POD_NAME", "value": "q"}]),
            "main, POD_NAME is set by the operator.",
        ),
        (
            main(env=[{"name": "POD_NAME", "$patch": "delete"}]),
            "main, POD_NAME is set by the operator.",
        ),
        (
            main(env=[{"name": "DYN_NAMESPACE", "value": "q"}]),
            "main, DYN_NAMESPACE is set by the operator.",
        ),
        (main(args=["x"]), "The operator sets args of the container main. Use engine.args instead."),
        (main(command=["x"]), "The operator sets command of the container main."),
        ({"spec": None}, "main must not be removed. Remove $patch"),
        ({"spec": "x"}, "spec"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"labels": "x"}}, "labels"),
        ({"spec": {"containers": "main"}}, "containers"),
        ({"spec": {"containers": {"main": {}}}}, "containers"),
        ({"spec": {"containers": [{"$patch": "replace"}, "x"]}}, "containers"),
        (main(env="x"), "env"),
        (main(env=["x"]), "An item of env has no name. Add it."),
        (main(env=[{"name": ["x"]}]), "env"),
    ],
)
def test_changes_of_what_the_operator_sets_are_rejected(patch, message):
    with pytest.raises(PlanError) as error:
        merge_user_template(OURS, patch, "worker.podTemplate")
    assert error.value.reason is Reason.INVALID_POD_TEMPLATE
    assert message in error.value.message


FIELDS = st.sampled_from(
    ["metadata", "labels", "spec", "containers", "env", "name", "main", "$patch", "delete", "replace"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FIELDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["metadata", "spec"]), JSON))
def test_any_pod_template_is_merged_or_rejected(patch):
    """Any other exception would be retried forever and never reach the status."""
    with contextlib.suppress(PlanError):
        merged = merge_user_template(OURS, patch, "worker.podTemplate")
        assert merged["metadata"]["labels"]["app"] == "x"


@pytest.mark.parametrize("directive", ["delete", "replace"])
@pytest.mark.parametrize("field", ["serviceAccountName", "tolerations"])
def test_a_directive_instead_of_a_value_is_rejected(directive, field):
    """Otherwise the API server would reject the rendered pods with another message."""
    with pytest.raises(PlanError) as error:
        merge_user_template(BASE, {"spec": {field: {"$patch": directive}}}, "worker.podTemplate")
    assert error.value.reason is Reason.INVALID_POD_TEMPLATE
    assert error.value.message.startswith(f"worker.podTemplate: The field {field} must not have $patch, ")
