"""Two processes share the tests: one folder is one group, whose tests run in their order in one process.

Without ``-n`` nothing changes.
"""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(ROOT).parts[0]
        item.add_marker(pytest.mark.xdist_group(folder))
