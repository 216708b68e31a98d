"""Distributes the tests over processes by folder; the tests of one folder run in order in one process.

Without ``-n`` all tests run in one process. The project's programs come first in ``PATH``.
"""

import os

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from .project_cache import BIN

os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"

# A slow machine is not a failure, and a failure must be reproducible.
settings.register_profile(
    "ours", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ours")


class FolderScheduling(LoadScopeScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        """``tests/e2e/test_causes.py::test_x`` belongs to ``tests/e2e``."""
        return nodeid.partition("::")[0].rpartition("/")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> FolderScheduling:
    return FolderScheduling(config, log)
