"""Runs one case against one subject, and reads how many requests its frontends moved."""

import contextlib
import time
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Final

from .analysis import Record, Row, row
from .cases import Case, wait_healthy
from .load import Load
from .subjects import Subject

__all__ = ["NotRestored", "base_url", "measure"]

MIGRATIONS: Final = "dynamo_frontend_model_migration_total"
AFTER_SECONDS: Final = 5.0
"""Requests that start within this time after the disruption belong to the case too."""


def base_url(subject: Subject) -> str:
    """URL of the frontends' Service by its address, which this machine reaches through the node."""
    service = subject.cluster.get("service", subject.service)
    return f"http://{service['spec']['clusterIP']}:8000"


def migrations(subject: Subject) -> dict[str, float]:
    """Moved requests by frontend pod, as far as its metrics can be read."""
    found = {}
    for pod in subject.frontends():
        url = f"http://{pod['status'].get('podIP')}:8000/metrics"
        try:
            with urllib.request.urlopen(url, timeout=3) as response:
                lines = response.read().decode().splitlines()
        except OSError:
            continue
        found[pod["metadata"]["name"]] = sum(
            float(line.split()[-1]) for line in lines if line.startswith(MIGRATIONS)
        )
    return found


class NotRestored(Exception):
    """The case was measured, but what it changed could not be undone."""

    def __init__(self, row: Row) -> None:
        super().__init__("the subject is not restored")
        self.row: Final = row


def measure(
    subject: Subject, case: Case, load: Load, baseline: Sequence[Record], expected: Mapping[str, str]
) -> Row:
    """Apply ``case`` under ``load`` and return its row. The subject is healthy before and after.

    Raises NotRestored with the row if only the restoration failed, and else what the failing step raised.
    """
    try:
        found = _measure(subject, case, load, baseline, expected)
    except Exception:
        with contextlib.suppress(Exception):  # the first error is the cause
            case.undo(subject)
        raise
    try:
        case.undo(subject)
    except Exception as error:
        raise NotRestored(found) from error
    return found


def _measure(
    subject: Subject, case: Case, load: Load, baseline: Sequence[Record], expected: Mapping[str, str]
) -> Row:
    case.prepare(subject)
    wait_healthy(subject)
    before = migrations(subject)
    begin = time.time()
    case.disrupt(subject)
    end = time.time() + AFTER_SECONDS
    time.sleep(AFTER_SECONDS)
    load.wait_for(1, 180)
    moved = sum(count - before.get(pod, 0.0) for pod, count in migrations(subject).items())
    return row(load.records(), baseline, expected, (begin, end), round(moved))
