"""What a worker says of itself: the body of ``GET /status`` on the report port.

One additive version: an operator reads the report of every worker ever shipped with v1alpha1,
so a field is only ever added, and unknown fields are ignored by the reader.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, ConfigDict, Field

from ._base import Contract, JsonObject
from ._health import Level, Mode, PayloadSource

__all__ = [
    "ConfigurationReport",
    "ConfigurationState",
    "HandlerReport",
    "HandlerSource",
    "HandlersReport",
    "HealthCheckReport",
    "Ignored",
    "Outcome",
    "ProbeReport",
    "Problem",
    "Stage",
    "StageReport",
    "Verdict",
    "VerdictReport",
    "WorkerReport",
]

Text = Annotated[str, Field(max_length=2048)]
Word = Annotated[str, Field(max_length=128)]


class _Report(Contract):
    model_config = ConfigDict(extra="ignore")


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
    """What is wrong and what to do, as one sentence."""


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
    payload: JsonObject | None = None
    """Only when it came from the spec or a default: elsewhere it may be secret."""
    payload_digest: Word
    ignored: Annotated[tuple[Ignored, ...], Field(max_length=16)] = ()
    period_seconds: float
    timeout_seconds: float
    failure_threshold: int
    success_threshold: int
    restart_after_seconds: float


class HandlerSource(StrEnum):
    SPEC = "Spec"
    ENVIRONMENT = "Environment"
    DECORATOR = "Decorator"
    FUNCTION = "Function"
    DEFAULT = "Default"


class HandlerReport(_Report):
    source: HandlerSource = HandlerSource.DEFAULT
    handler: Annotated[str, Field(max_length=512)] = ""


class HandlersReport(_Report):
    script_digest: Word = ""
    ping: HandlerReport = HandlerReport()
    invocations: HandlerReport = HandlerReport()


class ProbeReport(_Report):
    time: AwareDatetime
    latency_milliseconds: float
    tokens: int
    outcome: Outcome


class StageReport(_Report):
    name: Stage
    since: AwareDatetime
    detail: Text = ""


class VerdictReport(_Report):
    state: Verdict = Verdict.STARTING
    reason: Word = ""
    """A reason of the ``Generating`` condition where the state is not Generating or Busy."""
    message: Text = ""
    since: AwareDatetime
    last_proof_of_life: AwareDatetime | None = None
    """When the engine last finished a probe or a user's request."""


class WorkerReport(_Report):
    version: int = 1
    worker_version: Word
    pod_uid: Word = ""
    time: AwareDatetime
    started: bool = False
    """The worker serves, or has refused its configuration (then it stays up, unready)."""
    ready: bool = False
    stage: StageReport
    configuration: ConfigurationReport
    health_check: HealthCheckReport | None = None
    handlers: HandlersReport = HandlersReport()
    verdict: VerdictReport
    last_probe: ProbeReport | None = None
    model_type: Word = ""
