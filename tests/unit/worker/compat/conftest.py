"""Each test of compat starts without settings."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllmendpoint_worker.compat import set_custom_health_check_payload


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings from the environment, from a VLLMEndpoint or from an earlier test."""
    for name in [name for name in os.environ if name.startswith(("DYN_", "VLLMENDPOINT_", "SM_VLLM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VLLMENDPOINT_SETTINGS_DIR", str(tmp_path / "settings"))
    yield
    set_custom_health_check_payload(None)
