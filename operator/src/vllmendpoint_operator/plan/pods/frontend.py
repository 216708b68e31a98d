"""The frontend: Dynamo's OpenAI HTTP server, for this endpoint's workers alone."""

from typing import Any, Final

from vllmendpoint_api import names
from vllmendpoint_operator.components import FRONTEND, FRONTEND_STARTUP_SECONDS, frontend_name
from vllmendpoint_operator.observe.snapshot import Endpoint
from vllmendpoint_operator.plan.options import Options

from .common import (
    RESPONSE_PORT,
    container_security,
    dynamo_env,
    dynamo_labels,
    dynamo_namespace,
    namespace_prefix,
    pod_security,
    resources,
    verbatim,
)
from .template import customised
from .workers import image

__all__ = [
    "START",
    "accepting_plain_workers",
    "accepts_a_prefix",
    "deployment",
    "pod_template",
]

_DRAIN_SECONDS: Final = 5
_PREFIX: Final = "DYN_NAMESPACE_PREFIX"
START: Final = """\
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
"""Starts Dynamo's frontend, which listens on IPv4 only unless it is given another address. The pod itself
finds out whether its kernel has IPv6, because nodes may differ. The program needs nothing but Python, because
the image may be older than the operator.
"""


def pod_template(endpoint: Endpoint, options: Options) -> dict[str, Any]:
    frontend = endpoint.spec.frontend
    main: dict[str, Any] = {
        "name": names.MAIN_CONTAINER,
        "image": image(endpoint, options),
        "command": ["python3", "-c", START],
        "args": ["--http-port", str(names.FRONTEND_PORT)],
        "env": [
            *dynamo_env({_PREFIX: namespace_prefix(endpoint)}),
            {"name": "DYN_TCP_RESPONSE_STREAM_PORT", "value": str(RESPONSE_PORT)},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
        ],
        "ports": [{"name": "http", "containerPort": names.FRONTEND_PORT, "protocol": "TCP"}],
        "startupProbe": {
            **_get("/live"),
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": FRONTEND_STARTUP_SECONDS,
        },
        # It answers a moment before it has found the workers, so it is ready after two seconds of answers.
        "readinessProbe": {
            **_get("/health"),
            "periodSeconds": 1,
            "timeoutSeconds": 3,
            "successThreshold": 3,
            "failureThreshold": 15,
        },
        "livenessProbe": {
            **_get("/live"),
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        # SIGTERM ends it at once; until then every node has taken it out of the Service.
        "lifecycle": {"preStop": {"sleep": {"seconds": _DRAIN_SECONDS}}},
        # The last lines of the log say why it ended.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": container_security(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    if found := resources(frontend.resources):
        main["resources"] = found
    pod: dict[str, Any] = {
        "serviceAccountName": frontend_name(endpoint),
        "automountServiceAccountToken": True,
        "securityContext": pod_security(options),
        "enableServiceLinks": False,
        "containers": [verbatim(main)],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    if endpoint.spec.worker.image_pull_secrets:
        pod["imagePullSecrets"] = [item.wire() for item in endpoint.spec.worker.image_pull_secrets]
    rendered = {
        "metadata": {
            "labels": {
                **endpoint.labels(FRONTEND),
                **dynamo_labels(endpoint, FRONTEND),
                names.LABEL_DRAINS: "true",
            }
        },
        "spec": pod,
    }
    return customised(rendered, frontend.pod_template, "frontend.podTemplate")


def accepting_plain_workers(endpoint: Endpoint, template: dict[str, Any], *, accept: bool) -> dict[str, Any]:
    """``template`` with a prefix that matches workers in the endpoint's plain Dynamo namespace too, or not.

    Without the underscore the prefix also matches endpoints whose names begin with this one's: it is only for
    the rollout that replaces the last workers of an operator without revisions.
    """
    prefix = dynamo_namespace(endpoint) if accept else namespace_prefix(endpoint)
    containers = [
        {
            **one,
            "env": [{**item, "value": prefix} if item["name"] == _PREFIX else item for item in one["env"]],
        }
        if one["name"] == names.MAIN_CONTAINER
        else one
        for one in template["spec"]["containers"]
    ]
    return {**template, "spec": {**template["spec"], "containers": containers}}


def accepts_a_prefix(template: dict[str, Any]) -> bool:
    """Whether it accepts all Dynamo namespaces of an endpoint, and not one alone, as before revisions."""
    return any(
        item["name"] == _PREFIX
        for one in template["spec"]["containers"]
        if one["name"] == names.MAIN_CONTAINER
        for item in one.get("env") or ()
    )


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
            # The API server stores no 0.
            **({"minReadySeconds": min_ready_seconds} if min_ready_seconds else {}),
            "template": template,
        },
    }


def _get(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "http", "scheme": "HTTP"}}
