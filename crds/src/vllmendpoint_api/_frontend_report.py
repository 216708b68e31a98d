"""Report of a frontend pod on its report port. A report never contains a payload or a client's request.

As for a worker's report, fields are only added, and readers ignore unknown fields.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from ._report import Moment, Report, StageReport, Text, Word

__all__ = [
    "AcceptedWorkers",
    "FrontendReport",
    "KVEventsReport",
    "KVEventsState",
    "RouteReport",
    "RouteState",
]

InstanceId = Annotated[str, Field(max_length=20, pattern=r"^[0-9]{0,20}$")]
"""Dynamo's instance ID of a worker in decimal. It is a string, because it does not fit into a JSON number."""


class RouteState(StrEnum):
    """Results of the probes that a frontend sends through its own HTTP server to one worker."""

    PENDING = "Pending"
    """No probe has ended yet."""
    ANSWERED = "Answered"
    NOT_ACCEPTED = "NotAccepted"
    """The frontend has discovered the worker and sends it no requests."""
    FAILING = "Failing"
    """The frontend sends the worker requests, and the last probes had no complete response."""


class KVEventsState(StrEnum):
    """Whether the frontend's router receives the KV events of a worker."""

    PENDING = "Pending"
    """No check has ended yet."""
    RECEIVED = "Received"
    MISSING = "Missing"
    """The router does not know the content of the worker's KV cache, and selects the worker by its load."""


class KVEventsReport(Report):
    state: KVEventsState
    message: Text = ""
    """If the state is Missing: what is wrong, as a sentence."""
    since: Moment


class RouteReport(Report):
    """The route from the frontend to one discovered worker."""

    instance_id: InstanceId
    namespace: Word
    """Dynamo namespace of the worker."""
    state: RouteState
    message: Text = ""
    """Unless the state is Answered: what the frontend's HTTP server responded, as one sentence."""
    since: Moment
    last_answer: Moment | None = None
    """Time of the last complete response of the worker through this frontend."""
    kv_events: KVEventsReport | None = None
    """Set only if the frontend routes by KV events, and the worker has answered a probe."""


class AcceptedWorkers(Report):
    """Workers of one Dynamo namespace that the frontend sends requests to."""

    namespace: Word
    role: Word
    """Dynamo's worker type, for example ``aggregated``."""
    workers: Annotated[int, Field(ge=0, le=1_000_000)]


class FrontendReport(Report):
    """The report of one frontend."""

    version: int = 1
    worker_version: Word
    pod_uid: Word = ""
    time: Moment
    ready: bool = False
    """Whether the frontend serves requests and has a route to at least one worker."""
    stage: StageReport
    answering: bool = False
    """Whether the frontend's own HTTP server responds."""
    message: Text = ""
    """Why it does not respond or has no route, as one sentence."""
    models: Annotated[tuple[Word, ...], Field(max_length=64)] = ()
    """Models that the frontend serves."""
    probing: bool = True
    """Whether the frontend sends probes. False if ``healthCheck.mode`` is Disabled."""
    accepted: Annotated[tuple[AcceptedWorkers, ...], Field(max_length=64)] = ()
    routes: Annotated[tuple[RouteReport, ...], Field(max_length=256)] = ()
    """Failing routes come first."""
    kv_routing: bool = False
    """Whether the router selects workers by their KV events."""
