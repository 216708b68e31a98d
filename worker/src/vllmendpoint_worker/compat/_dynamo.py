"""The only importer of Dynamo in this package: its runtime, and never vLLM.

Apart from :mod:`vllmendpoint_worker.upstream`, whose import takes vLLM and 10-25 s.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
from contextlib import suppress
from functools import cache
from types import ModuleType
from typing import Any, Final

from ._environment import dynamo_environment

# At its import already, Dynamo reads the runtime's configuration and warns of one that it cannot take.
with dynamo_environment(lenient=True):
    from dynamo._core import log_message
    from dynamo.health_check import HEALTH_CHECK_KEY
    from dynamo.runtime import DistributedRuntime

with suppress(ModuleNotFoundError):  # the wheel of the runtime alone has no dynamo.vllm
    import dynamo.vllm  # noqa: F401  (a version, no engine; lets ``import dynamo.vllm.health_check as`` work)

__all__ = ["HEALTH_CHECK_KEY", "DistributedRuntime", "log_message", "upstream_health_check"]

_NAME: Final = "dynamo.vllm.health_check"
_LOADED: Final = sys.modules.get(_NAME)
"""Upstream's module, where somebody imported it before us."""


@cache
def upstream_health_check() -> Any:
    """Upstream's own ``dynamo.vllm.health_check``; raises ImportError where it is not installed."""
    if _LOADED is not None and _LOADED.__name__ == _NAME:
        return _LOADED
    package = importlib.import_module(_NAME.rpartition(".")[0])
    spec = importlib.machinery.PathFinder.find_spec(_NAME, package.__path__)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {_NAME!r}", name=_NAME)
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
