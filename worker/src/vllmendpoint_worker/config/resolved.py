"""The result of :mod:`.merge`: the health check to run, or the problems that prevent it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from vllmendpoint_api import HealthCheckReport, Ignored, Level, Mode, PayloadSource, Problem
from vllmendpoint_worker.payload.token_limits import (
    DEFAULT_MAX_TOKENS,
    HIGH_TOKEN_COUNT,
    max_generated_tokens,
    with_token_limit,
)
from vllmendpoint_worker.setting_origin import SettingOrigin

from .payload_sources import ENV_PAYLOAD

__all__ = ["ORIGINS", "Resolved", "Unresolved"]

_MAX_IGNORED: Final = 16

_PUBLIC_SOURCES: Final = frozenset(
    {
        PayloadSource.SPEC,
        PayloadSource.CUSTOM_DEFAULT,
        PayloadSource.MODEL_DEFAULT,
        PayloadSource.GENERIC_DEFAULT,
    }
)
"""Sources whose payload is logged and reported. The others may contain a secret."""

_DEFAULT_PAYLOAD_FIX: Final = (
    "Set healthCheck.payload to a request that the model answers, or correct model.type or engine.args."
)

ORIGINS: Final = {
    PayloadSource.SPEC: SettingOrigin(PayloadSource.SPEC, "healthCheck.payload"),
    PayloadSource.RUNTIME: SettingOrigin(PayloadSource.RUNTIME, "health_check_payload"),
    PayloadSource.ENVIRONMENT: SettingOrigin(PayloadSource.ENVIRONMENT, ENV_PAYLOAD, confidential=True),
    PayloadSource.CONFIG_FILE: SettingOrigin(
        PayloadSource.CONFIG_FILE, "health_check_payload", confidential=True
    ),
    PayloadSource.CUSTOM_DEFAULT: SettingOrigin(
        PayloadSource.CUSTOM_DEFAULT, "set_custom_health_check_payload()"
    ),
    PayloadSource.MODEL_DEFAULT: SettingOrigin(
        PayloadSource.MODEL_DEFAULT, "The default payload", correction=_DEFAULT_PAYLOAD_FIX
    ),
    PayloadSource.GENERIC_DEFAULT: SettingOrigin(
        PayloadSource.GENERIC_DEFAULT, "The default payload", correction=_DEFAULT_PAYLOAD_FIX
    ),
}


@dataclass(frozen=True, slots=True)
class Unresolved:
    """The configuration is invalid."""

    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """The health check to run. Times in seconds."""

    payload: Mapping[str, Any]
    source: PayloadSource
    level: Level | None
    ignored: tuple[Ignored, ...]
    mode: Mode
    period_seconds: float
    timeout_seconds: float
    failure_threshold: int
    success_threshold: int
    restart_after_seconds: float
    expect: str | None = None
    """RE2 expression that the generated text must match."""

    @property
    def bounded_payload(self) -> dict[str, Any]:
        """The payload of a probe and of the report: it always limits the generated tokens."""
        return with_token_limit(self.payload)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the report."""
        warnings = []
        payload = self.bounded_payload
        if payload != self.payload:
            limit = payload["max_tokens"]
            tokens = f"{limit} tokens" if limit == DEFAULT_MAX_TOKENS else "as many tokens as min_tokens"
            warnings.append(
                f"{self.origin.field} does not set max_tokens, so the probe generates at most {tokens}. Set "
                "max_tokens to change the limit."
            )
        if (count := max_generated_tokens(payload)) > HIGH_TOKEN_COUNT:
            shown = f"more than {HIGH_TOKEN_COUNT}" if self.confidential else count
            warnings.append(
                f"{self.origin.field} allows every probe to generate {shown} tokens. Set a smaller "
                "max_tokens, min_tokens or n."
            )
        return tuple(warnings)

    @property
    def confidential(self) -> bool:
        """The payload is neither logged nor reported."""
        return self.source not in _PUBLIC_SOURCES

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the payload."""
        text = json.dumps(self.bounded_payload, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def origin(self) -> SettingOrigin:
        """Where the payload is set."""
        return ORIGINS[self.source]

    def report(self) -> HealthCheckReport:
        """The health check as the worker reports it."""
        return HealthCheckReport(
            mode=self.mode,
            source=self.source,
            level=self.level,
            payload=None if self.confidential else self.bounded_payload,
            payload_digest=self.digest,
            ignored=self.ignored[:_MAX_IGNORED],
            period_seconds=self.period_seconds,
            timeout_seconds=self.timeout_seconds,
            failure_threshold=self.failure_threshold,
            success_threshold=self.success_threshold,
            restart_after_seconds=self.restart_after_seconds,
        )
