"""The frontend: Dynamo's OpenAI HTTP server, which routes only to the workers of one endpoint. Pure."""

from typing import Any, Final

from vllmendpoint_api import ModelType, names
from vllmendpoint_operator.components import FRONTEND, FRONTEND_STARTUP_SECONDS, frontend_name
from vllmendpoint_operator.observe.snapshot import REPORT_PORT_NAME, Endpoint
from vllmendpoint_operator.plan.configuration import settings_name
from vllmendpoint_operator.plan.options import Options

from .containers import (
    container_security,
    escape_variable_references,
    http_get,
    pod_security,
    progress_deadline_seconds,
    resources,
)
from .dynamo import RESPONSE_PORT, base_namespace, dynamo_env, dynamo_labels, namespace_prefix
from .routing import ROUTER_VARIABLES, router_env
from .user_template import merge_user_template

__all__ = ["deployment", "pod_template", "selects_by_prefix", "with_prefix"]

_GRACE_SECONDS: Final = 120
"""``terminationGracePeriodSeconds``, unless the user's podTemplate sets another."""
_DEFAULT_GRACE_SECONDS: Final = 30
"""Of Kubernetes, for a podTemplate that removes the field."""
_MAX_EXIT_SECONDS: Final = 15
"""Part of the grace period that is left for the end of the process after the drain."""
_PREFIX_VARIABLE: Final = "DYN_NAMESPACE_PREFIX"
_WITHOUT_WORKERS: Final = {
    "type": "RollingUpdate",
    "rollingUpdate": {"maxUnavailable": "100%", "maxSurge": "25%"},
}


def deployment(endpoint: Endpoint, template: dict[str, Any], min_ready_seconds: int) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": frontend_name(endpoint), "labels": endpoint.labels(FRONTEND)},
        "spec": {
            "replicas": endpoint.spec.frontend.replicas,
            "paused": False,
            "selector": {"matchLabels": endpoint.selector(FRONTEND)},
            # Without workers no frontend is ready, so a rollout must not wait for readiness.
            **({} if endpoint.spec.replicas else {"strategy": _WITHOUT_WORKERS}),
            "progressDeadlineSeconds": progress_deadline_seconds(endpoint),
            "revisionHistoryLimit": 2,
            # The API server does not store 0.
            **({"minReadySeconds": min_ready_seconds} if min_ready_seconds else {}),
            "template": template,
        },
    }


def pod_template(endpoint: Endpoint, options: Options) -> dict[str, Any]:
    """Raises PlanError if the user's podTemplate conflicts with what the operator sets."""
    settings = {
        "name": settings_name(endpoint),
        # Only the settings: the frontend does not need the handlers' script.
        "items": [{"key": names.SETTINGS_FILE, "path": names.SETTINGS_FILE}],
    }
    pod: dict[str, Any] = {
        "serviceAccountName": frontend_name(endpoint),
        "automountServiceAccountToken": True,
        "securityContext": pod_security(options),
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "enableServiceLinks": False,
        "containers": [escape_variable_references(_container(endpoint, options))],
        "volumes": [{"name": "settings", "configMap": settings}, {"name": "tmp", "emptyDir": {}}],
    }
    if endpoint.spec.worker.image_pull_secrets:
        pod["imagePullSecrets"] = [item.wire() for item in endpoint.spec.worker.image_pull_secrets]
    labels = {
        **endpoint.labels(FRONTEND),
        **dynamo_labels(endpoint, FRONTEND),
        names.LABEL_DRAINS: "true",
    }
    template = {"metadata": {"labels": labels}, "spec": pod}
    routing = router_env(endpoint.spec.frontend.routing)
    merged = merge_user_template(
        template,
        endpoint.spec.frontend.pod_template,
        "frontend.podTemplate",
        owned_variables=ROUTER_VARIABLES if routing else frozenset(),
    )
    return _with_variable(merged, names.ENV_DRAIN_SECONDS, str(_drain_seconds(merged["spec"])))


def _container(endpoint: Endpoint, options: Options) -> dict[str, Any]:
    return {
        "name": names.MAIN_CONTAINER,
        "image": endpoint.spec.frontend.image or options.frontend_image,
        "command": ["python3", "-m", "vllmendpoint_worker.frontend"],
        "args": ["--http-port", str(names.FRONTEND_PORT)],
        "env": _environment(endpoint),
        "ports": [
            {"name": "http", "containerPort": names.FRONTEND_PORT, "protocol": "TCP"},
            {"name": REPORT_PORT_NAME, "containerPort": names.REPORT_PORT, "protocol": "TCP"},
        ],
        **_probes(),
        # The termination message, which the status quotes, has the last lines of the log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "settings", "mountPath": names.SETTINGS_DIR, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
        **resources(endpoint.spec.frontend.resources),
    }


def _environment(endpoint: Endpoint) -> list[dict[str, Any]]:
    model_type = endpoint.spec.model.type
    values = {
        "DYN_TCP_RESPONSE_STREAM_PORT": str(RESPONSE_PORT),
        "DYN_MIGRATION_LIMIT": str(endpoint.spec.frontend.migration_limit),
        **router_env(endpoint.spec.frontend.routing),
        "HF_HUB_OFFLINE": "1",
        # On nodes where NVIDIA's runtime is the default, an image may request all GPUs by this variable.
        "NVIDIA_VISIBLE_DEVICES": "void",
        names.ENV_MODEL_NAME: endpoint.model_name,
        **({} if model_type is None else {names.ENV_MODEL_TYPE: ModelType(model_type).value}),
        names.ENV_SETTINGS_DIR: names.SETTINGS_DIR,
        names.ENV_REPORT_PORT: str(names.REPORT_PORT),
        names.ENV_DRAIN_SECONDS: "",  # depends on the user's podTemplate
    }
    return [
        *dynamo_env({_PREFIX_VARIABLE: namespace_prefix(endpoint)}),
        *({"name": name, "value": value} for name, value in values.items()),
    ]


def _drain_seconds(pod: dict[str, Any]) -> int:
    """Maximum seconds from SIGTERM until the frontend exits, within the grace period of the pod."""
    grace = pod.get("terminationGracePeriodSeconds", _DEFAULT_GRACE_SECONDS)
    if not isinstance(grace, int):
        grace = _GRACE_SECONDS  # the API server rejects the template
    return max(0, grace - min(_MAX_EXIT_SECONDS, grace // 4))


def _probes() -> dict[str, Any]:
    return {
        # It succeeds once the HTTP server has responded.
        "startupProbe": {
            **http_get("/started", REPORT_PORT_NAME),
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": FRONTEND_STARTUP_SECONDS,
        },
        # The frontend is ready while it has a route. It has tried the route, so one success suffices, and the
        # failures have a threshold of their own; the second failure tolerates one slow response.
        "readinessProbe": {
            **http_get("/ready", REPORT_PORT_NAME),
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": 2,
        },
        # A frontend whose HTTP server hangs exits after a minute. The port of that server may use TLS.
        "livenessProbe": {
            **http_get("/live", REPORT_PORT_NAME),
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
    return _with_variable(template, _PREFIX_VARIABLE, prefix)


def _with_variable(template: dict[str, Any], name: str, value: str) -> dict[str, Any]:
    """``template`` with another value of a variable that its main container has."""
    containers = [
        {
            **container,
            "env": [{**item, "value": value} if item["name"] == name else item for item in container["env"]],
        }
        if container["name"] == names.MAIN_CONTAINER
        else container
        for container in template["spec"]["containers"]
    ]
    return {**template, "spec": {**template["spec"], "containers": containers}}


def selects_by_prefix(template: dict[str, Any]) -> bool:
    """Whether the frontend accepts all Dynamo namespaces of an endpoint; before revisions it accepted one."""
    return any(
        variable["name"] == _PREFIX_VARIABLE
        for container in template["spec"]["containers"]
        if container["name"] == names.MAIN_CONTAINER
        for variable in container.get("env") or ()
    )
