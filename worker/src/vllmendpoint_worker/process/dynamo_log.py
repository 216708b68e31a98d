"""Reduces the log output of Dynamo. Pure."""

from collections.abc import Mapping
from typing import Final

__all__ = ["ENV_DYNAMO_LOG", "FRONTEND_FILTER", "WORKER_FILTER", "log_filter"]

ENV_DYNAMO_LOG: Final = "DYN_LOG"
ENV_DYNAMO_LOG_CONFIG: Final = "DYN_LOGGING_CONFIG_PATH"

WORKER_FILTER: Final = ("dynamo_runtime::health_check", "error")
"""While a worker is unhealthy, Dynamo's canary logs a warning every second, which adds nothing to the
worker's own line for the changed verdict. The canary's errors are still logged."""

FRONTEND_FILTER: Final = ("dynamo_llm::http::service::service_v2", "warn")
"""One line for each response, also to the probes of the kubelet and the polls of the prober, several per
second. Requests to models have other lines."""

_QUIET: Final = ("info", "warn")


def log_filter(
    environ: Mapping[str, str], target_and_level: tuple[str, str] = WORKER_FILTER
) -> dict[str, str]:
    """Variables to add to the environment before Dynamo reads it, so that a target has another level.

    A filter of the user that names the target or requests more detail is not changed, and neither is a
    configuration file for the log.
    """
    target, quiet_level = target_and_level
    value = environ.get(ENV_DYNAMO_LOG, "").strip()
    directives = [directive.strip().lower() for directive in value.split(",") if directive.strip()]
    levels = [directive for directive in directives if "=" not in directive and "::" not in directive]
    names_target = any(directive.startswith(target) for directive in directives)
    detailed = any(level not in _QUIET for level in levels)
    if environ.get(ENV_DYNAMO_LOG_CONFIG, "").strip() or names_target or detailed:
        return {}
    # Dynamo's default is info; a filter that names only modules has no default.
    return {ENV_DYNAMO_LOG: f"{value if directives else 'info'},{target}={quiet_level}"}
