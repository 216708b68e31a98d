import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One folder for all examples of a module."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
