"""The workers: their pod template, and the Deployment around it."""

import math
from typing import Any, Final

from vllmendpoint_api import FrontendMode, ModelType, Reason, WorkerSpec, names
from vllmendpoint_operator.components import WORKER, WORKER_GRACE_SECONDS, workers_name
from vllmendpoint_operator.errors import PlanError
from vllmendpoint_operator.observe.snapshot import Endpoint
from vllmendpoint_operator.plan.configuration import settings_name
from vllmendpoint_operator.plan.options import Options

from .cache_volume import cache_volume
from .common import (
    REQUEST_PORT,
    container_security,
    dynamo_env,
    dynamo_labels,
    namespace_prefix,
    pod_security,
    resources,
    verbatim,
)
from .template import customised

__all__ = ["account_name", "deployment", "image", "pod_template"]

_STARTUP_PERIOD: Final = 5
_ROUTED_SECONDS: Final = 5
"""From a worker's readiness until every frontend routes to it: less than a second on an idle node.
Only then an older worker is removed: a frontend that learns of both at once drops the old one first."""
_CACHE_DIR: Final = "/var/cache/vllmendpoint"
_MODELS_DIR: Final = "/var/lib/vllmendpoint/models"
_S3_DIR: Final = f"{_CACHE_DIR}/s3"
_MODEL_PATH_ENV: Final = "SAGEMAKER_MODEL_PATH"
_MODEL_PATH: Final = "/opt/ml/model"
"""Where SageMaker's containers have the model's data (guide, "Key Environment Variables")."""


def account_name(endpoint: Endpoint) -> str:
    """The workers' ServiceAccount: the user's, else one that is made."""
    return endpoint.spec.worker.service_account_name or workers_name(endpoint)


def image(endpoint: Endpoint, options: Options) -> str:
    return endpoint.spec.worker.image or options.worker_image


def pod_template(endpoint: Endpoint, options: Options, config: str | None) -> dict[str, Any]:
    """The worker's pod template; ``config`` names the ConfigMap with the engine's config file."""
    spec = endpoint.spec
    worker = spec.worker
    path, claim = _model(spec.model.uri)
    volumes: list[dict[str, Any]] = [
        {"name": "settings", "configMap": {"name": settings_name(endpoint)}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(worker.shared_memory_size)}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "cache", **cache_volume(endpoint)},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "settings", "mountPath": names.SETTINGS_DIR, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "cache", "mountPath": _CACHE_DIR},
    ]
    env = [
        *dynamo_env({"DYN_NAMESPACE": namespace_prefix(endpoint)}),
        {"name": names.ENV_SETTINGS_DIR, "value": names.SETTINGS_DIR},
        {"name": names.ENV_FRONTEND_MODE, "value": FrontendMode(spec.frontend.mode).value},
        {"name": names.ENV_REPORT_PORT, "value": str(names.REPORT_PORT)},
        {"name": names.ENV_SAGEMAKER_PORT, "value": str(names.SAGEMAKER_PORT)},
        {"name": "DYN_SYSTEM_PORT", "value": str(names.SYSTEM_PORT)},
        {"name": "DYN_TCP_RPC_PORT", "value": str(REQUEST_PORT)},
        {
            "name": "VLLM_HOST_IP",
            "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}},
        },
        {
            "name": names.ENV_CPU_REQUEST,
            "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1"}},
        },
        {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
        {"name": "HF_HOME", "value": _CACHE_DIR},
        {"name": "VLLM_CACHE_ROOT", "value": f"{_CACHE_DIR}/vllm"},
        {"name": "XDG_CACHE_HOME", "value": "/tmp/.cache"},
    ]
    if spec.model.uri.startswith("s3://"):
        env.append({"name": names.ENV_MODEL_URI, "value": spec.model.uri})
    if spec.model.type is not None:
        env.append({"name": names.ENV_MODEL_TYPE, "value": ModelType(spec.model.type).value})
    if (token := spec.model.token_secret_ref) is not None:
        env.append(
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": token.name, "key": token.key}}}
        )
    if config is not None:
        volumes.append({"name": "engine-config", "configMap": {"name": config}})
        mounts.append({"name": "engine-config", "mountPath": names.CONFIG_DIR, "readOnly": True})
        env.append({"name": names.ENV_CONFIG_FILE, "value": f"{names.CONFIG_DIR}/{names.CONFIG_FILE}"})
    if claim is not None:
        volumes.append({"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
        mounts.append({"name": "model", "mountPath": f"{_MODELS_DIR}/{claim}", "readOnly": True})
    if spec.model.artifacts_uri is not None:
        volumes.append({"name": "artifacts", "emptyDir": {}})
        mounts.append({"name": "artifacts", "mountPath": _artifacts_path(worker)})
        env.append({"name": names.ENV_ARTIFACTS_URI, "value": spec.model.artifacts_uri})
        env.append({"name": _MODEL_PATH_ENV, "value": _MODEL_PATH})
    # A default of ours gives way: server-side apply refuses one name twice.
    theirs = {item.name for item in worker.env}
    env = [item for item in env if item["name"] not in theirs]
    env += [item.wire() for item in worker.env]

    main: dict[str, Any] = {
        "name": names.MAIN_CONTAINER,
        "image": image(endpoint, options),
        # No command: the image's entry point starts the worker below an init that reaps.
        "args": [
            # In this order: --served-model-name takes all that follows, up to the next option.
            *("--served-model-name", endpoint.model_name, "--model", path),
            *(("--revision", spec.model.revision) if spec.model.revision else ()),
            *spec.engine.args,
        ],
        "env": env,
        "ports": [
            {"name": "sagemaker", "containerPort": names.SAGEMAKER_PORT, "protocol": "TCP"},
            {"name": "system", "containerPort": names.SYSTEM_PORT, "protocol": "TCP"},
            {"name": "report", "containerPort": names.REPORT_PORT, "protocol": "TCP"},
        ],
        "startupProbe": {
            **_get("/started"),
            "periodSeconds": _STARTUP_PERIOD,
            "timeoutSeconds": 3,
            "failureThreshold": math.ceil(worker.startup_timeout_seconds / _STARTUP_PERIOD),
        },
        # The verdict has its own thresholds: readiness follows it at once.
        "readinessProbe": {
            **_get("/ready"),
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": 1,
        },
        # Not the verdict, on which the process ends itself: only that there is one which could. Ten minutes,
        # since code of the customer's may hold the interpreter for long, and a start is costly.
        "livenessProbe": {
            **_get("/live"),
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 60,
        },
        # The last lines of the log say why it ended.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": container_security(),
        "volumeMounts": mounts,
    }
    if found := resources(worker.resources):
        main["resources"] = found
    if worker.env_from:
        main["envFrom"] = [item.wire() for item in worker.env_from]

    pod: dict[str, Any] = {
        "serviceAccountName": account_name(endpoint),
        "automountServiceAccountToken": True,
        "securityContext": pod_security(options),
        "terminationGracePeriodSeconds": WORKER_GRACE_SECONDS,
        "enableServiceLinks": False,
        "containers": [verbatim(main)],
        "volumes": volumes,
    }
    if worker.image_pull_secrets:
        pod["imagePullSecrets"] = [item.wire() for item in worker.image_pull_secrets]
    rendered = {
        "metadata": {"labels": {**endpoint.labels(WORKER), **dynamo_labels(endpoint, WORKER)}},
        "spec": pod,
    }
    return customised(rendered, worker.pod_template, "worker.podTemplate")


def deployment(endpoint: Endpoint, template: dict[str, Any]) -> dict[str, Any]:
    spec = endpoint.spec
    rolling = spec.strategy.rolling_update
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": workers_name(endpoint), "labels": endpoint.labels(WORKER)},
        "spec": {
            "replicas": spec.replicas,
            "paused": False,  # whoever pauses a rollout here has it undone: spec.paused is the endpoint's
            "selector": {"matchLabels": endpoint.selector(WORKER)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": rolling.max_unavailable, "maxSurge": rolling.max_surge},
            },
            "minReadySeconds": _ROUTED_SECONDS,
            "progressDeadlineSeconds": spec.worker.startup_timeout_seconds + 600,
            "revisionHistoryLimit": 2,
            "template": template,
        },
    }


def _get(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "report", "scheme": "HTTP"}}


def _model(uri: str) -> tuple[str, str | None]:
    """What the engine gets as ``--model``, and the claim to mount for it."""
    scheme, _, rest = uri.partition("://")
    if scheme == "pvc":
        claim, _, path = rest.partition("/")
        return f"{_MODELS_DIR}/{claim}/{path}".rstrip("/"), claim
    if scheme == "s3":
        return f"{_S3_DIR}/{rest}".rstrip("/"), None
    return rest, None


def _artifacts_path(worker: WorkerSpec) -> str:
    """Where the worker puts the model's data: its own SAGEMAKER_MODEL_PATH, which needs a volume.

    Raises PlanError where that cannot be told before the pod runs.
    """
    theirs = next((item for item in worker.env if item.name == _MODEL_PATH_ENV), None)
    if theirs is None or (theirs.value_from is None and not theirs.value):
        return _MODEL_PATH
    if not (theirs.value or "").startswith("/"):
        raise PlanError(
            Reason.INVALID_SPEC,
            f"worker.env: {_MODEL_PATH_ENV} must be an absolute path in value, not valueFrom, "
            "because the operator mounts the volume for model.artifactsUri there",
        )
    return str(theirs.value)
