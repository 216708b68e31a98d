"""The workers: their Deployments and their pod templates. Pure."""

import math
from dataclasses import dataclass
from typing import Any, Final

from vllmendpoint_api import FrontendMode, ModelType, Reason, Resources, VLLMEndpointSpec, WorkerSpec, names
from vllmendpoint_operator.components import (
    PREFILL,
    STARTUP_PERIOD_SECONDS,
    WORKER,
    WORKER_GRACE_SECONDS,
    WorkerPool,
    workers_name,
)
from vllmendpoint_operator.errors import PlanError
from vllmendpoint_operator.observe.snapshot import Endpoint
from vllmendpoint_operator.plan.configuration import settings_name
from vllmendpoint_operator.plan.options import Options

from .cache_volume import cache_volume
from .containers import (
    container_security,
    escape_variable_references,
    http_get,
    pod_security,
    progress_deadline_seconds,
    resources,
)
from .dynamo import REQUEST_PORT, dynamo_env, dynamo_labels, namespace_prefix
from .routing import KV_EVENT_ARGUMENTS, worker_routing_env
from .user_template import merge_user_template

__all__ = ["account_name", "deployment", "pod_template"]

_MIN_READY_SECONDS: Final = 5
"""Time from a worker's readiness until every frontend routes to it; measured: less than 1 s on an idle node.
The Deployment removes an older worker only after this time. A frontend that receives both changes together
removes the older worker first, and would have no worker."""
_CACHE_DIR: Final = "/var/cache/vllmendpoint"
_CLAIMS_DIR: Final = "/var/lib/vllmendpoint/models"
_S3_DIR: Final = f"{_CACHE_DIR}/s3"
_PREFILL_TEMPLATE: Final = "prefill.podTemplate"
_DISAGGREGATION_MODES: Final = {WORKER: "decode", PREFILL: "prefill"}
"""Values of Dynamo's option, with ``spec.prefill``."""
_MODEL_PATH_VARIABLE: Final = "SAGEMAKER_MODEL_PATH"
_MODEL_PATH: Final = "/opt/ml/model"
"""Default directory of the model's data in SageMaker's containers (guide, "Key Environment Variables")."""


@dataclass(frozen=True, slots=True)
class _Volume:
    """A volume of the pod, mounted in the main container."""

    name: str
    source: dict[str, Any]
    mount_path: str
    read_only: bool = False

    @property
    def volume(self) -> dict[str, Any]:
        return {"name": self.name, **self.source}

    @property
    def mount(self) -> dict[str, Any]:
        mount: dict[str, Any] = {"name": self.name, "mountPath": self.mount_path}
        return mount | ({"readOnly": True} if self.read_only else {})


def account_name(endpoint: Endpoint) -> str:
    """Name of the workers' ServiceAccount: the user's, or the one that the operator creates."""
    return endpoint.spec.worker.service_account_name or workers_name(endpoint)


def deployment(endpoint: Endpoint, pool: WorkerPool, template: dict[str, Any]) -> dict[str, Any]:
    rolling = endpoint.spec.strategy.rolling_update
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": pool.name, "labels": endpoint.labels(pool.component)},
        "spec": {
            "replicas": pool.replicas,
            "paused": False,  # reverts `kubectl rollout pause`: users set spec.paused of the endpoint
            "selector": {"matchLabels": endpoint.selector(pool.component)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": rolling.max_unavailable, "maxSurge": rolling.max_surge},
            },
            "minReadySeconds": _MIN_READY_SECONDS,
            "progressDeadlineSeconds": progress_deadline_seconds(endpoint),
            "revisionHistoryLimit": 2,
            "template": template,
        },
    }


def pod_template(
    endpoint: Endpoint, options: Options, config: str | None, component: str = WORKER
) -> dict[str, Any]:
    """``config``: name of the ConfigMap with the engine's config file; None if there is none.

    ``component``: ``worker`` or ``prefill``.

    Raises PlanError if the spec or the user's podTemplate conflicts with what the operator sets.
    """
    worker = endpoint.spec.worker
    volumes = _volumes(endpoint, config)
    pod: dict[str, Any] = {
        "serviceAccountName": account_name(endpoint),
        "automountServiceAccountToken": True,
        "securityContext": pod_security(options),
        "terminationGracePeriodSeconds": WORKER_GRACE_SECONDS,
        "enableServiceLinks": False,
        "containers": [escape_variable_references(_container(endpoint, options, config, volumes, component))],
        "volumes": [volume.volume for volume in volumes],
    }
    if worker.image_pull_secrets:
        pod["imagePullSecrets"] = [item.wire() for item in worker.image_pull_secrets]
    template = {
        "metadata": {"labels": {**endpoint.labels(component), **dynamo_labels(endpoint, component)}},
        "spec": pod,
    }
    merged = merge_user_template(template, worker.pod_template, "worker.podTemplate")
    prefill = endpoint.spec.prefill if component == PREFILL else None
    return merged if prefill is None else merge_user_template(merged, prefill.pod_template, _PREFILL_TEMPLATE)


def _container(
    endpoint: Endpoint, options: Options, config: str | None, volumes: list[_Volume], component: str
) -> dict[str, Any]:
    worker = endpoint.spec.worker
    container = {
        "name": names.MAIN_CONTAINER,
        "image": endpoint.spec.worker.image or options.worker_image,
        # No command: the image's entry point starts the worker under an init process that reaps children.
        "args": _arguments(endpoint, component),
        "env": _environment(endpoint, config),
        "ports": [
            {"name": "sagemaker", "containerPort": names.SAGEMAKER_PORT, "protocol": "TCP"},
            {"name": "system", "containerPort": names.SYSTEM_PORT, "protocol": "TCP"},
            {"name": "report", "containerPort": names.REPORT_PORT, "protocol": "TCP"},
        ],
        **_probes(worker),
        # The termination message, which the status quotes, has the last lines of the log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": container_security(),
        "volumeMounts": [volume.mount for volume in volumes],
        **resources(_resources(endpoint.spec, component)),
    }
    if worker.env_from:
        container["envFrom"] = [item.wire() for item in worker.env_from]
    return container


def _resources(spec: VLLMEndpointSpec, component: str) -> Resources:
    if component == PREFILL and spec.prefill is not None and spec.prefill.resources is not None:
        return spec.prefill.resources
    return spec.worker.resources


def _arguments(endpoint: Endpoint, component: str) -> list[str]:
    model, prefill = endpoint.spec.model, endpoint.spec.prefill
    return [
        # In this order: --served-model-name takes all values up to the next option.
        *("--served-model-name", endpoint.model_name, "--model", _model_path(model.uri)),
        *(("--revision", model.revision) if model.revision else ()),
        *(KV_EVENT_ARGUMENTS if worker_routing_env(endpoint.spec.frontend.routing) else ()),
        *(() if prefill is None else ("--disaggregation-mode", _DISAGGREGATION_MODES[component])),
        *endpoint.spec.engine.args,
        *(prefill.engine.args if prefill is not None and component == PREFILL else ()),
    ]


def _environment(endpoint: Endpoint, config: str | None) -> list[dict[str, Any]]:
    """A variable of the user replaces the operator's: server-side apply rejects duplicate names."""
    env = [*_default_environment(endpoint), *_spec_environment(endpoint.spec, config)]
    user_env = endpoint.spec.worker.env
    overridden = {item.name for item in user_env}
    return [*(item for item in env if item["name"] not in overridden), *(item.wire() for item in user_env)]


def _default_environment(endpoint: Endpoint) -> list[dict[str, Any]]:
    return [
        *dynamo_env({"DYN_NAMESPACE": namespace_prefix(endpoint)}),
        # The worker of the other role connects to this address to read KV caches.
        *([] if endpoint.spec.prefill is None else [_pod_address("VLLM_NIXL_SIDE_CHANNEL_HOST")]),
        {"name": names.ENV_SETTINGS_DIR, "value": names.SETTINGS_DIR},
        {"name": names.ENV_FRONTEND_MODE, "value": FrontendMode(endpoint.spec.frontend.mode).value},
        {"name": names.ENV_REPORT_PORT, "value": str(names.REPORT_PORT)},
        {"name": names.ENV_SAGEMAKER_PORT, "value": str(names.SAGEMAKER_PORT)},
        {"name": "DYN_SYSTEM_PORT", "value": str(names.SYSTEM_PORT)},
        {"name": "DYN_TCP_RPC_PORT", "value": str(REQUEST_PORT)},
        _pod_address("VLLM_HOST_IP"),
        {
            "name": names.ENV_CPU_REQUEST,
            "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1"}},
        },
        {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
        {"name": "HF_HOME", "value": _CACHE_DIR},
        {"name": "VLLM_CACHE_ROOT", "value": f"{_CACHE_DIR}/vllm"},
        {"name": "XDG_CACHE_HOME", "value": "/tmp/.cache"},
    ]


def _pod_address(name: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}}


def _spec_environment(spec: VLLMEndpointSpec, config: str | None) -> list[dict[str, Any]]:
    model = spec.model
    env: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in worker_routing_env(spec.frontend.routing).items()
    ]
    if model.uri.startswith("s3://"):
        env.append({"name": names.ENV_MODEL_URI, "value": model.uri})
    if model.type is not None:
        env.append({"name": names.ENV_MODEL_TYPE, "value": ModelType(model.type).value})
    if (token := model.token_secret_ref) is not None:
        secret = {"name": token.name, "key": token.key}
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": secret}})
    if config is not None:
        env.append({"name": names.ENV_CONFIG_FILE, "value": f"{names.CONFIG_DIR}/{names.CONFIG_FILE}"})
    if model.artifacts_uri is not None:
        env.append({"name": names.ENV_ARTIFACTS_URI, "value": model.artifacts_uri})
        env.append({"name": _MODEL_PATH_VARIABLE, "value": _MODEL_PATH})
    return env


def _volumes(endpoint: Endpoint, config: str | None) -> list[_Volume]:
    spec = endpoint.spec
    shared_memory = {"medium": "Memory", "sizeLimit": str(spec.worker.shared_memory_size)}
    settings = {"configMap": {"name": settings_name(endpoint)}}
    volumes = [
        _Volume("settings", settings, names.SETTINGS_DIR, read_only=True),
        _Volume("shm", {"emptyDir": shared_memory}, "/dev/shm"),
        _Volume("tmp", {"emptyDir": {}}, "/tmp"),
        _Volume("cache", cache_volume(endpoint), _CACHE_DIR),
    ]
    if config is not None:
        volumes.append(
            _Volume("engine-config", {"configMap": {"name": config}}, names.CONFIG_DIR, read_only=True)
        )
    if (claim := _model_claim(spec.model.uri)) is not None:
        source = {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        volumes.append(_Volume("model", source, f"{_CLAIMS_DIR}/{claim}", read_only=True))
    if spec.model.artifacts_uri is not None:
        volumes.append(_Volume("artifacts", {"emptyDir": {}}, _artifacts_path(spec.worker)))
    return volumes


def _probes(worker: WorkerSpec) -> dict[str, Any]:
    return {
        "startupProbe": {
            **http_get("/started", "report"),
            "periodSeconds": STARTUP_PERIOD_SECONDS,
            "timeoutSeconds": 3,
            "failureThreshold": math.ceil(worker.startup_timeout_seconds / STARTUP_PERIOD_SECONDS),
        },
        # One failure: the worker's verdict has thresholds of its own.
        "readinessProbe": {
            **http_get("/ready", "report"),
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": 1,
        },
        # It checks only that the process responds; a stalled worker exits without it. The timeout of 10
        # minutes is long because user code may hold Python's global lock, and a restart is expensive.
        "livenessProbe": {
            **http_get("/live", "report"),
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 60,
        },
    }


def _model_path(uri: str) -> str:
    """The value of the engine's ``--model``."""
    scheme, _, rest = uri.partition("://")
    directory = {"pvc": f"{_CLAIMS_DIR}/", "s3": f"{_S3_DIR}/"}.get(scheme)
    return rest if directory is None else f"{directory}{rest}".rstrip("/")


def _model_claim(uri: str) -> str | None:
    """The PersistentVolumeClaim with the model."""
    scheme, _, rest = uri.partition("://")
    return rest.partition("/")[0] if scheme == "pvc" else None


def _artifacts_path(worker: WorkerSpec) -> str:
    """Where to mount the volume for ``model.artifactsUri``: the worker's SAGEMAKER_MODEL_PATH.

    Raises PlanError if the operator cannot determine the value before the pod runs.
    """
    variable = next((item for item in worker.env if item.name == _MODEL_PATH_VARIABLE), None)
    if variable is None or (variable.value_from is None and not variable.value):
        return _MODEL_PATH
    if not (variable.value or "").startswith("/"):
        raise PlanError(
            Reason.INVALID_SPEC,
            f"worker.env: {_MODEL_PATH_VARIABLE} must be an absolute path in value, not valueFrom, "
            "because the operator mounts the volume for model.artifactsUri there.",
        )
    return str(variable.value)
