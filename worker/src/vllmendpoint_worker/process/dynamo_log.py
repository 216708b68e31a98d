"""What Dynamo logs. Pure."""

from collections.abc import Mapping
from typing import Final

__all__ = ["ENV_DYNAMO_LOG", "log_filter"]

ENV_DYNAMO_LOG: Final = "DYN_LOG"
ENV_DYNAMO_LOG_CONFIG: Final = "DYN_LOGGING_CONFIG_PATH"

_TARGET: Final = "dynamo_runtime::health_check"
_QUIET: Final = ("info", "warn")


def log_filter(environ: Mapping[str, str]) -> dict[str, str]:
    """What is added to the environment before Dynamo reads it.

    While a worker is unhealthy, Dynamo's canary logs a warning every second, which says no more than the
    worker's own line when the verdict changes. Its errors stay. A filter of the user's that asks for details,
    or that names the canary, is left alone, and so is a file that configures the log.
    """
    given = environ.get(ENV_DYNAMO_LOG, "").strip()
    directives = [directive.strip().lower() for directive in given.split(",") if directive.strip()]
    levels = [directive for directive in directives if "=" not in directive and "::" not in directive]
    named = any(directive.startswith(_TARGET) for directive in directives)
    if environ.get(ENV_DYNAMO_LOG_CONFIG, "").strip() or named or any(it not in _QUIET for it in levels):
        return {}
    # Dynamo's own default is info; a filter that names only modules has none.
    return {ENV_DYNAMO_LOG: f"{given if directives else 'info'},{_TARGET}=error"}
