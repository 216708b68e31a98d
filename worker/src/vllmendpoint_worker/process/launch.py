"""What both programs of this distribution do when they start: log, version and ports."""

import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from .shutdown import EXIT_FAILURE, terminate

__all__ = [
    "ENV_REPORT_HOST",
    "installed_version",
    "log_to_stderr",
    "port_from_environment",
    "remove_empty_dynamo_variables",
]

ENV_REPORT_HOST: Final = "VLLMENDPOINT_REPORT_HOST"
"""Address of the report port. Default: all addresses, IPv4 and IPv6."""

_LOGGER: Final = "vllmendpoint_worker"


class _OneLineFormatter(logging.Formatter):
    """One line for each record, including tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return " | ".join(super().format(record).splitlines())


def log_to_stderr() -> None:
    """Configure this package's logger only: Dynamo and vLLM configure the root logger."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    package_logger = logging.getLogger(_LOGGER)
    package_logger.addHandler(handler)
    package_logger.setLevel(logging.INFO)
    package_logger.propagate = False


def installed_version() -> str:
    try:
        return version("vllmendpoint-worker")
    except PackageNotFoundError:
        return "unknown"


def port_from_environment(name: str, default: int, environ: Mapping[str, str] = os.environ) -> int:
    """A port from the environment. Exits the process if it is malformed."""
    raw = environ.get(name, "").strip()
    if not raw:
        return default
    if not raw.isdecimal() or len(raw) > 5 or int(raw) > 65535:
        terminate(EXIT_FAILURE, f"{name} is not a port number from 0 to 65535.")
    return int(raw)


def remove_empty_dynamo_variables(environ: MutableMapping[str, str]) -> None:
    """Dynamo exits if a number is empty."""
    for name in [name for name, value in environ.items() if name.startswith("DYN_") and not value.strip()]:
        del environ[name]
