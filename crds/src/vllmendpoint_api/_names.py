"""Names that the operator, the worker, the chart and the tests share."""

from typing import Final

GROUP: Final = "serving.vllmendpoint.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "VLLMEndpoint"
PLURAL: Final = "vllmendpoints"
SINGULAR: Final = "vllmendpoint"
SHORT_NAME: Final = "vep"

NAME_MAX_LENGTH: Final = 40
"""Maximum length of ``metadata.name``. The names of children add a suffix and must be DNS labels (63)."""

WORKERS_SUFFIX: Final = "-workers"
"""Suffix of the name of the workers' Deployment and Service. The frontend's Service has the endpoint's own
name. Therefore the name of an endpoint must not end with this suffix."""

PREFILL_SUFFIX: Final = "-prefill"
"""Suffix of the name of the prefill workers' Deployment and Service, for the same reason."""

MAIN_CONTAINER: Final = "main"
"""Main container of the worker and frontend pods. Dynamo's own operator uses the same name."""

# Ports.
SAGEMAKER_PORT: Final = 8080
SYSTEM_PORT: Final = 9090
REPORT_PORT: Final = 9091
FRONTEND_PORT: Final = 8000
KV_EVENTS_PORT: Final = 5557
"""On workers with KV-aware routing: vLLM publishes KV events at this port to Dynamo in the same pod. Each
data-parallel rank has the next port. No NetworkPolicy allows clients to connect to them."""

PROBE_HEADER: Final = "x-dynamo-meta-vllmendpoint-probe"
"""Header of a frontend's probe. Dynamo passes its value to the worker as metadata ``PROBE_METADATA``."""
PROBE_METADATA: Final = "vllmendpoint-probe"

# Files that the operator mounts into a worker.
SETTINGS_DIR: Final = "/etc/vllmendpoint"
SETTINGS_FILE: Final = "settings.json"
SCRIPT_FILE: Final = "model.py"
"""The handler script of the VLLMEndpoint, in the directory of the settings."""
CONFIG_DIR: Final = "/etc/vllmendpoint-engine"
CONFIG_FILE: Final = "config.yaml"

# Environment variables of a worker. Outside Kubernetes, the user sets them.
ENV_SETTINGS_DIR: Final = "VLLMENDPOINT_SETTINGS_DIR"
ENV_CONFIG_FILE: Final = "VLLMENDPOINT_CONFIG_FILE"
ENV_MODEL_TYPE: Final = "VLLMENDPOINT_MODEL_TYPE"
ENV_ARTIFACTS_URI: Final = "VLLMENDPOINT_ARTIFACTS_URI"
ENV_MODEL_URI: Final = "VLLMENDPOINT_MODEL_URI"
"""URI of a model in S3. The worker downloads it to the directory in ``--model``."""
ENV_FRONTEND_MODE: Final = "VLLMENDPOINT_FRONTEND_MODE"
"""``frontend.mode`` of the endpoint. Without an operator it is unset, and the worker accepts the options that
the operator would set."""
ENV_ROUTING_MODE: Final = "VLLMENDPOINT_ROUTING_MODE"
"""On workers: ``frontend.routing.mode`` of the endpoint if it is KV; otherwise unset."""
ENV_MODEL_NAME: Final = "VLLMENDPOINT_MODEL_NAME"
"""On frontends: the model name that clients send in requests."""
ENV_REPORT_PORT: Final = "VLLMENDPOINT_REPORT_PORT"
ENV_DRAIN_SECONDS: Final = "VLLMENDPOINT_DRAIN_SECONDS"
"""On frontends: maximum seconds from SIGTERM until the end of the process."""
ENV_CPU_REQUEST: Final = "VLLMENDPOINT_CPU_REQUEST"
"""CPU request of the container in cores, rounded up. 0 if it has no request."""
ENV_SAGEMAKER_PORT: Final = "VLLMENDPOINT_SAGEMAKER_PORT"

LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_PART_OF: Final = "app.kubernetes.io/part-of"
LABEL_REVISION: Final = f"{GROUP}/revision"
"""On worker pods: digest of the pod template, and the suffix of the pods' Dynamo namespace."""
LABEL_DRAINS: Final = f"{GROUP}/drains"
"""On frontend pods that continue to serve during termination, until all nodes have updated the Service."""
MANAGED_BY: Final = "vllmendpoint-operator"
PART_OF: Final = "vllmendpoint"

ANNOTATION_SETTINGS_HASH: Final = f"{GROUP}/settings-hash"
"""On worker and frontend pods. A change makes the kubelet refresh the settings volume immediately."""
ANNOTATION_ROLLOUT: Final = f"{GROUP}/rollout"
"""On the VLLMEndpoint. A new value restarts the workers and rolls out a newer default image."""
ANNOTATION_RESTARTED_AT: Final = f"{GROUP}/restarted-at"
"""On worker pods. The ``spec.restartedAt`` of the restart that created them."""
ANNOTATION_OPERATOR: Final = f"{GROUP}/operator"
"""On the VLLMEndpoint. The operator (``namespace/release``) that must manage it. It overrides the status."""

CONDITION_OPERATOR_CONFLICT: Final = "OperatorConflict"
"""Set by an operator that does not manage the endpoint, because another one does. ``Ready`` ignores it."""

__all__ = [name for name in dir() if name.isupper()]
