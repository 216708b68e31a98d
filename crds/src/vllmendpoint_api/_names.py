"""Names that both halves of the system, the chart and the tests must spell alike."""

from typing import Final

GROUP: Final = "serving.vllmendpoint.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "VLLMEndpoint"
PLURAL: Final = "vllmendpoints"
SINGULAR: Final = "vllmendpoint"
SHORT_NAME: Final = "vep"

NAME_MAX_LENGTH: Final = 40
"""Longest ``metadata.name``: child names add a suffix and must stay DNS labels (63)."""

WORKERS_SUFFIX: Final = "-workers"
"""Of an endpoint's name, the name of its workers' Deployment and Service. The frontend's Service has the
endpoint's own name, so that no endpoint may be called like another one's workers."""

MAIN_CONTAINER: Final = "main"
"""Container of the worker and frontend pods, as Dynamo's own operator calls it."""

# Ports (design: "Between operator and worker").
SAGEMAKER_PORT: Final = 8080
SYSTEM_PORT: Final = 9090
REPORT_PORT: Final = 9091
FRONTEND_PORT: Final = 8000

# Files that the operator mounts into a worker.
SETTINGS_DIR: Final = "/etc/vllmendpoint"
SETTINGS_FILE: Final = "settings.json"
SCRIPT_FILE: Final = "model.py"
"""The CR's handler script, beside the settings."""
CONFIG_DIR: Final = "/etc/vllmendpoint-engine"
CONFIG_FILE: Final = "config.yaml"

# Environment of a worker, set by the operator (or by hand, outside Kubernetes).
ENV_SETTINGS_DIR: Final = "VLLMENDPOINT_SETTINGS_DIR"
ENV_CONFIG_FILE: Final = "VLLMENDPOINT_CONFIG_FILE"
ENV_MODEL_TYPE: Final = "VLLMENDPOINT_MODEL_TYPE"
ENV_ARTIFACTS_URI: Final = "VLLMENDPOINT_ARTIFACTS_URI"
ENV_MODEL_URI: Final = "VLLMENDPOINT_MODEL_URI"
"""Of a model in S3; it is fetched to the folder that ``--model`` names."""
ENV_FRONTEND_MODE: Final = "VLLMENDPOINT_FRONTEND_MODE"
"""``frontend.mode`` of the endpoint. Unset where no operator runs the worker, which then refuses none of the
operator's options."""
ENV_REPORT_PORT: Final = "VLLMENDPOINT_REPORT_PORT"
ENV_CPU_REQUEST: Final = "VLLMENDPOINT_CPU_REQUEST"
"""CPUs that the container requests, rounded up; 0 where it has no request."""
ENV_SAGEMAKER_PORT: Final = "VLLMENDPOINT_SAGEMAKER_PORT"

LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_PART_OF: Final = "app.kubernetes.io/part-of"
LABEL_REVISION: Final = f"{GROUP}/revision"
LABEL_DRAINS: Final = f"{GROUP}/drains"
"""Of frontends that answer, while they end, until every node has taken them out of the Service."""
"""On worker pods: digest of their template, and the suffix of their Dynamo namespace."""
MANAGED_BY: Final = "vllmendpoint-operator"
PART_OF: Final = "vllmendpoint"

ANNOTATION_SETTINGS_HASH: Final = f"{GROUP}/settings-hash"
"""On worker pods: a write here makes the kubelet refresh the settings volume at once."""
ANNOTATION_ROLLOUT: Final = f"{GROUP}/rollout"
"""On the VLLMEndpoint: any new value restarts the workers and takes up the newer image."""
ANNOTATION_RESTARTED_AT: Final = f"{GROUP}/restarted-at"
"""On worker pods: the ``spec.restartedAt`` that they were started for."""
ANNOTATION_OPERATOR: Final = f"{GROUP}/operator"
"""On the VLLMEndpoint: the operator (``namespace/release``) that is to manage it; wins over the status."""

CONDITION_OPERATOR_CONFLICT: Final = "OperatorConflict"
"""Written by an operator that leaves the endpoint to another one; no part of ``Ready``."""

__all__ = [name for name in dir() if name.isupper()]
