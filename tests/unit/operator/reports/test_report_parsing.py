"""Reports as untrusted input."""

import contextlib
import json
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.operator.reports.stream_worker import WIRE, changed
from vllmendpoint_operator.observe.snapshot import Observed
from vllmendpoint_operator.reports.state import StreamState
from vllmendpoint_operator.reports.streams import parse
from vllmendpoint_operator.status import endpoint_status


def test_unknown_fields_of_a_later_version_are_ignored():
    wire = {**changed("verdict.confidence", 0.9), "version": 2, "novelty": {"a": [1]}}
    assert parse(json.dumps(wire).encode(), "u").verdict.state == "Generating"


def test_times_are_converted_to_utc():
    report = parse(json.dumps(changed("stage.since", "2026-01-01T13:00:00+02:00")).encode(), "u")
    assert report.stage.since == datetime(2026, 1, 1, 11, tzinfo=UTC)
    assert report.stage.since.tzinfo is UTC


def test_escaped_control_characters_are_removed():
    wire = changed("verdict.message", "a\x1b[31m\r\nb\u2028c\x00\x9bd")
    wire["healthCheck"]["payload"] = {"k\n": ["v\x07"]}
    report = parse(json.dumps(wire).encode(), "u")
    assert report.verdict.message == "a [31m b c d"
    assert report.health_check.payload == {"k ": ["v "]}


@pytest.mark.parametrize("character", ["\x7f", "\x80", "\x9b", "\u2028", "\u2029"])
def test_unescaped_control_characters_are_removed(character):
    wire = changed("verdict.message", f"a{character}b")
    assert parse(json.dumps(wire, ensure_ascii=False).encode(), "u").verdict.message == "a b"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"", "malformed report"),
        (b"hello", "malformed report"),
        (b"[]", "malformed report"),
        (b"null", "malformed report"),
        (b"{}", "malformed report"),
        (b"\xff\xfe", "malformed report"),
        (b"[" * 100_000, "malformed report"),
        (b'{"a":' * 100_000, "malformed report"),
        (json.dumps(WIRE).encode()[:-1], "malformed report"),
        (changed("podUid", "another"), "the report is of another pod"),
        (changed("podUid", ""), "the report is of another pod"),
        (changed("verdict.state", "Splendid"), "verdict.state: enum"),
        (changed("lastProbe.outcome", "Good"), "lastProbe.outcome: enum"),
        (changed("stage.name", "Sleeping"), "stage.name: enum"),
        (changed("verdict.message", "x" * 2049), "verdict.message: string_too_long"),
        (changed("verdict.reason", "x" * 129), "verdict.reason: string_too_long"),
        (changed("verdict.message", "\ud800"), "malformed report"),
        (changed("time", "yesterday"), "time: "),
        (changed("time", "2026-01-01T00:00:00"), "time: timezone_aware"),
        (changed("lastProbe.time", "0001-01-01T00:00:00Z"), "lastProbe.time: value_error"),
        (changed("lastProbe.time", "9999-12-31T23:59:59-12:00"), "lastProbe.time: value_error"),
        (changed("lastProbe.latencyMilliseconds", float("nan")), "lastProbe.latencyMilliseconds"),
        (changed("lastProbe.latencyMilliseconds", 1e300), "lastProbe.latencyMilliseconds"),
        (changed("lastProbe.latencyMilliseconds", -1), "lastProbe.latencyMilliseconds"),
        (changed("lastProbe.tokens", 10**30), "lastProbe.tokens"),
        (changed("healthCheck.payload", {"a": float("inf")}), "healthCheck.payload"),
        (changed("healthCheck.payload", {"a": [10**30]}), "healthCheck.payload"),
        (changed("healthCheck.payload", json.loads('{"a":' * 70 + "1" + "}" * 70)), "healthCheck.payload"),
        (changed("configuration.problems", [{}] * 17), "configuration.problems"),
    ],
)
def test_a_malformed_report_is_an_error_that_does_not_quote_it(line, expected):
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse(raw, "u")
    message = str(caught.value)
    assert expected in message
    assert "Splendid" not in message
    assert len(message) < 300


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.datetimes().map(str)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
PATHS = [
    *WIRE,
    *(f"{key}.{inner}" for key, value in WIRE.items() if isinstance(value, dict) for inner in value),
]


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_input_is_a_report_or_a_value_error(line):
    with contextlib.suppress(ValueError):
        parse(line, "u")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(PATHS), JSON, min_size=1, max_size=3))
def test_every_accepted_report_results_in_a_valid_status(make_endpoint, make_pod, noon, changes):
    wire = json.loads(json.dumps(WIRE))
    for path, value in changes.items():
        outer, _, inner = path.partition(".")
        if not inner:
            wire[outer] = value
        elif isinstance(wire.get(outer), dict):
            wire[outer][inner] = value
    try:
        report = parse(json.dumps(wire).encode(), "u")
    except ValueError:
        return
    for ready in (True, False):
        pod = make_pod("w-1", StreamState(report, True, True), ready=ready)
        found = endpoint_status(make_endpoint(), Observed(now=noon, workers=(pod,)), None, None).wire()
        assert len(json.dumps(found, allow_nan=False)) < 200_000
