"""healthCheck.expect.regex: the patterns that admission and worker accept. No text makes the match slow."""

import time

import pytest

from vllmendpoint_worker.payload.expect import Expectation, regex_error


def test_no_pattern_hangs_the_worker() -> None:
    expectation = Expectation("(a+)+$", lambda tokens: "a" * 100_000 + "b")
    began = time.monotonic()
    assert not expectation.is_met([[1]])
    assert time.monotonic() - began < 5.0  # Python's re needs exponential time


def test_invalid_patterns_are_explained_and_valid_patterns_are_accepted(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for regex in ("Paris", r"(?i)\bparis\b", r"^\s*\pL+", "[[:digit:]]{2}", "a|b"):
        assert regex_error(regex) is None
    for regex, expected in (
        ("(a", "missing )"),
        ("(?=x)", "perl operator"),
        (r"\1", "escape"),
        ("\ud800", "UTF-8"),
        ("a{1001}", "repet"),
    ):
        assert expected in (regex_error(regex) or "")
    assert capfd.readouterr().err == ""
