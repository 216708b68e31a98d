"""``status`` of a VLLMEndpoint, which only the operator writes."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from ._base import Contract, JsonObject
from ._conditions import ConditionStatus
from ._handlers import HandlerSource
from ._health import Level, PayloadSource
from ._report import Outcome, Verdict

__all__ = [
    "MAX_FRONTENDS_IN_STATUS",
    "MAX_WORKERS_IN_STATUS",
    "ConditionEntry",
    "FrontendStatus",
    "HandlerStatus",
    "HandlersStatus",
    "HealthCheckStatus",
    "IgnoredStatus",
    "LastProbe",
    "PrefillStatus",
    "RevisionStatus",
    "VLLMEndpointStatus",
    "WorkerRole",
    "WorkerStatus",
]

MAX_WORKERS_IN_STATUS = 32
MAX_FRONTENDS_IN_STATUS = 8

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Count = Annotated[int, Field(ge=0)]


class ConditionEntry(Contract):
    """Condition of the endpoint, in the form of metav1.Condition."""

    type: Annotated[str, Field(max_length=316, description="Type of the condition.")]
    status: Annotated[ConditionStatus, Field(description="Status of the condition.")]
    reason: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1024,
            pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            description="Reason for the status.",
        ),
    ]
    message: Annotated[
        str,
        Field(
            max_length=32_768,
            description="Explanation: the affected objects, the cause and the remedy.",
        ),
    ]
    last_transition_time: Annotated[Time, Field(description="Time of the last change of status.")]
    observed_generation: Annotated[
        Count, Field(description="metadata.generation that the condition describes.")
    ]


class RevisionStatus(Contract):
    """Revision of the pod templates that the operator applies."""

    name: Annotated[str, Field(description="Name of the ControllerRevision that contains the pod templates.")]
    image: Annotated[str, Field(description="Container image of the workers in this revision.")]
    upgrade_available: Annotated[
        bool,
        Field(
            description="True if this version of the operator renders another pod template or has another "
            "default image. Set spec.restartedAt to roll it out."
        ),
    ]


class IgnoredStatus(Contract):
    """Payload that is ignored because another source has precedence."""

    source: Annotated[PayloadSource, Field(description="Source of the ignored payload.")]
    reason: Annotated[str, Field(description="Reason why the payload is ignored.")]


class HealthCheckStatus(Contract):
    """Health check payload that the workers use, and its source."""

    source: Annotated[PayloadSource, Field(description="Source of the payload.")]
    level: Annotated[Level | None, Field(description="Level of the payload, if a level selects it.")] = None
    payload: Annotated[
        JsonObject | None,
        Field(
            description="Payload that the workers use, if it comes from the spec or a default. Others may "
            "be confidential."
        ),
    ] = None
    payload_digest: Annotated[str, Field(description="Digest of the payload.")]
    ignored: Annotated[
        tuple[IgnoredStatus, ...],
        Field(description="Payloads that are ignored because another source has precedence."),
    ] = ()


class HandlerStatus(Contract):
    """Handler that the workers use, and its source."""

    source: Annotated[HandlerSource, Field(description="Source of the handler.")]
    handler: Annotated[str, Field(description="Name of the function, unless source is Default.")]


class HandlersStatus(Contract):
    """Handlers that the workers use."""

    script_digest: Annotated[str, Field(description="Digest of the script that the workers use.")] = ""
    ping: Annotated[HandlerStatus, Field(description="Handler of /ping.")]
    invocations: Annotated[HandlerStatus, Field(description="Handler of /invocations.")]


class LastProbe(Contract):
    """Most recent probe of a worker."""

    time: Annotated[Time, Field(description="Time when the probe ended.")]
    latency_milliseconds: Annotated[
        int, Field(description="Milliseconds from the start of the probe to its end.")
    ]
    tokens: Annotated[int, Field(description="Number of tokens that the engine generated.")]
    outcome: Annotated[Outcome, Field(description="Result of the probe.")]


class WorkerRole(StrEnum):
    """What a worker of an endpoint with ``spec.prefill`` does."""

    PREFILL = "Prefill"
    DECODE = "Decode"


class WorkerStatus(Contract):
    """State of one worker pod."""

    name: Annotated[str, Field(description="Name of the pod.")]
    role: Annotated[
        WorkerRole | None, Field(description="What the worker does. Unset without spec.prefill.")
    ] = None
    node_name: Annotated[str, Field(description="Name of the node that the pod runs on.")] = ""
    ready: Annotated[bool, Field(description="Whether the pod is ready and receives traffic.")]
    verdict: Annotated[
        Verdict | None,
        Field(description="Verdict of the health check. Unset before the first report of the worker."),
    ] = None
    reason: Annotated[str, Field(description="Reason why the pod is not ready or not generating.")] = ""
    message: Annotated[str, Field(description="Explanation of the reason.")] = ""
    restart_count: Annotated[int, Field(description="Number of restarts of the main container.")] = 0
    last_transition_time: Annotated[Time, Field(description="Time of the last change of ready or verdict.")]
    last_probe: Annotated[LastProbe | None, Field(description="Most recent probe.")] = None


class FrontendStatus(Contract):
    """State of one frontend pod."""

    name: Annotated[str, Field(description="Name of the pod.")]
    node_name: Annotated[str, Field(description="Name of the node that the pod runs on.")] = ""
    ready: Annotated[bool, Field(description="Whether the pod is ready and receives traffic.")]
    routed_replicas: Annotated[
        Count,
        Field(description="Number of ready worker pods that answer requests through this frontend."),
    ] = 0
    reason: Annotated[
        str, Field(description="Reason why the pod is not ready or does not reach a ready worker.")
    ] = ""
    message: Annotated[str, Field(description="Explanation of the reason.")] = ""
    restart_count: Annotated[int, Field(description="Number of restarts of the main container.")] = 0
    last_transition_time: Annotated[Time, Field(description="Time of the last change of ready or reason.")]


class PrefillStatus(Contract):
    """Number of prefill worker pods."""

    replicas: Annotated[Count, Field(description="Number of prefill worker pods.")] = 0
    updated_replicas: Annotated[
        Count, Field(description="Number of prefill worker pods of the current revision.")
    ] = 0
    ready_replicas: Annotated[Count, Field(description="Number of ready prefill worker pods.")] = 0
    generating_replicas: Annotated[
        Count,
        Field(
            description="Number of prefill worker pods whose verdict is Generating or Busy and whose KV "
            "caches reach a decode worker."
        ),
    ] = 0


class VLLMEndpointStatus(Contract):
    """Observed state of the endpoint."""

    observed_generation: Annotated[
        int,
        Field(description="metadata.generation that the status describes. -1 until the first update."),
    ] = -1
    operator: Annotated[
        str,
        Field(
            max_length=256,
            description="Operator that manages the endpoint, as namespace/release. The annotation "
            "serving.vllmendpoint.dev/operator assigns it to another one.",
        ),
    ] = ""
    replicas: Annotated[
        Count, Field(description="Number of worker pods. Prefill workers do not count here and below.")
    ] = 0
    updated_replicas: Annotated[
        Count, Field(description="Number of worker pods of the current revision.")
    ] = 0
    ready_replicas: Annotated[Count, Field(description="Number of ready worker pods.")] = 0
    generating_replicas: Annotated[
        Count,
        Field(
            description="Number of worker pods whose verdict is Generating or Busy and, with spec.prefill, "
            "that receive KV caches."
        ),
    ] = 0
    routed_replicas: Annotated[
        Count,
        Field(
            description="Number of ready worker pods that answer requests through every ready frontend. 0 "
            "if frontend.mode is None."
        ),
    ] = 0
    prefill: Annotated[
        PrefillStatus | None,
        Field(description="Number of prefill worker pods. Unset without spec.prefill."),
    ] = None
    selector: Annotated[str, Field(description="Label selector of the worker pods.")] = ""
    model_name: Annotated[str, Field(description="Model name that clients send in requests.")] = ""
    url: Annotated[str, Field(description="Base URL of the OpenAI API.")] = ""
    invocations_url: Annotated[str, Field(description="URL of /invocations on the workers' Service.")] = ""
    revision: Annotated[
        RevisionStatus | None, Field(description="Revision of the pod templates that the operator applies.")
    ] = None
    health_check: Annotated[
        HealthCheckStatus | None,
        Field(description="Health check payload that the workers use, and its source."),
    ] = None
    handlers: Annotated[HandlersStatus | None, Field(description="Handlers that the workers use.")] = None
    workers: Annotated[
        tuple[WorkerStatus, ...],
        Field(
            max_length=MAX_WORKERS_IN_STATUS,
            description=f"State of at most {MAX_WORKERS_IN_STATUS} worker pods, the least healthy first.",
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    workers_omitted: Annotated[
        Count, Field(description="Number of worker pods that are not listed in workers.")
    ] = 0
    frontends: Annotated[
        tuple[FrontendStatus, ...],
        Field(
            max_length=MAX_FRONTENDS_IN_STATUS,
            description=f"State of at most {MAX_FRONTENDS_IN_STATUS} frontend pods, the least healthy first.",
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    conditions: Annotated[
        tuple[ConditionEntry, ...],
        Field(
            max_length=16,
            description="Conditions of the endpoint. Wait for Ready; alert on Available and Serving.",
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        ),
    ] = ()
