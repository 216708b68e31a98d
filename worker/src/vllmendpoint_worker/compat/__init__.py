"""The guide's Python API on Dynamo as it is today: ``import vllmendpoint_worker.compat``, once.

The health-check payload guide ("Python Code (Runtime)", "Complete Example") imports ``DistributedRuntime``
from ``dynamo`` and two functions from ``dynamo.vllm.health_check``; Dynamo 1.6 has neither. After this import
both lines work. Nothing of Dynamo's is changed: the names are entries of ours in ``sys.modules``, where
``from package import name`` looks when the package itself has no such attribute; what
``dynamo.vllm.health_check`` holds upstream is still found there. No engine is needed: vLLM is not imported.
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

_STANDS_FOR: Final[dict[str, object]] = {
    "dynamo.DistributedRuntime": DistributedRuntime,
    "dynamo.vllm.health_check": health_check,
}

sys.modules.update(_STANDS_FOR)  # type: ignore[arg-type]  # any object may stand there
