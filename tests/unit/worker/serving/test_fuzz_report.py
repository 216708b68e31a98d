"""Random reports as the operator parses them: a report is untrusted input."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.worker.fuzzing import SECRET, fuzz, values
from vllmendpoint_api import WorkerReport
from vllmendpoint_operator.reports.streams import parse

NOW = "2026-11-22T00:00:00Z"
REPORT: dict[str, Any] = {
    "version": 1,
    "workerVersion": "1",
    "podUid": "uid",
    "time": NOW,
    "stage": {"name": "Serving", "since": NOW},
    "configuration": {"state": "Resolved", "settingsHash": "h"},
    "verdict": {"state": "Generating", "since": NOW},
    "lastProbe": {"time": NOW, "latencyMilliseconds": 1.0, "tokens": 1, "outcome": "Complete"},
    "healthCheck": {
        "source": "Spec",
        "payload": {"prompt": "x"},
        "payloadDigest": "d",
        "periodSeconds": 30,
        "timeoutSeconds": 5,
        "failureThreshold": 2,
        "successThreshold": 1,
        "restartAfterSeconds": 600,
    },
}


def places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = (
        [place for key, item in value.items() for place in places(item, (*path, key))]
        if isinstance(value, dict)
        else []
    )
    return [*([path] if path else []), *inner]


@given(
    place=st.sampled_from(places(REPORT)),
    value=values | st.text(st.characters(exclude_categories=[]), max_size=20) | st.just("x" * 3000),
)
@fuzz(600)
def test_a_report_is_parsed_or_rejected_and_never_contains_control_characters(
    place: tuple[str, ...], value: Any
) -> None:
    report = json.loads(json.dumps(REPORT))
    inner = report
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    line = json.dumps(report).encode()
    try:
        read = parse(line, "uid")
    except ValueError as error:
        rejection = str(error)
    else:
        rejection = ""
    assert SECRET not in rejection
    assert "\n" not in rejection
    if rejection:
        return
    assert isinstance(read, WorkerReport)
    assert read.pod_uid == "uid"
    text = json.dumps(read.wire(), allow_nan=False)
    for control in ("\\u0000", "\\u001b", "\\n", "\\r", "\\u2028", "\\u007f", "\\u0085"):
        assert control not in text
    json.dumps(read.wire(), ensure_ascii=False).encode()  # valid for the API server


@given(line=st.binary(max_size=80) | values.map(lambda value: json.dumps(value).encode()))
@example(line=b"[" * 10_000)
@example(line=b'{"a":' * 10_000)
@example(line=b"\xff")
@fuzz(200)
def test_a_line_that_is_no_report_is_rejected(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(line, "uid")


def test_the_unchanged_report_is_valid() -> None:
    assert parse(json.dumps(REPORT).encode(), "uid").health_check is not None
