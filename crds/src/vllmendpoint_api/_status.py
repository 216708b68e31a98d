"""``status`` of a VLLMEndpoint, written by the operator alone."""

from typing import Annotated

from pydantic import Field

from ._base import Contract, JsonObject
from ._conditions import ConditionStatus
from ._handlers import HandlerSource
from ._health import Level, PayloadSource
from ._report import Outcome, Verdict

__all__ = [
    "MAX_WORKERS_IN_STATUS",
    "ConditionEntry",
    "HandlerStatus",
    "HandlersStatus",
    "HealthCheckStatus",
    "IgnoredStatus",
    "LastProbe",
    "RevisionStatus",
    "VLLMEndpointStatus",
    "WorkerStatus",
]

MAX_WORKERS_IN_STATUS = 32

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Count = Annotated[int, Field(ge=0)]


class ConditionEntry(Contract):
    """As metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    status: ConditionStatus
    reason: Annotated[
        str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    ]
    message: Annotated[str, Field(max_length=32_768)]
    last_transition_time: Time
    observed_generation: Count


class RevisionStatus(Contract):
    """Which rendering of the pods is in force."""

    name: Annotated[str, Field(description="ControllerRevision that holds the pods' templates.")]
    image: Annotated[str, Field(description="Worker image of that revision.")]
    upgrade_available: Annotated[
        bool,
        Field(
            description="The operator would render the workers differently today, a newer image included; "
            "the annotation serving.vllmendpoint.dev/rollout takes it up."
        ),
    ]


class IgnoredStatus(Contract):
    """A setting that was outranked."""

    source: PayloadSource
    reason: str


class HealthCheckStatus(Contract):
    """The payload in force and where it came from."""

    source: PayloadSource
    level: Level | None = None
    payload: Annotated[
        JsonObject | None, Field(description="Only when it came from the spec or a default.")
    ] = None
    payload_digest: str
    ignored: tuple[IgnoredStatus, ...] = ()


class HandlerStatus(Contract):
    """One handler and where it came from."""

    source: HandlerSource
    handler: str


class HandlersStatus(Contract):
    """The handlers in force."""

    script_digest: str = ""
    ping: HandlerStatus
    invocations: HandlerStatus


class LastProbe(Contract):
    """The newest probe."""

    time: Time
    latency_milliseconds: int
    tokens: int
    outcome: Outcome


class WorkerStatus(Contract):
    """One replica."""

    name: Annotated[str, Field(description="Name of the pod.")]
    node_name: str = ""
    ready: bool
    verdict: Verdict | None = None
    reason: str = ""
    message: str = ""
    restart_count: int = 0
    last_transition_time: Time
    last_probe: LastProbe | None = None


class VLLMEndpointStatus(Contract):
    """What the operator found."""

    observed_generation: Annotated[
        int, Field(description="Generation of the spec that this status speaks of; -1: none yet.")
    ] = -1
    replicas: Count = 0
    updated_replicas: Count = 0
    ready_replicas: Count = 0
    generating_replicas: Annotated[Count, Field(description="Replicas that generate, or are busy.")] = 0
    selector: Annotated[str, Field(description="Label selector of the worker pods.")] = ""
    model_name: Annotated[str, Field(description="Name under which clients ask for the model.")] = ""
    url: Annotated[str, Field(description="Base URL of the OpenAI API.")] = ""
    invocations_url: Annotated[str, Field(description="URL of the workers' /invocations.")] = ""
    revision: RevisionStatus | None = None
    health_check: HealthCheckStatus | None = None
    handlers: HandlersStatus | None = None
    workers: Annotated[
        tuple[WorkerStatus, ...],
        Field(
            max_length=MAX_WORKERS_IN_STATUS,
            description="The replicas, worst first.",
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    workers_omitted: Annotated[Count, Field(description="Replicas beyond those listed.")] = 0
    conditions: Annotated[
        tuple[ConditionEntry, ...],
        Field(
            max_length=16,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        ),
    ] = ()
