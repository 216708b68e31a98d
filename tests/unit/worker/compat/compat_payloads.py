"""The guide's payloads, and an environment without settings; for the tests of compat."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllmendpoint_worker.compat import set_custom_health_check_payload

PAYLOAD = {"prompt": "What is 1+1?", "max_tokens": 2, "temperature": 0.0}
OTHER = {"prompt": "ping", "max_tokens": 1, "temperature": 0.0}
MINIMAL = {"prompt": "1", "max_tokens": 1, "temperature": 0.0, "stream": False, "_health_check": True}
STANDARD = MINIMAL | {"prompt": "The sky is", "max_tokens": 5, "temperature": 0.7}
CHAT = {
    "messages": [{"role": "user", "content": "Hi"}],
    "max_tokens": 1,
    "temperature": 0.0,
    "stream": False,
    "_health_check": True,
}
MARKERS = {"_health_check": True, "_HEALTH_CHECK": True}


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("DYN_", "VLLMENDPOINT_", "SM_VLLM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VLLMENDPOINT_SETTINGS_DIR", str(tmp_path / "settings"))
    yield
    set_custom_health_check_payload(None)
