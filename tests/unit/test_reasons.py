"""The reasons that a worker gives are reasons that the condition may have."""

import re
from pathlib import Path

import pytest

from vllmendpoint_api import CONDITION_REASONS, Condition

SOURCES = sorted((Path(__file__).parents[2] / "worker/src/vllmendpoint_worker").rglob("*.py"))
GIVEN = sorted({name for path in SOURCES for name in re.findall(r'"(Invalid[A-Za-z]+)"', path.read_text())})


def test_the_worker_gives_reasons():
    assert len(GIVEN) >= 4, GIVEN


@pytest.mark.parametrize("reason", GIVEN)
def test_reason_of_the_worker_is_known(reason):
    assert reason in {known.value for known in CONDITION_REASONS[Condition.CONFIGURATION_RESOLVED]}
