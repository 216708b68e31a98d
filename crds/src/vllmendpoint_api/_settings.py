"""What the operator hands to a running worker: ``settings.json`` (hot, no restart)."""

import hashlib
import json
from typing import Annotated, Self

from pydantic import ConfigDict, Field

from ._base import Contract, JsonObject
from ._health import Level, Mode

__all__ = ["ExpectSettings", "HandlerSettings", "HealthCheckSettings", "WorkerSettings", "script_digest"]


def script_digest(text: bytes) -> str:
    """Sixteen hex digits that name a script's content, as report, status and Events show it."""
    return hashlib.sha256(text).hexdigest()[:16]


class _Hot(Contract):
    # A pinned worker may be many versions older than the operator: what it does not know it
    # keeps in ``model_extra`` and reports as unknown (design, section 5).
    model_config = ConfigDict(extra="allow")


class ExpectSettings(_Hot):
    """The CR's ``healthCheck.expect``."""

    regex: str


class HealthCheckSettings(_Hot):
    """The CR's ``healthCheck``, only what the user set: an absent field lets the next level speak."""

    mode: Mode | None = None
    level: Level | None = None
    payload: JsonObject | None = None
    expect: ExpectSettings | None = None
    period_seconds: Annotated[int | None, Field(ge=1)] = None
    timeout_seconds: Annotated[int | None, Field(ge=1)] = None
    failure_threshold: Annotated[int | None, Field(ge=1)] = None
    success_threshold: Annotated[int | None, Field(ge=1)] = None
    restart_after_seconds: Annotated[int | None, Field(ge=0)] = None


class HandlerSettings(_Hot):
    """The CR's ``handlers``. The script lies beside ``settings.json``, as ``names.SCRIPT_FILE``."""

    script_digest: str | None = None
    """Digest of the script (:func:`script_digest`), None where the CR brings none."""
    ping: str | None = None
    invocations: str | None = None


class WorkerSettings(_Hot):
    """The content of ``settings.json``. No generation in it, so that scaling touches nothing."""

    health_check: HealthCheckSettings = HealthCheckSettings()
    handlers: HandlerSettings | None = None
    """None where the CR says nothing of handlers."""
    hash: str = ""
    """Digest of everything else in the file; the worker reports it back."""

    def sealed(self) -> Self:
        """A copy whose ``hash`` is the digest of its content."""
        content = (self.model_copy(update={"hash": ""}) if self.hash else self).wire()
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return self.model_copy(update={"hash": hashlib.sha256(text.encode()).hexdigest()[:16]})
