"""No caller loses an answer during a failure or a change: the quick cases of ``tests.bench.disruption``."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.bench.disruption.analysis import Record, expected_texts
from tests.bench.disruption.cases import CASES, Case
from tests.bench.disruption.load import Load, running_load
from tests.bench.disruption.measure import base_url, measure
from tests.bench.disruption.subjects import Ours

from .conftest import Cluster

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        os.environ.get("CLUSTER") == "kind",
        reason="this machine does not reach the Service's address on kind",
    ),
]


class Disturbed(NamedTuple):
    subject: Ours
    load: Load
    baseline: list[Record]
    expected: dict[str, str]


@pytest.fixture(scope="module")
def disturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disturbed]:
    subject = Ours(cluster)
    subject.create()
    folder: Path = tmp_path_factory.mktemp("disruption")
    with running_load(base_url(subject), folder) as load:
        load.wait_for(4, 180)
        baseline = load.records()
        yield Disturbed(subject, load, baseline, expected_texts(baseline))


@pytest.mark.parametrize("case", [case for case in CASES if case.quick], ids=lambda case: case.name)
def test_no_request_fails_or_changes_its_text(disturbed: Disturbed, case: Case) -> None:
    found = measure(disturbed.subject, case, disturbed.load, disturbed.baseline, disturbed.expected)
    print(f"\n{case.name}: {found}")
    assert found.requests > 5
    assert (found.failed, found.wrong) == (0, 0), found.errors
