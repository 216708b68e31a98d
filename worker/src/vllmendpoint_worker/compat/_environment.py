"""The guide's variables as Dynamo's runtime reads its own.

Dynamo reads them once, when a runtime is made. ``DYN_HEALTH_CHECK_ENABLED=1`` ends that in an exception,
``DYN_HEALTH_CHECK_INTERVAL`` is unknown to it, and its own ``DYN_CANARY_WAIT_TIME`` takes whole seconds.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from vllmendpoint_api import Mode
from vllmendpoint_worker.config.merge import (
    ENV_ENABLED,
    ENV_INTERVAL,
    ENV_PAYLOAD_DISABLED,
    PayloadSources,
    Rejected,
    Resolved,
    merge,
)

from ._errors import HealthCheckRejectedError

__all__ = ["SYSTEM_PORT", "dynamo_environment", "dynamo_variables"]

SYSTEM_PORT: Final = "8082"
"""Where the guide's Troubleshooting asks for ``/health``."""

_WAIT_TIME: Final = "DYN_CANARY_WAIT_TIME"
_PORT: Final = "DYN_SYSTEM_PORT"
_HOST: Final = "DYN_SYSTEM_HOST"


def dynamo_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What Dynamo has to find in place of what the guide's user set. Pure.

    ``DYN_HEALTH_CHECK_ENABLED``: true, 1, yes, on and their opposites, in any case; unset leaves Dynamo's
    default (off). ``DYN_HEALTH_CHECK_INTERVAL``: 1 to 86400 seconds, rounded up to whole ones; unset leaves
    ``DYN_CANARY_WAIT_TIME`` or its default (10). Where checks are on and no system port is named, port 8082
    of 127.0.0.1. ``DYN_HEALTH_CHECK_PAYLOAD_DISABLED``: an endpoint is ready once it is registered. Raises
    HealthCheckRejectedError.
    """
    names = (ENV_ENABLED, ENV_INTERVAL, ENV_PAYLOAD_DISABLED)
    said = {name: environ[name] for name in names if environ.get(name, "").strip()}
    settings = merge(PayloadSources(environment=said))
    if isinstance(settings, Rejected):
        raise HealthCheckRejectedError(settings.problems)
    variables = {name: "" for name in names[:2] if name in environ}  # Dynamo takes an empty one as unset
    if ENV_ENABLED in said:
        enabled = not _off(said, ENV_ENABLED)
        variables[ENV_ENABLED] = str(enabled).lower()
        if enabled and not environ.get(_PORT):
            variables[_PORT] = SYSTEM_PORT
            if not environ.get(_HOST):
                variables[_HOST] = "127.0.0.1"  # nobody asked for a port that others can reach
    if _off(said, ENV_PAYLOAD_DISABLED):
        # No payload is sent. With checking on, Dynamo then asks nothing and calls an endpoint ready once it
        # is registered; with checking off, never.
        variables[ENV_ENABLED] = "true"
    if ENV_INTERVAL in said:
        variables[_WAIT_TIME] = str(math.ceil(settings.period_seconds))
    return variables


def _off(said: Mapping[str, str], name: str) -> bool:
    """Whether this one variable turns the checks off."""
    if name not in said:
        return False
    settings = merge(PayloadSources(environment={name: said[name]}))
    return isinstance(settings, Resolved) and settings.mode is Mode.DISABLED


@contextmanager
def dynamo_environment(*, lenient: bool = False) -> Iterator[None]:
    """The process's environment as Dynamo has to read it; afterwards as it was.

    ``lenient``: what is refused stays as it stands, while nobody has asked for a runtime yet.
    """
    try:
        variables = dynamo_variables(os.environ)
    except HealthCheckRejectedError:
        if not lenient:
            raise
        variables = {}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
