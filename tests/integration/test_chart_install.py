"""The chart on a real API server: install, upgrade, uninstall; who may do what; what admission lets in."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Object = dict[str, Any]

CHART = Path(os.environ.get("CHART", Path(__file__).parents[2] / "charts" / "vllmendpoint-operator"))
CACHE = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
BIN = Path(os.environ.get("VLLMENDPOINT_CACHE") or Path(CACHE) / "vllmendpoint") / "bin"
NAME = "vllmendpoint-operator"
OWNER = "ann"
"""Owns a few namespaces, and nothing of the cluster."""


def run(*command: str | Path, text: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=120)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done


def until(what: str, check: Callable[[], Any], seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return found


class Cluster:
    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def kubectl(self, *arguments: str, text: str = "", check: bool = True) -> str:
        done = run(BIN / "kubectl", f"--kubeconfig={self.kubeconfig}", *arguments, text=text, check=check)
        return done.stdout.strip()

    def helm(self, *arguments: str, program: str = "helm") -> str:
        return run(BIN / program, f"--kubeconfig={self.kubeconfig}", *arguments).stdout

    def get(self, *arguments: str) -> Object:
        found: Object = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def names(self, *arguments: str) -> set[str]:
        return set(self.kubectl("get", *arguments, "-o", "name").split())

    def can(self, namespace: str, user: str, verb: str, resource: str) -> bool:
        """Of a ``type``, ``type:subresource`` or ``type/name``; a user, or ``namespace/account``."""
        if "/" in user:
            user = f"system:serviceaccount:{user.replace('/', ':')}"
        kind, _, sub = resource.partition(":")
        said = self.kubectl(
            "auth", "can-i", verb, kind, f"--subresource={sub}", "-n", namespace, "--as", user, check=False
        )
        return said.startswith("yes")

    def cluster_scoped(self) -> set[str]:
        kinds = "clusterroles,clusterrolebindings,validatingadmissionpolicies"
        kinds += ",validatingadmissionpolicybindings,customresourcedefinitions"
        return self.names(kinds)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One a test, for a chart leaves its mark on the whole cluster. It starts in a few seconds."""
    command = [BIN / "cluster", "controlplane", "--dir", str(tmp_path / "cluster")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Cluster(Path(process.stdout.readline().removeprefix("ready ").strip()))
        finally:
            process.terminate()


@pytest.fixture
def namespaces(cluster: Cluster) -> tuple[str, str, str]:
    """The operator's and two to serve, all under Pod Security "restricted"."""
    names = ("ops", "a", "b")
    for name in names:
        cluster.kubectl("create", "namespace", name)
        cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    return names


@contextlib.contextmanager
def operating(cluster: Cluster, namespace: str, folder: Path) -> Iterator[list[str]]:
    """The operator itself, as the Deployment would run it: its environment and its service account."""
    deployment = cluster.get("deployment", NAME, "-n", namespace)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    # The API server leaves out what is empty.
    env = {
        item["name"]: "here" if "valueFrom" in item else item.get("value", "") for item in container["env"]
    }
    token = cluster.kubectl("create", "token", NAME, "-n", namespace)
    kubeconfig = json.loads(cluster.kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
    kubeconfig["users"] = [{"name": "operator", "user": {"token": token}}]
    for context in kubeconfig["contexts"]:
        context["context"]["user"] = "operator"
    path = folder / "kubeconfig.json"
    path.write_text(json.dumps(kubeconfig))
    log = folder / "log"
    lines: list[str] = []
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllmendpoint_operator", f"--kubeconfig={path}"],
            env={
                **os.environ,
                **env,
                "VLLMENDPOINT_BIND_ADDRESS": "127.0.0.1",
                "VLLMENDPOINT_METRICS_PORT": "0",
                "VLLMENDPOINT_HEALTH_PORT": "0",
            },
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            yield lines
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
            lines += log.read_text().splitlines()


def endpoint(namespace: str, name: str = "tiny", **spec: Any) -> str:
    return json.dumps(
        {
            "apiVersion": "serving.vllmendpoint.dev/v1alpha1",
            "kind": "VLLMEndpoint",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"model": {"uri": "file:///models/tiny"}, **spec},
        }
    )


def serve_and_remove(cluster: Cluster, operator: str, namespace: str, folder: Path) -> None:
    """Every write that the operator knows: make, change, prune, report; nothing may be forbidden to it."""
    with operating(cluster, operator, folder) as log:
        inline = {"config": {"inline": {"max-model-len": 64}}}
        cluster.kubectl("apply", "-f", "-", text=endpoint(namespace, engine=inline))

        def status(name: str = "tiny") -> Object:
            found: Object = cluster.get("vllmendpoint", name, "-n", namespace).get("status", {})
            return found

        until(
            "all children",
            lambda: "deployment.apps/tiny-frontend" in cluster.names("deploy", "-n", namespace),
        )
        until("a status", lambda: status().get("conditions"))
        kinds = "controllerrevisions,serviceaccounts,rolebindings,configmaps,networkpolicies,services"
        assert len(cluster.names(kinds, "-n", namespace, "-l", f"app.kubernetes.io/managed-by={NAME}")) >= 10
        pods = until("pods", lambda: cluster.get("pods", "-n", namespace)["items"])
        assert pods

        cluster.kubectl("apply", "-f", "-", text=endpoint(namespace, frontend={"mode": "None"}))
        until(
            "the frontend and the old config are pruned",
            lambda: (
                not cluster.names(
                    "deploy,svc,sa,rolebinding", "-n", namespace, "-l", "app.kubernetes.io/component=frontend"
                )
            ),
        )
        missing = {"config": {"configMapKeyRef": {"name": "none", "key": "x"}}}
        cluster.kubectl("apply", "-f", "-", text=endpoint(namespace, engine=missing))
        until(
            "an Event",
            lambda: "ConfigMapNotFound" in cluster.kubectl("get", "events", "-n", namespace),
        )
        cluster.kubectl("create", "configmap", "none", "--from-literal=x=max-model-len: 64", "-n", namespace)
        until("the map is read", lambda: "tiny-config" in cluster.kubectl("get", "cm", "-n", namespace))
        assert cluster.get("lease", NAME, "-n", operator)["spec"]["holderIdentity"] == "here"
    assert not [line for line in log if "forbidden" in line.lower() or "Traceback" in line]
    assert not cluster.get("lease", NAME, "-n", operator)["spec"].get("holderIdentity")
    worker = f"{namespace}/tiny-workers"
    assert cluster.can(namespace, worker, "patch", "dynamoworkermetadatas.nvidia.com")
    assert cluster.can(namespace, worker, "watch", "endpointslices.discovery.k8s.io")
    for verb, resource in (("get", "secrets"), ("create", "pods"), ("patch", "vllmendpoints:status")):
        assert not cluster.can(namespace, worker, verb, resource)


ALLOWED = [
    ("watch", "vllmendpoints"),
    ("patch", "vllmendpoints:status"),
    ("update", "vllmendpoints:finalizers"),
    *(
        (verb, kind)
        for kind in ("deployments", "rolebindings", "poddisruptionbudgets")
        for verb in ("create", "patch", "delete")
    ),
    ("patch", "pods"),
    ("create", "events"),
    ("get", "configmaps"),
    ("list", "persistentvolumeclaims"),
]
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


def check_rights(cluster: Cluster, operator: str, namespace: str) -> None:
    account = f"{operator}/{NAME}"
    for verb, resource in ALLOWED:
        assert cluster.can(namespace, account, verb, resource), (verb, resource)
    for verb, resource in DENIED:
        assert not cluster.can(namespace, account, verb, resource), (verb, resource)
    assert cluster.can(operator, account, "update", f"leases/{NAME}")
    assert not cluster.can(operator, account, "update", "leases/other")


def admitted(cluster: Cluster, namespace: str) -> None:
    """A pod is made of it, under Pod Security "restricted"."""
    pods = until(
        "a pod", lambda: cluster.get("pods", "-n", namespace, "-l", f"app.kubernetes.io/name={NAME}")["items"]
    )
    assert pods[0]["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("program", ["helm", "helm3"])
def test_cluster_mode(
    cluster: Cluster, namespaces: tuple[str, str, str], program: str, tmp_path: Path
) -> None:
    ops, a, _ = namespaces

    def helm(*arguments: str) -> str:
        return cluster.helm(*arguments, "--namespace", ops, program=program)

    helm("install", NAME, str(CHART))
    admitted(cluster, ops)
    check_rights(cluster, ops, a)
    account = f"{ops}/{NAME}"
    assert cluster.can(a, account, "bind", f"clusterroles/{NAME}-worker")
    assert not cluster.can(a, account, "bind", "clusterroles/cluster-admin")
    serve_and_remove(cluster, ops, a, tmp_path)

    # Changed and back, the release's own DynamoWorkerMetadata CRD staying in it.
    helm("upgrade", NAME, str(CHART), "--set", "replicas=2")
    assert cluster.get("pdb", NAME, "-n", ops)
    helm("upgrade", NAME, str(CHART))
    assert "dynamoworkermetadatas.nvidia.com" in helm("get", "manifest", NAME)

    # Aggregation is the controller manager's work.
    cluster.kubectl("create", "rolebinding", "eve", "--clusterrole=edit", "--user=eve", "-n", a)
    until(
        "edit of VLLMEndpoints",
        lambda: cluster.can(a, "eve", "create", "vllmendpoints"),
    )

    uid = cluster.get("vllmendpoint", "tiny", "-n", a)["metadata"]["uid"]
    helm("uninstall", NAME)
    assert not [name for name in cluster.names("clusterroles,clusterrolebindings") if NAME in name]
    assert cluster.get("vllmendpoint", "tiny", "-n", a)["metadata"]["uid"] == uid
    helm("install", NAME, str(CHART))
    assert cluster.get("vllmendpoint", "tiny", "-n", a)["metadata"]["uid"] == uid
    helm("uninstall", NAME)


def owner(cluster: Cluster, role: str, names: tuple[str, ...]) -> None:
    for name in names:
        cluster.kubectl(
            "create", "rolebinding", "owner", f"--clusterrole={role}", f"--user={OWNER}", "-n", name
        )


def readme(kind: str) -> str:
    (found,) = [
        block
        for block in re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
        if f"kind: {kind}" in block
    ]
    return found


@pytest.mark.parametrize(("role", "program"), [("admin", "helm"), ("cluster-admin", "helm3")])
def test_namespaced_mode_by_who_owns_the_namespaces(
    cluster: Cluster, namespaces: tuple[str, str, str], role: str, program: str, tmp_path: Path
) -> None:
    ops, a, b = namespaces
    crds = cluster.helm("template", NAME, str(CHART), "--show-only", "templates/crds.yaml")
    cluster.kubectl("apply", "--server-side", "-f", "-", text=crds)
    if role == "admin":
        cluster.kubectl("apply", "-f", "-", text=readme("ClusterRole"))
    owner(cluster, role, namespaces)
    until("aggregation", lambda: cluster.can(a, OWNER, "bind", f"roles/{NAME}-worker"))
    assert not cluster.can("default", OWNER, "get", "customresourcedefinitions")
    before = cluster.cluster_scoped()

    def helm(*arguments: str) -> str:
        return cluster.helm(*arguments, "--namespace", ops, "--kube-as-user", OWNER, program=program)

    values = ("--set", f"watchNamespaces={{{a},{b}}}", "--set", "crds.enabled=false")
    helm("install", NAME, str(CHART), *values)
    assert cluster.cluster_scoped() == before
    admitted(cluster, ops)
    for namespace in (a, b):
        check_rights(cluster, ops, namespace)
        account = f"{ops}/{NAME}"
        assert cluster.can(namespace, account, "bind", f"roles/{NAME}-worker")
        assert not cluster.can("default", account, "list", "vllmendpoints")
        assert not cluster.can(ops, account, "list", "vllmendpoints")
    serve_and_remove(cluster, ops, b, tmp_path)
    helm("upgrade", NAME, str(CHART), *values, "--set", "replicas=2")
    helm("uninstall", NAME)
    assert cluster.cluster_scoped() == before
    assert not [name for name in cluster.names("roles", "-n", a) if NAME in name]
    assert cluster.get("vllmendpoint", "tiny", "-n", b)


def test_everything_at_once_is_valid(cluster: Cluster, namespaces: tuple[str, str, str]) -> None:
    """All but what needs the Prometheus operator: the API server knows every field."""
    ops, _, _ = namespaces
    values = {
        "replicas": 2,
        "commonLabels": {"team": "ml"},
        "networkPolicy": {"enabled": True, "metricsFrom": [{"namespaceSelector": {}}], "egress": [{}]},
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
        BIN / "helm", "template", NAME, CHART, "--namespace", ops, "--values", "-", text=json.dumps(values)
    ).stdout
    # With its hook, the test pod.
    out = cluster.kubectl(
        "apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-", text=text
    )
    assert f"pod/{NAME}-test" in out


def test_dynamo_crd_of_another_is_left_alone(cluster: Cluster, namespaces: tuple[str, str, str]) -> None:
    ops, _, _ = namespaces
    crds = cluster.helm("template", "x", str(CHART), "--show-only", "templates/crds.yaml")
    (theirs,) = [
        doc for doc in re.split("^---$", crds, flags=re.MULTILINE) if "kind: DynamoWorkerMetadata" in doc
    ]
    cluster.kubectl("apply", "--server-side", "-f", "-", text=theirs)
    cluster.helm("install", NAME, str(CHART), "--namespace", ops, "--set", "crds.keep=false")
    assert "dynamoworkermetadatas.nvidia.com" not in cluster.helm("get", "manifest", NAME, "--namespace", ops)
    cluster.helm("uninstall", NAME, "--namespace", ops)
    crd = "customresourcedefinition.apiextensions.k8s.io"
    # Helm asks for the deletion; the API server takes a definition away once its resources are gone.
    until(
        "our definition gone",
        lambda: f"{crd}/vllmendpoints.serving.vllmendpoint.dev" not in cluster.names("crd"),
    )
    assert f"{crd}/dynamoworkermetadatas.nvidia.com" in cluster.names("crd")


@pytest.mark.parametrize("account", ["tiny-workers", "of-the-user"])
def test_a_worker_writes_its_own_metadata_only(
    cluster: Cluster, namespaces: tuple[str, str, str], tmp_path: Path, account: str
) -> None:
    ops, a, _ = namespaces
    cluster.helm("install", NAME, str(CHART), "--namespace", ops)
    worker = {}
    if account == "of-the-user":
        cluster.kubectl("create", "serviceaccount", account, "-n", a)
        worker = {"serviceAccountName": account}
    with operating(cluster, ops, tmp_path):
        cluster.kubectl("apply", "-f", "-", text=endpoint(a, worker=worker))
        pod = (
            until(
                "a pod",
                lambda: cluster.names("pods", "-n", a, "-l", "app.kubernetes.io/component=worker"),
            )
            .pop()
            .removeprefix("pod/")
        )
    bound = ("--bound-object-kind=Pod", f"--bound-object-name={pod}")
    token = cluster.kubectl("create", "token", account, "-n", a, *bound)
    loose = cluster.kubectl("create", "token", account, "-n", a)
    server = cluster.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")

    def write(name: str, with_token: str, *verb: str) -> str:
        body = {
            "apiVersion": "nvidia.com/v1alpha1",
            "kind": "DynamoWorkerMetadata",
            "metadata": {"name": name, "namespace": a},
            "spec": {"data": {"any": {"thing": 1}}},
        }
        none = tmp_path / "none"
        none.touch()
        done = run(
            BIN / "kubectl",
            f"--kubeconfig={none}",
            f"--server={server}",
            "--insecure-skip-tls-verify",
            f"--token={with_token}",
            *(verb or ("apply", "--server-side")),
            "-f",
            "-",
            text=json.dumps(body),
            check=False,
        )
        return done.stdout + done.stderr

    refused = "a worker may write only the DynamoWorkerMetadata that has the name of its own pod"
    # The policy reaches the API server's caches a moment after it was made.
    until("the policy", lambda: refused in write("another", token), 60)
    assert refused in write(pod, loose)
    assert "serverside-applied" in write(pod, token)
    assert cluster.get("dwm", pod, "-n", a)["spec"]["data"] == {"any": {"thing": 1}}
    assert "deleted" in write(pod, token, "delete")
    cluster.helm("uninstall", NAME, "--namespace", ops)


def test_who_may_not_create_pods_gets_no_further_by_an_endpoint(
    cluster: Cluster, namespaces: tuple[str, str, str]
) -> None:
    ops, a, _ = namespaces
    cluster.helm("install", NAME, str(CHART), "--namespace", ops)
    kind = "vllmendpoints.serving.vllmendpoint.dev"
    verbs = ("--verb=create", "--verb=get", "--verb=patch", "--verb=update")
    cluster.kubectl("create", "role", "owner", *verbs, f"--resource={kind}", "-n", a)
    cluster.kubectl("create", "rolebinding", "owner", "--role=owner", "--user=bob", "-n", a)

    def as_bob(*arguments: str, text: str = "") -> str:
        command = (BIN / "kubectl", f"--kubeconfig={cluster.kubeconfig}", "--as=bob", "-n", a, *arguments)
        done = run(*command, text=text, check=False)
        return done.stdout + done.stderr

    def create(**spec: Any) -> str:
        return as_bob("create", "--dry-run=server", "-f", "-", text=endpoint(a, **spec))

    def patch(**worker: Any) -> str:
        return as_bob("patch", kind, "tiny", "--type=merge", "-p", json.dumps({"spec": worker}))

    refused = "only who may create pods in this namespace may set or change it"
    mine = {"serviceAccountName": "mine"}
    until("the policy", lambda: refused in create(worker=mine), 60)
    assert "created" in create()
    assert "created" in create(worker={"sharedMemorySize": "1Gi"}, engine={"args": ["--seed", "1"]})
    for spec in (
        {"worker": mine},
        {"worker": {"podTemplate": {"spec": {"hostNetwork": True}}}},
        {"worker": {"envFrom": [{"secretRef": {"name": "anyone's"}}]}},
        {"frontend": {"podTemplate": {"spec": {}}}},
        {"handlers": {"ping": "model:f"}},
        {"model": {"uri": "file:///m", "tokenSecretRef": {"name": "s"}}},
    ):
        assert refused in create(**spec), spec
    # What somebody else has set stays as it is, and the rest is theirs to change.
    cluster.kubectl("create", "-f", "-", text=endpoint(a, worker=mine))
    assert "patched" in patch(replicas=2)
    assert f"worker.serviceAccountName: {refused}" in patch(worker={"serviceAccountName": "other"})
    assert "patched" in patch(worker={"serviceAccountName": None})
    assert refused in patch(worker=mine)
    cluster.kubectl("create", "role", "pods", "--verb=create", "--resource=pods", "-n", a)
    cluster.kubectl("create", "rolebinding", "pods", "--role=pods", "--user=bob", "-n", a)
    until("bob may create pods", lambda: "patched" in patch(worker=mine))
    cluster.helm("uninstall", NAME, "--namespace", ops)
