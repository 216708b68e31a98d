"""The two systems under the same load: a VLLMEndpoint, and plain Dynamo as Deployments with Dynamo's canary.

Both have two workers and two frontends of the same image, the same engine and the same probe settings.
"""

import json
from dataclasses import dataclass
from typing import Any, Final, Protocol

from tests.e2e.conftest import ENGINE, ONE_PROCESS, Cluster, manifest, worker_image

__all__ = ["MODEL", "Ours", "Plain", "Subject"]

MODEL: Final = "toy"
PERIOD_SECONDS: Final = 2
TIMEOUT_SECONDS: Final = 2
ENGINE_ARGS: Final = (*ENGINE, "--distributed-executor-backend", "uni")


class Subject(Protocol):
    """One of the two systems. Workers and frontends are pods with the container ``main``."""

    name: str
    cluster: Cluster
    workers_deployment: str
    frontends_deployment: str
    service: str

    def create(self) -> None:
        """Create it and wait until it serves."""
        ...

    def workers(self) -> list[dict[str, Any]]: ...

    def frontends(self) -> list[dict[str, Any]]: ...

    def scale(self, replicas: int) -> None: ...

    def change_model_card(self, max_model_len: int) -> None: ...

    def change_image(self, image: str) -> None: ...

    def restart_frontends(self, mark: str) -> None: ...


def _with_length(length: int) -> list[str]:
    args = list(ENGINE_ARGS)
    args[args.index("--max-model-len") + 1] = str(length)
    return args


@dataclass
class Ours:
    cluster: Cluster
    name: str = "VLLMEndpoint"
    workers_deployment: str = f"{MODEL}-workers"
    frontends_deployment: str = f"{MODEL}-frontend"
    service: str = MODEL

    def create(self) -> None:
        self.cluster.apply(
            manifest(
                MODEL,
                replicas=2,
                frontend={"replicas": 2},
                healthCheck={"periodSeconds": PERIOD_SECONDS, "timeoutSeconds": TIMEOUT_SECONDS},
            )
        )
        self.cluster.wait_ready(MODEL)

    def workers(self) -> list[dict[str, Any]]:
        return self.cluster.workers(MODEL)

    def frontends(self) -> list[dict[str, Any]]:
        return self.cluster.workers(MODEL, "frontend")

    def scale(self, replicas: int) -> None:
        self.cluster.kubectl("scale", "vep", MODEL, f"--replicas={replicas}")

    def change_model_card(self, max_model_len: int) -> None:
        self.cluster.change(MODEL, engine={"args": _with_length(max_model_len)})

    def change_image(self, image: str) -> None:
        worker = self.cluster.endpoint(MODEL)["spec"]["worker"]
        self.cluster.change(MODEL, worker=worker | {"image": image})

    def restart_frontends(self, mark: str) -> None:
        template = {"metadata": {"annotations": {"disruption/restart": mark}}}
        self.cluster.change(MODEL, frontend={"podTemplate": template})


@dataclass
class Plain:
    cluster: Cluster
    name: str = "plain Dynamo"
    workers_deployment: str = "plain-workers"
    frontends_deployment: str = "plain-frontend"
    service: str = "plain"

    def create(self) -> None:
        self.cluster.apply(*_plain_objects())
        for deployment in (self.workers_deployment, self.frontends_deployment):
            self.cluster.kubectl(
                "rollout", "status", f"deployment/{deployment}", "--timeout=600s", timeout=630
            )

    def workers(self) -> list[dict[str, Any]]:
        return list(self.cluster.get("pods", "-l", "app=plain-workers")["items"])

    def frontends(self) -> list[dict[str, Any]]:
        return list(self.cluster.get("pods", "-l", "app=plain-frontend")["items"])

    def scale(self, replicas: int) -> None:
        self.cluster.kubectl("scale", f"deployment/{self.workers_deployment}", f"--replicas={replicas}")

    def change_model_card(self, max_model_len: int) -> None:
        self._patch(self.workers_deployment, {"args": [*_MODEL_ARGS, *_with_length(max_model_len)]})

    def change_image(self, image: str) -> None:
        self._patch(self.workers_deployment, {"image": image})

    def restart_frontends(self, mark: str) -> None:
        self._patch(self.frontends_deployment, {"env": [{"name": "DISRUPTION_RESTART", "value": mark}]})

    def _patch(self, deployment: str, container: dict[str, Any]) -> None:
        patch = {"spec": {"template": {"spec": {"containers": [{"name": "main", **container}]}}}}
        self.cluster.kubectl("patch", "deployment", deployment, "-p", json.dumps(patch))


_MODEL_ARGS: Final = ["--model", "/models/models/toy-llama", "--served-model-name", MODEL]
_WORKER_COMMAND: Final = ["python3", "-m", "dynamo.vllm"]
_FRONTEND_COMMAND: Final = ["python3", "-m", "dynamo.frontend", "--http-port", "8000"]
_LABELS: Final = {
    "nvidia.com/dynamo-discovery-backend": "kubernetes",
    "nvidia.com/dynamo-discovery-enabled": "true",
}


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


_ENV: Final = [
    _field("POD_NAME", "metadata.name"),
    _field("POD_NAMESPACE", "metadata.namespace"),
    _field("POD_UID", "metadata.uid"),
    _field("POD_IP", "status.podIP"),
    _field("VLLM_HOST_IP", "status.podIP"),
    *(
        {"name": name, "value": value}
        for name, value in {
            "DYN_NAMESPACE": "plain",
            "DYN_DISCOVERY_BACKEND": "kubernetes",
            "DYN_REQUEST_PLANE": "tcp",
            "DYN_EVENT_PLANE": "zmq",
            "HF_HUB_OFFLINE": "1",
        }.items()
    ),
]
_CANARY: Final = [
    {"name": name, "value": value}
    for name, value in {
        "DYN_SYSTEM_PORT": "9090",
        "DYN_HEALTH_CHECK_ENABLED": "true",
        "DYN_CANARY_WAIT_TIME": str(PERIOD_SECONDS),
        "DYN_HEALTH_CHECK_REQUEST_TIMEOUT": str(TIMEOUT_SECONDS),
    }.items()
]


def _probe(path: str, port: int, **fields: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": port}, "timeoutSeconds": 3, **fields}


def _deployment(name: str, container: dict[str, Any], volumes: list[dict[str, Any]]) -> dict[str, Any]:
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    main = {"name": "main", "image": worker_image(), "securityContext": security, **container}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "serviceAccountName": "plain",
                    "terminationGracePeriodSeconds": 60,
                    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [main],
                    "volumes": volumes,
                },
            },
        },
    }


def _service(name: str, app: str, port: int, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": {"app": app}, "ports": [{"port": port}]},
    }


def _plain_objects() -> list[dict[str, Any]]:
    verbs = ["get", "list", "watch"]
    rules = [
        {"apiGroups": [""], "resources": ["pods", "endpoints"], "verbs": verbs},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": verbs},
        {
            "apiGroups": ["nvidia.com"],
            "resources": ["dynamoworkermetadatas"],
            "verbs": [*verbs, "create", "update", "patch", "delete"],
        },
    ]
    worker = {
        "command": _WORKER_COMMAND,
        "args": [*_MODEL_ARGS, *ENGINE_ARGS],
        "env": [*_ENV, *_CANARY, ONE_PROCESS],
        "resources": {"limits": {"memory": "5Gi"}},
        "volumeMounts": [
            {"name": "models", "mountPath": "/models/models"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
        "startupProbe": _probe("/live", 9090, periodSeconds=2, failureThreshold=300),
        "readinessProbe": _probe("/health", 9090, periodSeconds=1, failureThreshold=1),
        "livenessProbe": _probe("/live", 9090, periodSeconds=10, failureThreshold=60),
    }
    frontend = {
        "command": _FRONTEND_COMMAND,
        "env": _ENV,
        "startupProbe": _probe("/live", 8000, periodSeconds=1, failureThreshold=120),
        "readinessProbe": _probe("/health", 8000, periodSeconds=1, failureThreshold=3),
    }
    volumes = [
        {"name": "models", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
    ]
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "plain"}}
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "plain"},
        "rules": rules,
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "plain"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "plain"},
        "subjects": [{"kind": "ServiceAccount", "name": "plain"}],
    }
    return [
        account,
        role,
        binding,
        _service("plain-workers", "plain-workers", 9090, _LABELS),
        _service("plain", "plain-frontend", 8000, {}),
        _deployment("plain-workers", worker, volumes),
        _deployment("plain-frontend", frontend, []),
    ]
