"""What the pods of workers and frontends have in common.

Dynamo namespaces: a frontend accepts only workers with the same model card in one namespace, and ignores the
others. So each revision of the worker's template has a namespace of its own below the endpoint's prefix:

    prefix of smollm in team-a      team-a-smollm_
    workers of revision 5c1f0a9b2e  team-a-smollm_-5c1f0a9b2e[-<digest of the model's files>]

The frontend accepts every namespace that starts with the prefix. No name in Kubernetes has an underscore, so
the prefix of one endpoint never matches the namespace of another. Workers that an operator without revisions
created are in ``team-a-smollm`` itself; see :func:`has_plain_namespace`.
"""

from typing import Any, Final

from vllmendpoint_api import Resources, names
from vllmendpoint_operator.observe.snapshot import Endpoint, Pod
from vllmendpoint_operator.plan.configuration import digest
from vllmendpoint_operator.plan.options import Options

__all__ = [
    "REQUEST_PORT",
    "RESPONSE_PORT",
    "container_security",
    "dynamo_env",
    "dynamo_labels",
    "dynamo_namespace",
    "has_plain_namespace",
    "namespace_prefix",
    "pod_security",
    "resources",
    "verbatim",
    "with_worker_suffix",
]

REQUEST_PORT: Final = 9092
"""Dynamo's request plane: the worker listens, pinned so that a NetworkPolicy can name it."""
RESPONSE_PORT: Final = 9093
"""Dynamo's response plane: the frontend listens, the worker connects back."""

_EXPANDED: Final = ("command", "args")
_USER: Final = 1000
_LABEL_LENGTH: Final = 63


def dynamo_env(namespace: dict[str, str]) -> list[dict[str, Any]]:
    """``namespace``: the variable that names the Dynamo namespace, or its prefix, and its value."""

    def field(path: str) -> dict[str, Any]:
        return {"valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}

    return [
        {"name": "POD_NAME", **field("metadata.name")},
        {"name": "POD_NAMESPACE", **field("metadata.namespace")},
        {"name": "POD_UID", **field("metadata.uid")},
        {"name": "POD_IP", **field("status.podIP")},
        *({"name": name, "value": value} for name, value in namespace.items()),
        {"name": "DYN_DISCOVERY_BACKEND", "value": "kubernetes"},
        {"name": "DYN_REQUEST_PLANE", "value": "tcp"},
        {"name": "DYN_EVENT_PLANE", "value": "zmq"},
        {"name": "HOME", "value": "/tmp"},
    ]


def verbatim(container: dict[str, Any]) -> dict[str, Any]:
    """``container`` so that its process gets every argument and every value as they are written here.

    The kubelet replaces ``$(NAME)`` by a variable, and ``$$`` by ``$``, in command, args and values of env; a
    doubled ``$`` is one. Values from ConfigMaps and Secrets it leaves alone.
    """
    lists: dict[str, Any] = {
        part: [_literal(item) for item in container[part]] for part in _EXPANDED if part in container
    }
    env = [
        {**item, "value": _literal(item["value"])} if "value" in item else item for item in container["env"]
    ]
    return {**container, **lists, "env": env}


def _literal(text: str) -> str:
    return text.replace("$", "$$")


def dynamo_namespace(endpoint: Endpoint) -> str:
    """It is a label's value too, hence at most 63 characters, while the parts may have 104."""
    whole = f"{endpoint.namespace}-{endpoint.name}"
    return whole if len(whole) <= _LABEL_LENGTH else f"{whole[: _LABEL_LENGTH - 11]}-{digest(whole)}"


def namespace_prefix(endpoint: Endpoint) -> str:
    """What the Dynamo namespaces of the endpoint's workers start with, and those of no other endpoint."""
    return f"{dynamo_namespace(endpoint)}_"


def with_worker_suffix(template: dict[str, Any]) -> dict[str, Any]:
    """The worker's finished pod template, with a Dynamo namespace of its own: equal templates share one."""
    suffix = digest(template)
    metadata, spec = template["metadata"], template["spec"]
    added = {"name": "DYN_NAMESPACE_WORKER_SUFFIX", "value": suffix}
    containers = [
        {**one, "env": [*one["env"], added]} if one["name"] == names.MAIN_CONTAINER else one
        for one in spec["containers"]
    ]
    labels = {**metadata["labels"], names.LABEL_REVISION: suffix}
    return {
        **template,
        "metadata": {**metadata, "labels": labels},
        "spec": {**spec, "containers": containers},
    }


def has_plain_namespace(pod: Pod) -> bool:
    """Whether an operator without revisions created this worker: its Dynamo namespace has no suffix."""
    return names.LABEL_REVISION not in (pod.obj["metadata"].get("labels") or {})


def dynamo_labels(endpoint: Endpoint, component: str) -> dict[str, str]:
    """The labels that Dynamo's discovery selects by, and its own operator sets."""
    return {
        "nvidia.com/dynamo-namespace": dynamo_namespace(endpoint),
        "nvidia.com/dynamo-component": component,
        "nvidia.com/dynamo-component-type": component,
        "nvidia.com/dynamo-discovery-backend": "kubernetes",
        "nvidia.com/dynamo-discovery-enabled": "true",
    }


def pod_security(options: Options) -> dict[str, Any]:
    """Pod Security "restricted"."""
    fixed = ("runAsUser", "runAsGroup", "fsGroup") if options.fixed_user else ()
    return {
        "runAsNonRoot": True,
        **dict.fromkeys(fixed, _USER),
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
