"""``settings.json``: the settings that the operator passes to running workers, without a restart."""

import hashlib
import json
from typing import Annotated, Self

from pydantic import ConfigDict, Field

from ._base import Contract, JsonObject
from ._health import Level, Mode

__all__ = ["ExpectSettings", "HandlerSettings", "HealthCheckSettings", "WorkerSettings", "script_digest"]


def script_digest(text: bytes) -> str:
    """Return 16 hexadecimal digits that identify the content of a script in reports, status and Events."""
    return hashlib.sha256(text).hexdigest()[:16]


class _Hot(Contract):
    # A worker may be many versions older than the operator. It keeps unknown fields in ``model_extra`` and
    # reports them as unknown.
    model_config = ConfigDict(extra="allow")


class ExpectSettings(_Hot):
    """``healthCheck.expect`` of the VLLMEndpoint."""

    regex: str


class HealthCheckSettings(_Hot):
    """``healthCheck`` of the VLLMEndpoint. Fields that the user did not set are None."""

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
    """``handlers`` of the VLLMEndpoint. The script is ``names.SCRIPT_FILE`` in the same directory."""

    script_digest: str | None = None
    """:func:`script_digest` of the script. None if the VLLMEndpoint has no script."""
    ping: str | None = None
    invocations: str | None = None


class WorkerSettings(_Hot):
    """The content of ``settings.json``. It contains no generation, so that scaling does not change it."""

    health_check: HealthCheckSettings = HealthCheckSettings()
    handlers: HandlerSettings | None = None
    """None if the VLLMEndpoint does not set ``handlers``."""
    hash: str = ""
    """Digest of all other fields. The worker includes it in its report."""

    def sealed(self) -> Self:
        """Return a copy whose ``hash`` is the digest of its content."""
        content = (self.model_copy(update={"hash": ""}) if self.hash else self).wire()
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return self.model_copy(update={"hash": hashlib.sha256(text.encode()).hexdigest()[:16]})
