"""Fixtures of custom handlers, which are removed from the interpreter after each test."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.worker.handlers_served import Served


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("vllmendpoint_handlers") or name in ("neighbour", "sibling"):
            del sys.modules[name]


@pytest.fixture
def served(tmp_path: Path, clean: None) -> Served:
    folder = tmp_path / "model"
    folder.mkdir()
    return Served(folder)
