"""Provides the Python API of docs/guide/health-check-payloads.md ("Python", "Complete example") on Dynamo.

Imports ``config``, ``payload`` and Dynamo's runtime, but not vLLM: it needs no engine.

The guide imports ``DistributedRuntime`` from ``dynamo`` and two functions from ``dynamo.vllm.health_check``.
Dynamo 1.6 has neither. After ``import vllmendpoint_worker.compat`` both imports work. Dynamo is not changed:
the names are entries in ``sys.modules``, which ``from package import name`` uses if the package has no such
attribute. The other names of ``dynamo.vllm.health_check`` remain available. See
docs/decisions/0032-python-api-wraps-dynamo.md.
"""

import sys
from typing import Final

from . import health_check
from ._errors import HealthCheckRejectedError
from .health_check import get_health_check_payload, set_custom_health_check_payload
from .runtime import Component, DistributedRuntime, Endpoint, Namespace

__all__ = [
    "Component",
    "DistributedRuntime",
    "Endpoint",
    "HealthCheckRejectedError",
    "Namespace",
    "get_health_check_payload",
    "set_custom_health_check_payload",
]

_GUIDE_MODULES: Final[dict[str, object]] = {
    "dynamo.DistributedRuntime": DistributedRuntime,
    "dynamo.vllm.health_check": health_check,
}

sys.modules.update(_GUIDE_MODULES)  # type: ignore[arg-type]  # any object may be an entry
