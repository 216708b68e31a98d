"""What a worker says of itself: the body of ``GET /status`` on the report port.

One additive version: an operator reads the report of every worker ever shipped with v1alpha1,
so a field is only ever added, and unknown fields are ignored by the reader.
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
    """Raises ValueError for what JSON or the API server has no place for: a status must be writable."""
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


class _Report(Contract):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Stage(StrEnum):
    """Start-up, in order."""

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
    REFUSED = "Refused"
    """The configuration was refused: the worker stays up, unready, and says why."""
    STOPPING = "Stopping"


class Verdict(StrEnum):
    STARTING = "Starting"
    GENERATING = "Generating"
    BUSY = "Busy"
    STALLED = "Stalled"
    FAILING = "Failing"
    DEAD = "Dead"
    DISABLED = "Disabled"
    """Probing is off."""


class Outcome(StrEnum):
    """How one probe ended."""

    COMPLETE = "Complete"
    TIMEOUT = "Timeout"
    ERROR = "Error"
    UNEXPECTED_ANSWER = "UnexpectedAnswer"
    ENGINE_DEAD = "EngineDead"


class ConfigurationState(StrEnum):
    PENDING = "Pending"
    RESOLVED = "Resolved"
    REFUSED = "Refused"


class Problem(_Report):
    """One refused setting. Never carries the content of an environment value or a file."""

    reason: Word
    """A reason of the ``ConfigurationResolved`` condition: ``InvalidPayload``, ``InvalidConfigFile``, ..."""
    source: Word
    """``Spec``, ``Environment``, ``ConfigFile`` ..."""
    field: Word
    message: Text
    """The field, what is wrong and what to do, as one sentence."""


class ConfigurationReport(_Report):
    state: ConfigurationState = ConfigurationState.PENDING
    settings_hash: Word = ""
    """Hash of the ``settings.json`` last read, accepted or not; empty outside the operator."""
    problems: Annotated[tuple[Problem, ...], Field(max_length=16)] = ()
    warnings: Annotated[tuple[Text, ...], Field(max_length=16)] = ()
    """For instance settings that this version of the worker does not know."""


class Ignored(_Report):
    source: PayloadSource
    reason: Text


class HealthCheckReport(_Report):
    mode: Mode = Mode.ENFORCE
    source: PayloadSource
    level: Level | None = None
    """Set where the payload is a level's."""
    payload: Annotated[JsonObject | None, AfterValidator(_storable)] = None
    """Only when it came from the spec or a default: elsewhere it may be secret."""
    payload_digest: Word
    ignored: Annotated[tuple[Ignored, ...], Field(max_length=16)] = ()
    period_seconds: float
    timeout_seconds: float
    failure_threshold: int
    success_threshold: int
    restart_after_seconds: float


class HandlerReport(_Report):
    source: HandlerSource = HandlerSource.DEFAULT
    handler: Annotated[str, Field(max_length=512)] = ""


class HandlerError(_Report):
    """A custom handler raised, hung, or blocked the worker's thread."""

    route: Word
    """``/ping`` or ``/invocations``."""
    message: Text
    time: Moment


class HandlersReport(_Report):
    script_digest: Word = ""
    ping: HandlerReport = HandlerReport()
    invocations: HandlerReport = HandlerReport()
    last_error: HandlerError | None = None
    """The newest failure of a custom handler."""


class PingState(StrEnum):
    PASSING = "Passing"
    FAILING = "Failing"


class PingReport(_Report):
    """What the custom ping handler answers, asked by the worker itself: it takes part in readiness."""

    state: PingState
    message: Text = ""
    """What it did instead of answering 200, where it fails."""
    since: Moment


class ProbeReport(_Report):
    time: Moment
    latency_milliseconds: Figure
    tokens: Annotated[int, Field(ge=0, le=1_000_000_000)]
    outcome: Outcome


class StageReport(_Report):
    name: Stage
    since: Moment
    detail: Text = ""


class VerdictReport(_Report):
    state: Verdict = Verdict.STARTING
    reason: Word = ""
    """A reason of the ``Generating`` condition where the state is not Generating or Busy."""
    message: Text = ""
    since: Moment
    last_proof_of_life: Moment | None = None
    """When the engine last finished a probe or a user's request."""


class RankReport(_Report):
    """One data-parallel rank: an engine core of its own."""

    rank: Annotated[int, Field(ge=0, le=1_000_000)]
    state: Verdict
    reason: Word = ""


class WorkerReport(_Report):
    version: int = 1
    worker_version: Word
    pod_uid: Word = ""
    time: Moment
    started: bool = False
    """The worker serves, or has refused its configuration (then it stays up, unready)."""
    ready: bool = False
    stage: StageReport
    configuration: ConfigurationReport
    health_check: HealthCheckReport | None = None
    handlers: HandlersReport = HandlersReport()
    custom_ping: PingReport | None = None
    """Only where the ping handler is not the framework's."""
    verdict: VerdictReport
    """Of the worst rank, where there are several: the message names it."""
    ranks: Annotated[tuple[RankReport, ...], Field(max_length=256)] = ()
    """Only where the worker has several data-parallel ranks."""
    last_probe: ProbeReport | None = None
    model_type: Word = ""
