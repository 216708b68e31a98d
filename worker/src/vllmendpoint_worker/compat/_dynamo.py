"""Imports Dynamo's runtime for this package, without vLLM.

Separate from :mod:`vllmendpoint_worker.upstream`, which imports vLLM and takes 10-25 s.
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

# Dynamo reads the runtime's configuration when it is imported, and warns if it is not valid.
with dynamo_environment(lenient=True):
    from dynamo._core import log_message
    from dynamo.health_check import HEALTH_CHECK_KEY
    from dynamo.runtime import DistributedRuntime

with suppress(ModuleNotFoundError):  # the runtime's wheel does not contain dynamo.vllm
    import dynamo.vllm  # noqa: F401  (no engine; makes ``import dynamo.vllm.health_check as`` work)

__all__ = ["HEALTH_CHECK_KEY", "DistributedRuntime", "log_message", "upstream_health_check"]

_NAME: Final = "dynamo.vllm.health_check"
_LOADED: Final = sys.modules.get(_NAME)
"""Upstream's module, if it was imported before this one."""


@cache
def upstream_health_check() -> Any:
    """Upstream's own ``dynamo.vllm.health_check``. Raises ImportError if it is not installed."""
    if _LOADED is not None and _LOADED.__name__ == _NAME:
        return _LOADED
    package = importlib.import_module(_NAME.rpartition(".")[0])
    spec = importlib.machinery.PathFinder.find_spec(_NAME, package.__path__)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {_NAME!r}", name=_NAME)
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
