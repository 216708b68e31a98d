"""What Dynamo needs of the pods: namespaces, discovery labels and environment.

A frontend accepts only workers with the same model card in one Dynamo namespace, and ignores all others.
Therefore each revision of the worker template has its own namespace. All namespaces of an endpoint share a
prefix; the frontend accepts every namespace with that prefix:

    prefix of smollm in team-a      team-a-smollm_
    workers of revision 5c1f0a9b2e  team-a-smollm_-5c1f0a9b2e[-<digest of the model's files>]

Names in Kubernetes contain no underscore, so the prefix of one endpoint never matches another endpoint.

Earlier versions of the operator had no revisions. Their workers, called legacy workers here, are in the base
namespace ``team-a-smollm``.
"""

from collections.abc import Mapping
from typing import Any, Final

from vllmendpoint_api import names
from vllmendpoint_operator.observe.snapshot import Endpoint, Pod
from vllmendpoint_operator.plan.configuration import digest

__all__ = [
    "REQUEST_PORT",
    "RESPONSE_PORT",
    "base_namespace",
    "dynamo_env",
    "dynamo_labels",
    "is_legacy_template",
    "is_legacy_worker",
    "namespace_prefix",
    "with_namespace_suffix",
]

REQUEST_PORT: Final = 9092
"""Port of Dynamo's request plane on the worker. It is fixed, so that a NetworkPolicy can name it."""
RESPONSE_PORT: Final = 9093
"""Port of Dynamo's response plane on the frontend. The worker connects to it."""
_MAX_LABEL_LENGTH: Final = 63


def dynamo_env(namespace: dict[str, str]) -> list[dict[str, Any]]:
    """Environment that both components need. ``namespace``: {variable: Dynamo namespace or its prefix}."""
    return [
        {"name": "POD_NAME", **_field("metadata.name")},
        {"name": "POD_NAMESPACE", **_field("metadata.namespace")},
        {"name": "POD_UID", **_field("metadata.uid")},
        {"name": "POD_IP", **_field("status.podIP")},
        *({"name": name, "value": value} for name, value in namespace.items()),
        {"name": "DYN_DISCOVERY_BACKEND", "value": "kubernetes"},
        {"name": "DYN_REQUEST_PLANE", "value": "tcp"},
        {"name": "DYN_EVENT_PLANE", "value": "zmq"},
        {"name": "HOME", "value": "/tmp"},
    ]


def _field(path: str) -> dict[str, Any]:
    return {"valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def base_namespace(endpoint: Endpoint) -> str:
    """Dynamo namespace of legacy workers. It is also the value of a label: at most 63 characters."""
    full = f"{endpoint.namespace}-{endpoint.name}"
    if len(full) <= _MAX_LABEL_LENGTH:
        return full
    return f"{full[: _MAX_LABEL_LENGTH - 11]}-{digest(full)}"


def namespace_prefix(endpoint: Endpoint) -> str:
    """Prefix of the Dynamo namespaces of the endpoint's workers."""
    return f"{base_namespace(endpoint)}_"


def with_namespace_suffix(templates: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The complete pod templates of all workers, by component, in a Dynamo namespace of their own.

    Equal templates share one. A decode worker never receives KV caches from prefill workers of another
    revision, which may have another layout: these are in another namespace.
    """
    found = list(templates.values())
    suffix = digest(found[0] if len(found) == 1 else found)
    return {component: _with_suffix(template, suffix) for component, template in templates.items()}


def _with_suffix(template: dict[str, Any], suffix: str) -> dict[str, Any]:
    metadata, spec = template["metadata"], template["spec"]
    variable = {"name": "DYN_NAMESPACE_WORKER_SUFFIX", "value": suffix}
    containers = [
        {**container, "env": [*container["env"], variable]}
        if container["name"] == names.MAIN_CONTAINER
        else container
        for container in spec["containers"]
    ]
    labels = {**metadata["labels"], names.LABEL_REVISION: suffix}
    return {
        **template,
        "metadata": {**metadata, "labels": labels},
        "spec": {**spec, "containers": containers},
    }


def is_legacy_worker(pod: Pod) -> bool:
    """Whether the worker is in :func:`base_namespace`."""
    return names.LABEL_REVISION not in (pod.obj["metadata"].get("labels") or {})


def is_legacy_template(template: dict[str, Any]) -> bool:
    """Whether workers of this pod template are legacy workers."""
    return names.LABEL_REVISION not in template["metadata"]["labels"]


def dynamo_labels(endpoint: Endpoint, component: str) -> dict[str, str]:
    """The labels that Dynamo's discovery selects by, as Dynamo's own operator sets them."""
    return {
        "nvidia.com/dynamo-namespace": base_namespace(endpoint),
        "nvidia.com/dynamo-component": component,
        "nvidia.com/dynamo-component-type": component,
        "nvidia.com/dynamo-discovery-backend": "kubernetes",
        "nvidia.com/dynamo-discovery-enabled": "true",
    }
