"""The places that can set a health-check payload, as they were read. :mod:`.merge` selects one of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from vllmendpoint_api import HealthCheckSettings, Problem

__all__ = ["ABSENT", "ENV_LEVEL", "ENV_PAYLOAD", "EnvironmentPayload", "PayloadSources"]

ENV_PAYLOAD: Final = "DYN_HEALTH_CHECK_PAYLOAD"
ENV_LEVEL: Final = "DYN_HEALTH_CHECK_LEVEL"


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()
"""The setting is not set. Null is a value."""


@dataclass(frozen=True, slots=True)
class EnvironmentPayload:
    """The parsed value of ``DYN_HEALTH_CHECK_PAYLOAD``, or the problem that prevents parsing it."""

    value: object = ABSENT
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class PayloadSources:
    """The content of every source."""

    spec: HealthCheckSettings = field(default_factory=HealthCheckSettings)
    spec_problems: tuple[Problem, ...] = ()
    """``settings.json`` exists but cannot be read, so the content of the spec is unknown."""
    runtime: object = ABSENT
    """``health_check_payload=`` of ``serve_endpoint()``, called from Python."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The ``DYN_HEALTH_CHECK_*`` variables that are set, without the payload."""
    environment_payload: EnvironmentPayload | None = None
    config_level: object = ABSENT
    config_payload: object = ABSENT
    config_problems: tuple[Problem, ...] = ()
    custom_default: object = ABSENT
    """``set_custom_health_check_payload()``."""
