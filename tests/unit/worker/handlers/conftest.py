"""Fixtures of the tests of custom handlers."""

import logging

import pytest


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("vllmendpoint_worker"), "propagate", True)
    return caplog
