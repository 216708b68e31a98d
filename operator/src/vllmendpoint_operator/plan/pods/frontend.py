"""The frontend: Dynamo's OpenAI HTTP server, which routes only to the workers of one endpoint. Pure."""

from typing import Any, Final

from vllmendpoint_api import names
from vllmendpoint_operator.components import FRONTEND, FRONTEND_STARTUP_SECONDS, frontend_name
from vllmendpoint_operator.observe.snapshot import Endpoint
from vllmendpoint_operator.plan.options import Options

from .containers import (
    container_security,
    escape_variable_references,
    http_get,
    image,
    pod_security,
    resources,
)
from .dynamo import RESPONSE_PORT, base_namespace, dynamo_env, dynamo_labels, namespace_prefix
from .user_template import merge_user_template

__all__ = ["START_SCRIPT", "deployment", "pod_template", "selects_by_prefix", "with_prefix"]

_DRAIN_SECONDS: Final = 5
_PREFIX_VARIABLE: Final = "DYN_NAMESPACE_PREFIX"
START_SCRIPT: Final = """\
import os, socket, sys
pod = os.environ.get("POD_IP", "")
try:
    with socket.socket(socket.AF_INET6) as any_address:
        any_address.bind(("::", 0))
        dual_stack = not any_address.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
except OSError:
    dual_stack = False
hosts = {"DYN_HTTP_HOST": "::" if dual_stack or ":" in pod else "0.0.0.0"}
if ":" in pod:
    planes = ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST")
    hosts |= dict.fromkeys(planes, pod)
os.environ.update({name: host for name, host in hosts.items() if not os.environ.get(name)})
os.execv(sys.executable, [sys.executable, "-m", "dynamo.frontend", *sys.argv[1:]])
"""
"""Starts Dynamo's frontend. Without DYN_HTTP_HOST it listens on IPv4 only.

The pod detects whether its kernel supports IPv6, because nodes may differ. The script uses only the standard
library, because the image may be older than the operator.
"""


def deployment(endpoint: Endpoint, template: dict[str, Any], min_ready_seconds: int) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": frontend_name(endpoint), "labels": endpoint.labels(FRONTEND)},
        "spec": {
            "replicas": endpoint.spec.frontend.replicas,
            "paused": False,
            "selector": {"matchLabels": endpoint.selector(FRONTEND)},
            "revisionHistoryLimit": 2,
            # The API server does not store 0.
            **({"minReadySeconds": min_ready_seconds} if min_ready_seconds else {}),
            "template": template,
        },
    }


def pod_template(endpoint: Endpoint, options: Options) -> dict[str, Any]:
    """Raises PlanError if the user's podTemplate conflicts with what the operator sets."""
    pod: dict[str, Any] = {
        "serviceAccountName": frontend_name(endpoint),
        "automountServiceAccountToken": True,
        "securityContext": pod_security(options),
        "enableServiceLinks": False,
        "containers": [escape_variable_references(_container(endpoint, options))],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    if endpoint.spec.worker.image_pull_secrets:
        pod["imagePullSecrets"] = [item.wire() for item in endpoint.spec.worker.image_pull_secrets]
    labels = {
        **endpoint.labels(FRONTEND),
        **dynamo_labels(endpoint, FRONTEND),
        names.LABEL_DRAINS: "true",
    }
    template = {"metadata": {"labels": labels}, "spec": pod}
    merged = merge_user_template(template, endpoint.spec.frontend.pod_template, "frontend.podTemplate")
    _fit_drain(merged["spec"])
    return merged


def _container(endpoint: Endpoint, options: Options) -> dict[str, Any]:
    return {
        "name": names.MAIN_CONTAINER,
        "image": image(endpoint, options),
        "command": ["python3", "-c", START_SCRIPT],
        "args": ["--http-port", str(names.FRONTEND_PORT)],
        "env": [
            *dynamo_env({_PREFIX_VARIABLE: namespace_prefix(endpoint)}),
            {"name": "DYN_TCP_RESPONSE_STREAM_PORT", "value": str(RESPONSE_PORT)},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
        ],
        "ports": [{"name": "http", "containerPort": names.FRONTEND_PORT, "protocol": "TCP"}],
        **_probes(),
        # SIGTERM ends the frontend without draining. During the sleep all nodes remove it from the Service.
        "lifecycle": {"preStop": {"sleep": {"seconds": _DRAIN_SECONDS}}},
        # The termination message, which the status quotes, has the last lines of the log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": container_security(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        **resources(endpoint.spec.frontend.resources),
    }


def _fit_drain(pod: dict[str, Any]) -> None:
    """Adjust the preStop sleep to the user's podTemplate, where the API server rejects both together.

    A hook of the user replaces the sleep, and a shorter grace period shortens it.
    """
    grace = pod.get("terminationGracePeriodSeconds")
    for container in pod["containers"]:
        hook = (container.get("lifecycle") or {}).get("preStop") or {}
        if hook.get("sleep") != {"seconds": _DRAIN_SECONDS}:
            continue
        if len(hook) > 1:
            del hook["sleep"]
        elif isinstance(grace, int) and grace < _DRAIN_SECONDS:
            if grace > 0:
                hook["sleep"] = {"seconds": grace}
            else:
                del container["lifecycle"]["preStop"]


def _probes() -> dict[str, Any]:
    return {
        "startupProbe": {
            **http_get("/live", "http"),
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": FRONTEND_STARTUP_SECONDS,
        },
        # It responds shortly before it has discovered the workers; three successes take two seconds.
        "readinessProbe": {
            **http_get("/health", "http"),
            "periodSeconds": 1,
            "timeoutSeconds": 3,
            "successThreshold": 3,
            "failureThreshold": 15,
        },
        "livenessProbe": {
            **http_get("/live", "http"),
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
    }


def with_prefix(endpoint: Endpoint, template: dict[str, Any], *, include_legacy: bool) -> dict[str, Any]:
    """``template`` with the prefix of the Dynamo namespaces that the frontend accepts.

    With ``include_legacy`` the prefix has no underscore. Then it matches the legacy workers, but also
    endpoints whose names begin with this one's. Use it only for the rollout that replaces the legacy workers.
    """
    prefix = base_namespace(endpoint) if include_legacy else namespace_prefix(endpoint)
    containers = [
        {**container, "env": [_with_prefix(item, prefix) for item in container["env"]]}
        if container["name"] == names.MAIN_CONTAINER
        else container
        for container in template["spec"]["containers"]
    ]
    return {**template, "spec": {**template["spec"], "containers": containers}}


def _with_prefix(variable: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {**variable, "value": prefix} if variable["name"] == _PREFIX_VARIABLE else variable


def selects_by_prefix(template: dict[str, Any]) -> bool:
    """Whether the frontend accepts all Dynamo namespaces of an endpoint; before revisions it accepted one."""
    return any(
        variable["name"] == _PREFIX_VARIABLE
        for container in template["spec"]["containers"]
        if container["name"] == names.MAIN_CONTAINER
        for variable in container.get("env") or ()
    )
