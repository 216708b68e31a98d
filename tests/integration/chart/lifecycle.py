"""The life of an endpoint in which the operator does all that it knows, and what it needed for that."""

from functools import partial
from pathlib import Path
from typing import Any

from tests.audit import Right, granted, used
from tests.integration.api_server import MANAGED
from tests.integration.chart.installed_chart import NAME, Cluster, operating
from tests.integration.endpoint_under_test import EndpointUnderTest
from tests.integration.polling import until

ROLLOUT = "serving.vllmendpoint.dev/rollout"
RBAC = "rbac.authorization.k8s.io"

NOT_ASKED_FOR = {
    Right("bind", RBAC, "roles"): "looked up by the API server when a RoleBinding is made",
    Right("get", "apps", "controllerrevisions"): "where another's object has its name, which is a digest",
    Right("update", "serving.vllmendpoint.dev", "vllmendpoints/finalizers"): "looked up for an owner with "
    "blockOwnerDeletion, where the API server runs OwnerReferencesPermissionEnforcement, as OpenShift's does",
}
"""Rights that this life does not ask for, and why they are needed; `roles`: `clusterroles`, too."""


LOOKED = Right("list", "serving.vllmendpoint.dev", "vllmendpoints")
"""Asked for half a minute after the start."""
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
"""Also by what everybody may, not by its own roles alone."""


def live(cluster: Cluster, operator: str, namespace: str, folder: Path) -> None:
    """Make, wait for, change, roll out, prune, report."""
    endpoint = EndpointUnderTest(cluster.api, namespace, "tiny")
    try:
        with operating(cluster, operator, folder):
            _be_refused(cluster, namespace)
            _live(cluster, endpoint)
            assert cluster.get("lease", NAME, "-n", operator)["spec"]["holderIdentity"] == "here"
    finally:
        for worker in endpoint.started:
            worker.close_streams()
    assert not cluster.get("lease", NAME, "-n", operator)["spec"].get("holderIdentity")


LABELS = {"app": "another"}
POD = {"metadata": {"labels": LABELS}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
OF_ANOTHER: dict[str, dict[str, Any]] = {
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
"""An object of each kind where a child of an endpoint would stand."""
CACHE = {"volumeClaimTemplate": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}}


def _be_refused(cluster: Cluster, namespace: str) -> None:
    """Every name of a child is taken once by what is not the endpoint's, and looked at."""
    api = cluster.api
    refused = []
    for number, (what, body) in enumerate(OF_ANOTHER.items()):
        kind, _, suffix = what.partition("-")
        name = f"taken-{number}"
        api.create(kind, namespace, f"{name}-{suffix}", **body)
        refused.append(EndpointUnderTest(api, namespace, name).create(replicas=2, cache=CACHE))
    for endpoint in refused:
        endpoint.until("Accepted", "False", "NameTaken")


def _live(cluster: Cluster, endpoint: EndpointUnderTest) -> None:
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
    told = "serving.vllmendpoint.dev/settings-hash"
    until(
        lambda: all(told in pod["metadata"].get("annotations", {}) for pod in endpoint.pods()),
        "the kubelet is told of new settings",
    )

    gone = {"replicas": 0, "frontend": {"mode": "None"}, "engine": None, "cache": None}
    endpoint.patch(spec=gone)
    kept = {
        ("ControllerRevision", ""),
        ("ServiceAccount", "-workers"),
        ("RoleBinding", "-workers"),
        ("ConfigMap", "-settings"),
        ("NetworkPolicy", "-workers"),
        ("Service", "-workers"),
        ("Deployment", "-workers"),
    }

    def left() -> set[tuple[str, str]]:
        found = {
            (child["kind"], child["metadata"]["name"].removeprefix("tiny")) for child in endpoint.owned()
        }
        return {(kind, "" if kind == "ControllerRevision" else name) for kind, name in found}

    until(lambda: left() == kept, left, 40)
    for number in range(3):
        before = endpoint.get()["status"]["revision"]["name"]
        endpoint.patch(metadata={"annotations": {ROLLOUT: str(number)}})
        until(partial(_another_revision, endpoint, before), "a revision")
    mine = ("controllerrevisions", "-n", namespace, "-l", "app.kubernetes.io/instance=tiny")
    until(lambda: len(cluster.names(*mine)) == 3, "the oldest are pruned")


def _another_revision(endpoint: EndpointUnderTest, before: str) -> bool:
    return bool(endpoint.get()["status"]["revision"]["name"] != before)


def admitted(cluster: Cluster, namespace: str) -> None:
    """A pod is made of it, under Pod Security "restricted"."""
    pods = until(
        lambda: cluster.get("pods", "-n", namespace, "-l", f"app.kubernetes.io/name={NAME}")["items"], "a pod"
    )
    assert pods[0]["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def check_rights(cluster: Cluster, operator: str, namespaces: set[str] | None = None) -> None:
    """Its roles hold what the operator has asked for, and no more. ``namespaces``: all that it asked of."""
    account = f"{operator}/{NAME}"
    for verb, resource in DENIED:
        assert not cluster.can("a", account, verb, resource), (verb, resource)
    assert not cluster.can(operator, account, "update", "leases/other")
    entries = until(
        lambda: found if LOOKED in used(found := cluster.requests(account)) else None,
        "it looks for endpoints that its watch missed",
        60,
    )
    refused = [entry["requestURI"] for entry in entries if entry.get("responseStatus", {}).get("code") == 403]
    assert refused == []
    rules = cluster.rules(account)
    have = {right._replace(resource=right.resource.replace("cluster", "")) for right in granted(rules)}
    needed = used(entries)
    assert (have - needed, needed - have) == (set(NOT_ASKED_FOR), set()), "never used, and not from these"
    for rule in rules:
        if "resourceNames" in rule and "bind" not in rule["verbs"]:
            (name,) = rule["resourceNames"]
            about = [entry["objectRef"].get("name") for entry in entries if used([entry]) & granted([rule])]
            assert set(about) == {name}, rule
    if namespaces is not None:
        asked = {entry["objectRef"].get("namespace") for entry in entries if entry.get("objectRef")}
        assert asked == namespaces, "nothing of the cluster's"


def check_workers(cluster: Cluster, namespace: str) -> None:
    worker = f"{namespace}/tiny-workers"
    assert cluster.can(namespace, worker, "patch", "dynamoworkermetadatas.nvidia.com")
    assert cluster.can(namespace, worker, "watch", "endpointslices.discovery.k8s.io")
    for verb, resource in (("get", "secrets"), ("create", "pods"), ("patch", "vllmendpoints:status")):
        assert not cluster.can(namespace, worker, verb, resource)
