"""Converts the environment variables of docs/guide/health-check-payloads.md to those of Dynamo's runtime.

Dynamo reads its variables once, when a runtime is created. It raises an exception for
``DYN_HEALTH_CHECK_ENABLED=1``, ignores ``DYN_HEALTH_CHECK_INTERVAL``, and its own ``DYN_CANARY_WAIT_TIME`` is
in whole seconds.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from vllmendpoint_api import Mode
from vllmendpoint_worker.config.merge import merge
from vllmendpoint_worker.config.payload_sources import PayloadSources
from vllmendpoint_worker.config.probe_settings import ENV_ENABLED, ENV_INTERVAL, ENV_PAYLOAD_DISABLED
from vllmendpoint_worker.config.resolved import Resolved, Unresolved

from ._errors import HealthCheckRejectedError

__all__ = ["SYSTEM_PORT", "dynamo_environment", "dynamo_variables"]

SYSTEM_PORT: Final = "8082"
"""Port of ``/health`` in docs/guide/health-check-payloads.md, "Troubleshooting"."""

_WAIT_TIME: Final = "DYN_CANARY_WAIT_TIME"
_PORT: Final = "DYN_SYSTEM_PORT"
_HOST: Final = "DYN_SYSTEM_HOST"


def dynamo_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Dynamo's variables for the guide's variables in ``environ``. Pure.

    - ``DYN_HEALTH_CHECK_ENABLED``: true, 1, yes, on and their opposites, in any case. Default: Dynamo's
    (off). If checks are on and no system port is set, the system port is 8082 on 127.0.0.1. -
    ``DYN_HEALTH_CHECK_INTERVAL``: 1 to 86400 seconds, rounded up to whole seconds. Default:
    ``DYN_CANARY_WAIT_TIME``, or 10. - ``DYN_HEALTH_CHECK_PAYLOAD_DISABLED``: an endpoint is ready once it is
    registered.

    Raises HealthCheckRejectedError.
    """
    names = (ENV_ENABLED, ENV_INTERVAL, ENV_PAYLOAD_DISABLED)
    guide = {name: environ[name] for name in names if environ.get(name, "").strip()}
    settings = merge(PayloadSources(environment=guide))
    if isinstance(settings, Unresolved):
        raise HealthCheckRejectedError(settings.problems)
    variables = {
        name: "" for name in names[:2] if name in environ
    }  # Dynamo treats an empty variable as unset
    if ENV_ENABLED in guide:
        enabled = not _is_off(guide, ENV_ENABLED)
        variables[ENV_ENABLED] = str(enabled).lower()
        if enabled and not environ.get(_PORT):
            variables[_PORT] = SYSTEM_PORT
            if not environ.get(_HOST):
                variables[_HOST] = (
                    "127.0.0.1"  # the user did not request a port that other machines can reach
                )
    if _is_off(guide, ENV_PAYLOAD_DISABLED):
        # No payload is sent. Dynamo then reports an endpoint as ready once it is registered if checks are
        # on, and never if they are off.
        variables[ENV_ENABLED] = "true"
    if ENV_INTERVAL in guide:
        variables[_WAIT_TIME] = str(math.ceil(settings.period_seconds))
    return variables


def _is_off(guide: Mapping[str, str], name: str) -> bool:
    """Whether the variable ``name`` turns the checks off."""
    if name not in guide:
        return False
    settings = merge(PayloadSources(environment={name: guide[name]}))
    return isinstance(settings, Resolved) and settings.mode is Mode.DISABLED


@contextmanager
def dynamo_environment(*, lenient: bool = False) -> Iterator[None]:
    """Inside, the process's environment has Dynamo's variables. Afterwards it is restored.

    ``lenient``: leave invalid variables unchanged, because no runtime is created yet.
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
