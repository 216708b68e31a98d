"""The conditions of a VLLMEndpoint and the reasons of each condition."""

from enum import StrEnum
from typing import Final

__all__ = ["CONDITION_REASONS", "READY_PARTS", "Condition", "ConditionStatus", "EventReason", "Reason"]


class ConditionStatus(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(StrEnum):
    """Condition types. ``Ready`` takes the first condition of :data:`READY_PARTS` that is not True."""

    ACCEPTED = "Accepted"
    RESOLVED_REFS = "ResolvedRefs"
    CONFIGURATION_RESOLVED = "ConfigurationResolved"
    AVAILABLE = "Available"
    GENERATING = "Generating"
    SERVING = "Serving"
    UP_TO_DATE = "UpToDate"
    READY = "Ready"
    RECONCILING = "Reconciling"
    """kstatus: True while the operator has work to do."""
    STALLED = "Stalled"
    """kstatus: True after a terminal error, which the user must fix."""


READY_PARTS: Final = (
    Condition.ACCEPTED,
    Condition.RESOLVED_REFS,
    Condition.CONFIGURATION_RESOLVED,
    Condition.AVAILABLE,
    Condition.GENERATING,
    Condition.SERVING,
    Condition.UP_TO_DATE,
)
"""The conditions that ``Ready`` depends on, in order of evaluation."""


class Reason(StrEnum):
    """Reasons of all conditions. :data:`CONDITION_REASONS` lists those of each condition."""

    # positive, or neutral
    ACCEPTED = "Accepted"
    RESOLVED = "Resolved"
    AVAILABLE = "Available"
    GENERATING = "Generating"
    SERVING = "Serving"
    UP_TO_DATE = "UpToDate"
    READY = "Ready"
    SCALED_TO_ZERO = "ScaledToZero"
    SETTLED = "Settled"
    PENDING = "Pending"
    # Accepted
    INVALID_SPEC = "InvalidSpec"
    INVALID_POD_TEMPLATE = "InvalidPodTemplate"
    NAME_TAKEN = "NameTaken"
    # ResolvedRefs
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    CONFIG_MAP_KEY_NOT_FOUND = "ConfigMapKeyNotFound"
    CLAIM_NOT_FOUND = "ClaimNotFound"
    SECRET_NOT_FOUND = "SecretNotFound"
    SERVICE_ACCOUNT_NOT_FOUND = "ServiceAccountNotFound"
    # ConfigurationResolved
    INVALID_PAYLOAD = "InvalidPayload"
    INVALID_SETTINGS = "InvalidSettings"
    INVALID_CONFIG_FILE = "InvalidConfigFile"
    INVALID_ENVIRONMENT = "InvalidEnvironment"
    INVALID_ENGINE_ARGUMENTS = "InvalidEngineArguments"
    SCRIPT_NOT_FOUND = "ScriptNotFound"
    INVALID_HANDLER = "InvalidHandler"
    HANDLER_NOT_FOUND = "HandlerNotFound"
    HANDLER_IMPORT_FAILED = "HandlerImportFailed"
    ARTIFACTS_NOT_FETCHED = "ArtifactsNotFetched"
    REQUIREMENTS_NOT_INSTALLED = "RequirementsNotInstalled"
    # Available
    UNSCHEDULABLE = "Unschedulable"
    INSUFFICIENT_GPU = "InsufficientGPU"
    CLAIM_NOT_BOUND = "ClaimNotBound"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_CONFIG_ERROR = "ContainerConfigError"
    MODEL_DOWNLOAD_FAILED = "ModelDownloadFailed"
    OOM_KILLED = "OOMKilled"
    CRASH_LOOPING = "CrashLooping"
    POD_FAILED = "PodFailed"
    NODE_LOST = "NodeLost"
    POD_CREATION_FAILED = "PodCreationFailed"
    STARTING = "Starting"
    STARTUP_TIMEOUT = "StartupTimeout"
    NOT_READY = "NotReady"
    PING_FAILED = "PingFailed"
    FRONTEND_UNAVAILABLE = "FrontendUnavailable"
    # Generating
    ENGINE_STALLED = "EngineStalled"
    PROBE_FAILED = "ProbeFailed"
    UNEXPECTED_ANSWER = "UnexpectedAnswer"
    ENGINE_DEAD = "EngineDead"
    WORKER_UNREACHABLE = "WorkerUnreachable"
    PROBING_DISABLED = "ProbingDisabled"
    NO_WORKERS = "NoWorkers"
    TRANSFER_FAILED = "TransferFailed"
    """The engines generate, but no KV cache reaches the worker, or none of its KV caches another one."""
    # Serving
    NO_FRONTEND = "NoFrontend"
    """The field frontend.mode is None, so clients connect to the workers."""
    NO_ROUTE = "NoRoute"
    """No frontend sends requests to any worker."""
    NOT_ROUTED = "NotRouted"
    """A frontend does not reach a ready worker, or ignores it."""
    FRONTEND_NOT_ANSWERING = "FrontendNotAnswering"
    FRONTEND_UNREACHABLE = "FrontendUnreachable"
    FRONTEND_OUTDATED = "FrontendOutdated"
    """Frontends of an earlier release do not report."""
    KV_EVENTS_MISSING = "KVEventsMissing"
    """Serving is True: requests are answered, but a frontend does not know a replica's KV cache."""
    # UpToDate, Reconciling
    PAUSED = "Paused"
    ROLLING_OUT = "RollingOut"
    ROLLOUT_STOPPED = "RolloutStopped"
    """A new replica does not become ready. Older replicas continue to serve."""
    # OperatorConflict
    MANAGED_BY_ANOTHER_OPERATOR = "ManagedByAnotherOperator"


class EventReason(StrEnum):
    """Reasons of Events that no condition has. Other Events have the reason of their condition."""

    HANDLERS_CHANGED = "HandlersChanged"
    API_SERVER_WARNING = "APIServerWarning"
    POD_TEMPLATE_NULL = "PodTemplateNull"
    ADMISSION_CHANGE_ACCEPTED = "AdmissionChangeAccepted"
    CHANGE_REVERTED = "ChangeReverted"


CONDITION_REASONS: Final[dict[Condition, tuple[Reason, ...]]] = {
    Condition.ACCEPTED: (
        Reason.ACCEPTED,
        Reason.INVALID_SPEC,
        Reason.INVALID_POD_TEMPLATE,
        Reason.NAME_TAKEN,
    ),
    Condition.RESOLVED_REFS: (
        Reason.RESOLVED,
        Reason.CONFIG_MAP_NOT_FOUND,
        Reason.CONFIG_MAP_KEY_NOT_FOUND,
        Reason.CLAIM_NOT_FOUND,
        Reason.SECRET_NOT_FOUND,
        Reason.SERVICE_ACCOUNT_NOT_FOUND,
    ),
    Condition.CONFIGURATION_RESOLVED: (
        Reason.RESOLVED,
        Reason.PENDING,
        Reason.INVALID_PAYLOAD,
        Reason.INVALID_SETTINGS,
        Reason.INVALID_CONFIG_FILE,
        Reason.INVALID_ENVIRONMENT,
        Reason.INVALID_ENGINE_ARGUMENTS,
        Reason.SCRIPT_NOT_FOUND,
        Reason.INVALID_HANDLER,
        Reason.HANDLER_NOT_FOUND,
        Reason.HANDLER_IMPORT_FAILED,
        Reason.ARTIFACTS_NOT_FETCHED,
        Reason.REQUIREMENTS_NOT_INSTALLED,
        Reason.MODEL_DOWNLOAD_FAILED,
        Reason.WORKER_UNREACHABLE,
    ),
    Condition.AVAILABLE: (
        Reason.AVAILABLE,
        Reason.SCALED_TO_ZERO,
        Reason.PENDING,
        Reason.PAUSED,
        Reason.UNSCHEDULABLE,
        Reason.INSUFFICIENT_GPU,
        Reason.CLAIM_NOT_BOUND,
        Reason.IMAGE_PULL_FAILED,
        Reason.CONTAINER_CONFIG_ERROR,
        Reason.SECRET_NOT_FOUND,
        Reason.CONFIG_MAP_NOT_FOUND,
        Reason.MODEL_DOWNLOAD_FAILED,
        Reason.OOM_KILLED,
        Reason.CRASH_LOOPING,
        Reason.POD_FAILED,
        Reason.NODE_LOST,
        Reason.POD_CREATION_FAILED,
        Reason.STARTUP_TIMEOUT,
        Reason.STARTING,
        Reason.NOT_READY,
        Reason.ENGINE_STALLED,
        Reason.PROBE_FAILED,
        Reason.ENGINE_DEAD,
        Reason.PING_FAILED,
        Reason.FRONTEND_UNAVAILABLE,
    ),
    Condition.GENERATING: (
        Reason.GENERATING,
        Reason.ENGINE_STALLED,
        Reason.PROBE_FAILED,
        Reason.UNEXPECTED_ANSWER,
        Reason.ENGINE_DEAD,
        Reason.WORKER_UNREACHABLE,
        Reason.PROBING_DISABLED,
        Reason.NO_WORKERS,
        Reason.TRANSFER_FAILED,
    ),
    Condition.SERVING: (
        Reason.SERVING,
        Reason.NO_FRONTEND,
        Reason.SCALED_TO_ZERO,
        Reason.PENDING,
        Reason.NO_ROUTE,
        Reason.NOT_ROUTED,
        Reason.FRONTEND_NOT_ANSWERING,
        Reason.FRONTEND_UNREACHABLE,
        Reason.FRONTEND_OUTDATED,
        Reason.KV_EVENTS_MISSING,
    ),
    Condition.UP_TO_DATE: (Reason.UP_TO_DATE, Reason.PAUSED, Reason.ROLLING_OUT, Reason.ROLLOUT_STOPPED),
    Condition.READY: (Reason.READY, Reason.SCALED_TO_ZERO),
    Condition.RECONCILING: (
        Reason.SETTLED,
        Reason.PAUSED,
        Reason.STARTING,
        Reason.PENDING,
        Reason.ROLLING_OUT,
    ),
    Condition.STALLED: (Reason.SETTLED,),
}
"""Reasons of each condition. ``Ready``, ``Reconciling`` and ``Stalled`` also use those of the others."""
