"""What the pods of workers and frontends have in common."""

from typing import Any, Final

from vllmendpoint_api import Resources
from vllmendpoint_operator.model import Endpoint

from .configuration import digest

__all__ = [
    "FRONTEND",
    "REQUEST_PORT",
    "RESPONSE_PORT",
    "WORKER",
    "container_security",
    "dynamo_env",
    "dynamo_labels",
    "pod_security",
    "resources",
]

WORKER: Final = "worker"
FRONTEND: Final = "frontend"

REQUEST_PORT: Final = 9092
"""Dynamo's request plane: the worker listens, pinned so that a NetworkPolicy can name it."""
RESPONSE_PORT: Final = 9093
"""Dynamo's response plane: the frontend listens, the worker connects back."""

_USER: Final = 1000
_LABEL_LENGTH: Final = 63


def dynamo_env(endpoint: Endpoint) -> list[dict[str, Any]]:
    """Each endpoint is a Dynamo namespace of its own, found through Kubernetes."""

    def field(path: str) -> dict[str, Any]:
        return {"valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}

    return [
        {"name": "POD_NAME", **field("metadata.name")},
        {"name": "POD_NAMESPACE", **field("metadata.namespace")},
        {"name": "POD_UID", **field("metadata.uid")},
        {"name": "POD_IP", **field("status.podIP")},
        {"name": "DYN_NAMESPACE", "value": dynamo_namespace(endpoint)},
        {"name": "DYN_DISCOVERY_BACKEND", "value": "kubernetes"},
        {"name": "DYN_REQUEST_PLANE", "value": "tcp"},
        {"name": "DYN_EVENT_PLANE", "value": "zmq"},
        {"name": "HOME", "value": "/tmp"},
    ]


def dynamo_namespace(endpoint: Endpoint) -> str:
    """It is a label's value too, hence at most 63 characters, while the parts may have 104."""
    whole = f"{endpoint.namespace}-{endpoint.name}"
    return whole if len(whole) <= _LABEL_LENGTH else f"{whole[: _LABEL_LENGTH - 11]}-{digest(whole)}"


def dynamo_labels(endpoint: Endpoint, component: str) -> dict[str, str]:
    """The labels that Dynamo's discovery selects by, and its own operator sets."""
    return {
        "nvidia.com/dynamo-namespace": dynamo_namespace(endpoint),
        "nvidia.com/dynamo-component": component,
        "nvidia.com/dynamo-component-type": component,
        "nvidia.com/dynamo-discovery-backend": "kubernetes",
        "nvidia.com/dynamo-discovery-enabled": "true",
    }


def pod_security() -> dict[str, Any]:
    """Pod Security "restricted"."""
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": _USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def resources(wanted: Resources) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if wanted.limits:
        out["limits"] = {key: str(value) for key, value in wanted.limits.items()}
    if wanted.requests:
        out["requests"] = {key: str(value) for key, value in wanted.requests.items()}
    return out
