"""A lifecycle of an endpoint that uses all functions of the operator, and the required permissions."""

from functools import partial
from pathlib import Path
from typing import Any

from tests.audit import Permission, granted, used
from tests.integration.api_server import MANAGED
from tests.integration.chart.installed_chart import NAME, Cluster, running_operator
from tests.integration.endpoint_under_test import EndpointUnderTest
from tests.integration.polling import until

ROLLOUT = "serving.vllmendpoint.dev/rollout"
RBAC = "rbac.authorization.k8s.io"

UNUSED_PERMISSIONS = {
    Permission("bind", RBAC, "roles"): "checked by the API server when a RoleBinding is created",
    Permission("get", "apps", "controllerrevisions"): "used if another's object has its name, a digest",
    Permission("update", "serving.vllmendpoint.dev", "vllmendpoints/finalizers"): "checked for an owner with "
    "blockOwnerDeletion if OwnerReferencesPermissionEnforcement is enabled, as on OpenShift",
}
"""Permissions that this lifecycle does not use, and their reasons; `roles` includes `clusterroles`."""


PERIODIC_LIST = Permission("list", "serving.vllmendpoint.dev", "vllmendpoints")
"""First used half a minute after the start."""
DENIED = [
    *((verb, "secrets") for verb in ("get", "list", "watch", "create")),
    *((verb, "vllmendpoints") for verb in ("create", "update", "patch", "delete")),
    *((verb, "pods") for verb in ("create", "delete")),
    *((verb, "roles") for verb in ("create", "escalate", "bind")),
    ("create", "pods:exec"),
    ("create", "serviceaccounts:token"),
    ("create", "dynamoworkermetadatas.nvidia.com"),
    ("get", "nodes"),
    ("list", "namespaces"),
    ("bind", "clusterroles"),
    ("impersonate", "users"),
]
"""Denied by all roles together, including those of every user."""


def run_lifecycle(cluster: Cluster, operator: str, namespace: str, folder: Path) -> None:
    """Create an endpoint, make it ready, change it, roll it out and prune it."""
    endpoint = EndpointUnderTest(cluster.api, namespace, "tiny")
    try:
        with running_operator(cluster, operator, folder):
            _create_name_conflicts(cluster, namespace)
            _change_endpoint(cluster, endpoint)
            assert cluster.get("lease", NAME, "-n", operator)["spec"]["holderIdentity"] == "here"
    finally:
        for worker in endpoint.started:
            worker.close_streams()
    assert not cluster.get("lease", NAME, "-n", operator)["spec"].get("holderIdentity")


LABELS = {"app": "another"}
POD = {"metadata": {"labels": LABELS}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
CONFLICTING_OBJECTS: dict[str, dict[str, Any]] = {
    "ServiceAccount-workers": {},
    "RoleBinding-workers": {"roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "view"}},
    "ConfigMap-settings": {},
    "PersistentVolumeClaim-cache": {
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    },
    "NetworkPolicy-workers": {"spec": {"podSelector": {}}},
    "Service-workers": {"spec": {"ports": [{"port": 80}]}},
    "PodDisruptionBudget-workers": {"spec": {"selector": {"matchLabels": LABELS}}},
    "Deployment-workers": {"spec": {"replicas": 0, "selector": {"matchLabels": LABELS}, "template": POD}},
}
"""An object of each kind with the name of a child."""
CACHE = {"volumeClaimTemplate": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}}


def _create_name_conflicts(cluster: Cluster, namespace: str) -> None:
    """Create one endpoint per kind of child whose name an existing object has, which the operator reads."""
    api = cluster.api
    conflicting = []
    for number, (what, body) in enumerate(CONFLICTING_OBJECTS.items()):
        kind, _, suffix = what.partition("-")
        name = f"taken-{number}"
        api.create(kind, namespace, f"{name}-{suffix}", **body)
        conflicting.append(EndpointUnderTest(api, namespace, name).create(replicas=2, cache=CACHE))
    for endpoint in conflicting:
        endpoint.until("Accepted", "False", "NameTaken")


def _change_endpoint(cluster: Cluster, endpoint: EndpointUnderTest) -> None:
    namespace = endpoint.namespace
    endpoint.create(
        replicas=2,
        engine={"config": {"configMapKeyRef": {"name": "engine", "key": "config.yaml"}}},
        cache=CACHE,
    )
    events = ("get", "events", "-n", namespace)
    until(lambda: "ConfigMapNotFound" in cluster.kubectl(*events), "an Event")
    cluster.kubectl("create", "configmap", "engine", "--from-literal=config.yaml=seed: 1", "-n", namespace)
    endpoint.start_all(2)
    endpoint.until("Ready", "True")
    kinds = {child["kind"] for child in endpoint.owned()}
    assert kinds == set(MANAGED)

    endpoint.patch(spec={"healthCheck": {"level": "Standard"}})
    annotation = "serving.vllmendpoint.dev/settings-hash"
    until(
        lambda: all(annotation in pod["metadata"].get("annotations", {}) for pod in endpoint.pods()),
        "the pods are annotated with the new settings",
    )

    endpoint.patch(spec={"replicas": 0, "frontend": {"mode": "None"}, "engine": None, "cache": None})
    kept = {
        ("ControllerRevision", ""),
        ("ServiceAccount", "-workers"),
        ("RoleBinding", "-workers"),
        ("ConfigMap", "-settings"),
        ("NetworkPolicy", "-workers"),
        ("Service", "-workers"),
        ("Deployment", "-workers"),
    }

    def remaining() -> set[tuple[str, str]]:
        found = {
            (child["kind"], child["metadata"]["name"].removeprefix("tiny")) for child in endpoint.owned()
        }
        return {(kind, "" if kind == "ControllerRevision" else name) for kind, name in found}

    until(lambda: remaining() == kept, remaining, 40)
    for number in range(3):
        before = endpoint.get()["status"]["revision"]["name"]
        endpoint.patch(metadata={"annotations": {ROLLOUT: str(number)}})
        until(partial(_has_another_revision, endpoint, before), "a revision")
    revisions = ("controllerrevisions", "-n", namespace, "-l", "app.kubernetes.io/instance=tiny")
    until(lambda: len(cluster.names(*revisions)) == 3, "the oldest are pruned")


def _has_another_revision(endpoint: EndpointUnderTest, before: str) -> bool:
    return bool(endpoint.get()["status"]["revision"]["name"] != before)


def check_pod_is_admitted(cluster: Cluster, namespace: str) -> None:
    """The Deployment of the chart gets a pod, under Pod Security "restricted"."""
    pods = until(
        lambda: cluster.get("pods", "-n", namespace, "-l", f"app.kubernetes.io/name={NAME}")["items"], "a pod"
    )
    assert pods[0]["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def check_permissions(cluster: Cluster, operator: str, namespaces: set[str] | None = None) -> None:
    """The operator's roles grant exactly what it requested. ``namespaces``: the only ones of its requests."""
    account = f"{operator}/{NAME}"
    for verb, resource in DENIED:
        assert not cluster.can("a", account, verb, resource), (verb, resource)
    assert not cluster.can(operator, account, "update", "leases/other")
    entries = until(
        lambda: found if PERIODIC_LIST in used(found := cluster.requests(account)) else None,
        "it lists endpoints in case its watch missed one",
        60,
    )
    forbidden = [
        entry["requestURI"] for entry in entries if entry.get("responseStatus", {}).get("code") == 403
    ]
    assert forbidden == []
    rules = cluster.rules(account)
    have = {
        Permission(verb, group, resource.replace("cluster", "")) for verb, group, resource in granted(rules)
    }
    needed = used(entries)
    assert (have - needed, needed - have) == (set(UNUSED_PERMISSIONS), set()), (
        "unused, or not granted by these roles"
    )
    for rule in rules:
        if "resourceNames" in rule and "bind" not in rule["verbs"]:
            (name,) = rule["resourceNames"]
            about = [entry["objectRef"].get("name") for entry in entries if used([entry]) & granted([rule])]
            assert set(about) == {name}, rule
    if namespaces is not None:
        requested = {entry["objectRef"].get("namespace") for entry in entries if entry.get("objectRef")}
        assert requested == namespaces, "no requests for cluster-scoped objects"


def check_workers(cluster: Cluster, namespace: str) -> None:
    worker = f"{namespace}/tiny-workers"
    assert cluster.can(namespace, worker, "patch", "dynamoworkermetadatas.nvidia.com")
    assert cluster.can(namespace, worker, "watch", "endpointslices.discovery.k8s.io")
    for verb, resource in (("get", "secrets"), ("create", "pods"), ("patch", "vllmendpoints:status")):
        assert not cluster.can(namespace, worker, verb, resource)
