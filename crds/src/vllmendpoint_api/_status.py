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

    type: Annotated[str, Field(max_length=316, description="Which condition.")]
    status: Annotated[ConditionStatus, Field(description="True, False or Unknown.")]
    reason: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1024,
            pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            description="Why, in one word.",
        ),
    ]
    message: Annotated[
        str, Field(max_length=32_768, description="Which pod, how many of how many, why, and what to do.")
    ]
    last_transition_time: Annotated[Time, Field(description="When status changed last.")]
    observed_generation: Annotated[Count, Field(description="Generation of the spec that this speaks of.")]


class RevisionStatus(Contract):
    """Which rendering of the pods is in force."""

    name: Annotated[str, Field(description="ControllerRevision that holds the pods' templates.")]
    image: Annotated[str, Field(description="Worker image of that revision.")]
    upgrade_available: Annotated[
        bool,
        Field(
            description="The operator would render the workers differently today, a newer image included; "
            "spec.restartedAt or the annotation serving.vllmendpoint.dev/rollout takes it up."
        ),
    ]


class IgnoredStatus(Contract):
    """A setting that was outranked."""

    source: Annotated[PayloadSource, Field(description="Where it was given.")]
    reason: Annotated[str, Field(description="Why it is not in force.")]


class HealthCheckStatus(Contract):
    """The payload in force and where it came from."""

    source: Annotated[PayloadSource, Field(description="Which level of the precedence won.")]
    level: Annotated[Level | None, Field(description="The level it stands for, if it is one.")] = None
    payload: Annotated[
        JsonObject | None, Field(description="Only when it came from the spec or a default.")
    ] = None
    payload_digest: Annotated[str, Field(description="Tells one payload from another, whatever is in it.")]
    ignored: Annotated[tuple[IgnoredStatus, ...], Field(description="What was outranked.")] = ()


class HandlerStatus(Contract):
    """One handler and where it came from."""

    source: Annotated[HandlerSource, Field(description="Which level of the precedence won.")]
    handler: Annotated[str, Field(description="The function, or the framework's own.")]


class HandlersStatus(Contract):
    """The handlers in force."""

    script_digest: Annotated[str, Field(description="Of the script in force.")] = ""
    ping: Annotated[HandlerStatus, Field(description="What answers /ping.")]
    invocations: Annotated[HandlerStatus, Field(description="What answers /invocations.")]


class LastProbe(Contract):
    """The newest probe."""

    time: Annotated[Time, Field(description="When it ended.")]
    latency_milliseconds: Annotated[int, Field(description="From the question to the whole answer.")]
    tokens: Annotated[int, Field(description="Tokens that came back.")]
    outcome: Annotated[Outcome, Field(description="How it ended.")]


class WorkerStatus(Contract):
    """One replica."""

    name: Annotated[str, Field(description="Name of the pod.")]
    node_name: Annotated[str, Field(description="Node it runs on.")] = ""
    ready: Annotated[bool, Field(description="Whether the pod is ready, and so takes traffic.")]
    verdict: Annotated[Verdict | None, Field(description="Whether its engine generates.")] = None
    reason: Annotated[str, Field(description="Why not, in one word.")] = ""
    message: Annotated[str, Field(description="Why not, in one sentence.")] = ""
    restart_count: Annotated[int, Field(description="Restarts of the container.")] = 0
    last_transition_time: Annotated[Time, Field(description="When readiness or verdict changed last.")]
    last_probe: Annotated[LastProbe | None, Field(description="The newest probe.")] = None


class VLLMEndpointStatus(Contract):
    """What the operator found."""

    observed_generation: Annotated[
        int, Field(description="Generation of the spec that this status speaks of; -1: none yet.")
    ] = -1
    operator: Annotated[
        str,
        Field(
            max_length=256,
            description="Operator that manages the endpoint, as namespace/release. Another one leaves it "
            "alone; the annotation serving.vllmendpoint.dev/operator assigns it to one.",
        ),
    ] = ""
    replicas: Annotated[Count, Field(description="Worker pods that there are.")] = 0
    updated_replicas: Annotated[Count, Field(description="Those of the current revision.")] = 0
    ready_replicas: Annotated[Count, Field(description="Those that take traffic.")] = 0
    generating_replicas: Annotated[Count, Field(description="Replicas that generate, or are busy.")] = 0
    selector: Annotated[str, Field(description="Label selector of the worker pods.")] = ""
    model_name: Annotated[str, Field(description="Name under which clients ask for the model.")] = ""
    url: Annotated[str, Field(description="Base URL of the OpenAI API.")] = ""
    invocations_url: Annotated[str, Field(description="URL of the workers' /invocations.")] = ""
    revision: Annotated[
        RevisionStatus | None, Field(description="Which rendering of the pods is in force.")
    ] = None
    health_check: Annotated[
        HealthCheckStatus | None, Field(description="The payload in force and where it came from.")
    ] = None
    handlers: Annotated[HandlersStatus | None, Field(description="The handlers in force.")] = None
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
            description="Wait on Ready, alert on Available.",
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        ),
    ] = ()
