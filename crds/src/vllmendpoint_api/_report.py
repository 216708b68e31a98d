"""The worker report: the body of ``GET /status`` on the report port.

The format has one additive version, because an operator must read the reports of all older workers. Fields
are only added, and readers ignore unknown fields.
"""

import math
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field

from ._base import Contract, JsonObject
from ._handlers import HandlerSource
from ._health import Level, Mode, PayloadSource

__all__ = [
    "ConfigurationReport",
    "ConfigurationState",
    "HandlerError",
    "HandlerReport",
    "HandlersReport",
    "HealthCheckReport",
    "Ignored",
    "Outcome",
    "PingReport",
    "PingState",
    "ProbeReport",
    "Problem",
    "RankReport",
    "Stage",
    "StageReport",
    "Verdict",
    "VerdictReport",
    "WorkerReport",
]


def _utc(value: datetime) -> datetime:
    if not 1970 <= value.year <= 2200:
        raise ValueError("a time outside of the years 1970 to 2200")
    return value.astimezone(UTC)


def _storable(value: Any) -> Any:
    """Raises ValueError for a number that JSON or the API server cannot store, because it becomes status."""
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("a number too large")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not a number")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _storable(inner)
    return value


Text = Annotated[str, Field(max_length=2048)]
Word = Annotated[str, Field(max_length=128)]
Moment = Annotated[AwareDatetime, AfterValidator(_utc)]
Figure = Annotated[float, Field(ge=0, le=1e9)]


class Report(Contract):
    """Base class of reports and their parts. Readers ignore unknown fields."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Stage(StrEnum):
    """Stages of the worker's lifecycle, in order of start-up."""

    IMPORTING = "Importing"
    CONFIGURING = "Configuring"
    DOWNLOADING = "Downloading"
    STARTING_ENGINE = "StartingEngine"
    LOADING_WEIGHTS = "LoadingWeights"
    COMPILING = "Compiling"
    ALLOCATING_CACHE = "AllocatingCache"
    WARMING = "Warming"
    REGISTERING = "Registering"
    SERVING = "Serving"
    REJECTED = "Refused"
    """The configuration was rejected. The worker keeps running, is not ready and reports the cause."""
    STOPPING = "Stopping"


class Verdict(StrEnum):
    """Results of the health check on an engine. docs/concepts/verdict.md defines each verdict."""

    STARTING = "Starting"
    GENERATING = "Generating"
    BUSY = "Busy"
    STALLED = "Stalled"
    FAILING = "Failing"
    DEAD = "Dead"
    DISABLED = "Disabled"
    """The health check is disabled."""


class Outcome(StrEnum):
    """Results of one probe."""

    COMPLETE = "Complete"
    TIMEOUT = "Timeout"
    ERROR = "Error"
    UNEXPECTED_ANSWER = "UnexpectedAnswer"
    ENGINE_DEAD = "EngineDead"


class ConfigurationState(StrEnum):
    PENDING = "Pending"
    RESOLVED = "Resolved"
    REJECTED = "Refused"


class Problem(Report):
    """One rejected setting. It never contains the value of a variable or the content of a file."""

    reason: Word
    """A :class:`Reason` of the condition ``ConfigurationResolved``."""
    source: Word
    """Where the setting comes from: ``Spec``, ``Environment``, ``ConfigFile`` or ``Code``."""
    field: Word
    message: Text
    """The field, the cause and the remedy, as one sentence."""


class ConfigurationReport(Report):
    state: ConfigurationState = ConfigurationState.PENDING
    settings_hash: Word = ""
    """Hash of the last ``settings.json``, accepted or rejected. Empty without an operator."""
    problems: Annotated[tuple[Problem, ...], Field(max_length=16)] = ()
    warnings: Annotated[tuple[Text, ...], Field(max_length=16)] = ()
    """For example settings that this version of the worker does not know."""


class Ignored(Report):
    source: PayloadSource
    reason: Text


class HealthCheckReport(Report):
    mode: Mode = Mode.ENFORCE
    source: PayloadSource
    level: Level | None = None
    """Set if the payload is the payload of a level."""
    payload: Annotated[JsonObject | None, AfterValidator(_storable)] = None
    """Set only if the payload comes from the spec or a default. Otherwise it may be confidential."""
    payload_digest: Word
    ignored: Annotated[tuple[Ignored, ...], Field(max_length=16)] = ()
    period_seconds: float
    timeout_seconds: float
    failure_threshold: int
    success_threshold: int
    restart_after_seconds: float


class HandlerReport(Report):
    source: HandlerSource = HandlerSource.DEFAULT
    handler: Annotated[str, Field(max_length=512)] = ""


class HandlerError(Report):
    """A custom handler raised an exception, hung, or blocked the worker's event loop."""

    route: Word
    """``/ping`` or ``/invocations``."""
    message: Text
    time: Moment


class HandlersReport(Report):
    script_digest: Word = ""
    ping: HandlerReport = HandlerReport()
    invocations: HandlerReport = HandlerReport()
    last_error: HandlerError | None = None
    """Most recent failure of a custom handler."""


class PingState(StrEnum):
    PASSING = "Passing"
    FAILING = "Failing"


class PingReport(Report):
    """Result of the worker's own requests to the custom ping handler, which affects its readiness."""

    state: PingState
    message: Text = ""
    """If the handler fails, what it did instead of responding with 200."""
    since: Moment


class ProbeReport(Report):
    time: Moment
    latency_milliseconds: Figure
    tokens: Annotated[int, Field(ge=0, le=1_000_000_000)]
    outcome: Outcome


class StageReport(Report):
    name: Stage
    since: Moment
    detail: Text = ""


class VerdictReport(Report):
    state: Verdict = Verdict.STARTING
    reason: Word = ""
    """A :class:`Reason` of the condition ``Generating``. Empty if the state is Generating or Busy."""
    message: Text = ""
    since: Moment
    last_proof_of_life: Moment | None = None
    """Time when the engine last completed a probe or a client's request."""


class RankReport(Report):
    """Verdict on one data-parallel rank, which is a separate engine core."""

    rank: Annotated[int, Field(ge=0, le=1_000_000)]
    state: Verdict
    reason: Word = ""


class WorkerReport(Report):
    """The report of one worker."""

    version: int = 1
    worker_version: Word
    pod_uid: Word = ""
    instance_id: Word = ""
    """Dynamo's instance ID of the worker in decimal. Empty until the worker is registered."""
    time: Moment
    started: bool = False
    """True once the worker serves, or once it has rejected its configuration."""
    ready: bool = False
    stage: StageReport
    configuration: ConfigurationReport
    health_check: HealthCheckReport | None = None
    handlers: HandlersReport = HandlersReport()
    custom_ping: PingReport | None = None
    """Set only if there is a custom ping handler."""
    verdict: VerdictReport
    """With several ranks, the verdict on the least healthy rank, which the message names."""
    ranks: Annotated[tuple[RankReport, ...], Field(max_length=256)] = ()
    """Set only if the worker has several data-parallel ranks."""
    last_probe: ProbeReport | None = None
    model_type: Word = ""
