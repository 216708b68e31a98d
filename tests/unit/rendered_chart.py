"""The chart as helm renders it, with default values and with every value set."""

import copy
import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.project_cache import BIN

Object = dict[str, Any]

CHART = Path(__file__).parents[2] / "charts" / "vllmendpoint-operator"
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
    "frontend": {
        "image": {
            "registry": "f.example",
            "repository": "a/frontend",
            "tag": "t3",
            "digest": "sha256:" + "2" * 64,
        }
    },
    "watchNamespaces": ["a", "b"],
    "replicas": 3,
    "leaseSeconds": 20,
    "maxConcurrentReconciles": 4,
    "resyncSeconds": 60,
    "log": {"level": "DEBUG", "format": "text"},
    "crds": {"enabled": True, "keep": False, "dynamo": True},
    "serviceAccount": {"create": True, "name": "account", "annotations": {"on-account": "1"}},
    "rbac": {"aggregateRoles": False},
    "admissionPolicy": {"enabled": False, "podRights": ["engine.args"], "claims": False},
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
    "openshift": True,
    "podSecurityContext": {"runAsNonRoot": True, "fsGroup": 7},
    "securityContext": {"privileged": False},
    "service": {"annotations": {"on-service": "1"}},
    "podMonitor": {"enabled": True, "interval": "7s", "labels": {"pm": "1"}},
    "serviceMonitor": {"enabled": True, "interval": "8s", "labels": {"sm": "1"}},
    "prometheusRule": {"enabled": True, "labels": {"rule": "1"}},
    "networkPolicy": {
        "enabled": True,
        "metricsFrom": [{"namespaceSelector": {}}],
        "additionalIngress": [{"ports": [{"port": 15008}]}],
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
    # The C loader, if it is installed, because the CRD is long.
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
