"""What both components share: security contexts, resources, probes, escaping, deadline. Pure."""

from typing import Any, Final

from vllmendpoint_api import Resources
from vllmendpoint_operator.observe.snapshot import Endpoint
from vllmendpoint_operator.plan.options import Options

__all__ = [
    "container_security",
    "escape_variable_references",
    "http_get",
    "pod_security",
    "progress_deadline_seconds",
    "resources",
]

_EXPANDED_FIELDS: Final = ("command", "args")
_USER: Final = 1000
_GROUP: Final = 0
"""Directories of NVIDIA's image, for instance of compiled kernels, belong to user 1000 and group 0."""
_VOLUME_GROUP: Final = 1000
_PROGRESS_MARGIN_SECONDS: Final = 600
"""For scheduling and image pulls, which the startup timeout does not include."""


def progress_deadline_seconds(endpoint: Endpoint) -> int:
    """``progressDeadlineSeconds`` of both Deployments: frontends become ready with the first worker."""
    return endpoint.spec.worker.startup_timeout_seconds + _PROGRESS_MARGIN_SECONDS


def pod_security(options: Options) -> dict[str, Any]:
    """The pod's security context, as the Pod Security Standard "restricted" requires."""
    user = {"runAsUser": _USER, "runAsGroup": _GROUP, "fsGroup": _VOLUME_GROUP} if options.fixed_user else {}
    return {
        "runAsNonRoot": True,
        **user,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    """The container's security context, as the Pod Security Standard "restricted" requires."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def resources(spec: Resources) -> dict[str, Any]:
    """``{"resources": ...}`` of a container; empty if the spec sets none."""
    found = {
        key: {name: str(quantity) for name, quantity in quantities.items()}
        for key, quantities in (("limits", spec.limits), ("requests", spec.requests))
        if quantities
    }
    return {"resources": found} if found else {}


def http_get(path: str, port: str) -> dict[str, Any]:
    """The handler of a probe. ``port``: name of a container port."""
    return {"httpGet": {"path": path, "port": port, "scheme": "HTTP"}}


def escape_variable_references(container: dict[str, Any]) -> dict[str, Any]:
    """``container`` so that its process gets command, args and values of env without any expansion.

    The kubelet replaces ``$(NAME)`` by the value of a variable and ``$$`` by ``$`` in these fields. It
    does not expand values from ConfigMaps and Secrets.
    """
    lists: dict[str, Any] = {
        field: [_escape(item) for item in container[field]]
        for field in _EXPANDED_FIELDS
        if field in container
    }
    env = [
        {**item, "value": _escape(item["value"])} if "value" in item else item for item in container["env"]
    ]
    return {**container, **lists, "env": env}


def _escape(text: str) -> str:
    return text.replace("$", "$$")
