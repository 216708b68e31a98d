"""The layout of the tests."""

from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_modules_outside_of_packages_have_different_names() -> None:
    """pytest cannot collect two of the same name in one run."""
    files = [file for file in TESTS.rglob("test_*.py") if not (file.parent / "__init__.py").exists()]
    counts = Counter(file.name for file in files)
    assert [name for name, count in counts.items() if count > 1] == []
