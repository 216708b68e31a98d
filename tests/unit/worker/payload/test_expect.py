"""healthCheck.expect.regex: what admission and worker take, and that no text makes it slow."""

import time

import pytest

from vllmendpoint_worker.payload.expect import Expectation, regex_error


def test_no_pattern_hangs_the_worker() -> None:
    expectation = Expectation("(a+)+$", lambda tokens: "a" * 100_000 + "b")
    began = time.monotonic()
    assert not expectation.is_met([[1]])
    assert time.monotonic() - began < 5.0  # Python's own re needs longer than the universe has


def test_what_admission_takes_is_taken_and_the_rest_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    for regex in ("Paris", r"(?i)\bparis\b", r"^\s*\pL+", "[[:digit:]]{2}", "a|b"):
        assert regex_error(regex) is None
    for regex, says in (
        ("(a", "missing )"),
        ("(?=x)", "perl operator"),
        (r"\1", "escape"),
        ("\ud800", "UTF-8"),
        ("a{1001}", "repet"),
    ):
        assert says in (regex_error(regex) or "")
    assert capfd.readouterr().err == ""
