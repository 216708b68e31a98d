"""A run of the disruptions records each case immediately, survives failing cases, and can be resumed."""

import json
from contextlib import contextmanager

import pytest

from tests.bench.disruption.analysis import Row
from tests.bench.disruption.cases import Case
from tests.bench.disruption.measure import NotRestored, measure
from tests.bench.disruption.results import Results
from tests.bench.disruption.runs import run_cases

ROW = Row(10, 1, 0, 2, 0.5, 1.5, 0.25, ("503 x",))
CASES = [Case(name, lambda subject: None) for name in ("first", "second", "third")]


class Subject:
    """``faults`` are the exceptions of cases, ``broken_starts`` the number of starts that fail."""

    def __init__(self, broken_starts=0, **faults):
        self.faults = faults
        self.broken_starts = broken_starts
        self.starts = 0
        self.measured = []

    @contextmanager
    def start(self):
        self.starts += 1
        if self.starts <= self.broken_starts:
            raise TimeoutError("no worker became ready")
        yield self.measure

    def measure(self, case):
        self.measured.append(case.name)
        if case.name in self.faults:
            raise self.faults[case.name]
        return ROW


def run(subject, results):
    run_cases("ours", CASES, subject.start, results)
    return results


def test_all_cases_share_one_subject():
    subject = Subject()
    assert list(run(subject, Results()).rows["ours"]) == ["first", "second", "third"]
    assert subject.starts == 1


@pytest.mark.parametrize("fault", [AssertionError("pod | is\nmissing"), KeyError("status"), OSError("reset")])
def test_the_cases_after_a_failing_one_are_measured_with_a_new_subject(fault):
    subject = Subject(second=fault)
    results = run(subject, Results())
    assert list(results.rows["ours"]) == ["first", "third"]
    assert list(results.unmeasured["ours"]) == ["second"]
    assert subject.starts == 2
    table = results.lines(["ours"], ["first", "second", "third"])
    assert "| second | ours | not measured: " in table[3]
    assert "\n" not in table[3]


def test_a_case_that_cannot_be_undone_keeps_its_row():
    subject = Subject(first=NotRestored(ROW))
    assert list(run(subject, Results()).rows["ours"]) == ["first", "second", "third"]
    assert subject.starts == 2


def test_the_subject_is_started_a_second_time():
    subject = Subject(broken_starts=1)
    assert list(run(subject, Results()).rows["ours"]) == ["first", "second", "third"]


def test_a_subject_that_never_starts_ends_its_run():
    subject = Subject(broken_starts=9)
    results = run(subject, Results())
    assert subject.starts == 2
    assert set(results.unmeasured["ours"]) == {"first", "second", "third"}


def test_rows_are_in_the_file_after_an_interruption_and_a_resumed_run_adds_the_others(tmp_path):
    path = tmp_path / "folder/rows.json"
    with pytest.raises(KeyboardInterrupt):
        run(Subject(second=KeyboardInterrupt()), Results(path, "abc"))
    assert list(json.loads(path.read_text())["rows"]["ours"]) == ["first"]
    interrupted = Results(path, "abc")
    interrupted.resume()
    interrupted.complete("ours", [case.name for case in CASES])
    assert interrupted.unmeasured["ours"] == dict.fromkeys(("second", "third"), "the run ended before it")
    results = Results(path, "abc")
    results.resume()
    subject = Subject()
    assert run(subject, results).rows["ours"] == {"first": ROW, "second": ROW, "third": ROW}
    assert subject.measured == ["second", "third"]


def test_a_run_of_another_version_is_not_resumed(tmp_path):
    path = tmp_path / "rows.json"
    Results(path, "abc").measured("ours", "first", ROW)
    with pytest.raises(ValueError, match="abc"):
        Results(path, "def").resume()


def test_failures_of_both_subjects_are_in_one_line():
    results = Results(rows={"ours": {"first": ROW}, "plain": {"second": ROW}})
    assert results.side_by_side("ours", "plain", ["first", "second"]) == [
        "| first | not measured | 1 of 10 | 0 | 2 | 0.5, 1.5 | 0.2 |",
        "| second | 1 of 10 | not measured |  |  |  |  |",
    ]


def test_a_case_is_undone_if_it_fails(monkeypatch):
    undone = []

    def disrupt(subject):
        raise AssertionError("no such pod")

    monkeypatch.setattr("tests.bench.disruption.measure.wait_healthy", lambda subject: None)
    monkeypatch.setattr("tests.bench.disruption.measure.migrations", lambda subject: {})
    with pytest.raises(AssertionError, match="no such pod"):
        measure(object(), Case("x", disrupt, undo=undone.append), None, [], {})
    assert len(undone) == 1


def test_the_row_survives_a_failing_restoration(monkeypatch):
    def undo(subject):
        raise TimeoutError("not healthy")

    monkeypatch.setattr("tests.bench.disruption.measure._measure", lambda *_: ROW)
    with pytest.raises(NotRestored) as found:
        measure(object(), Case("x", lambda subject: None, undo=undo), None, [], {})
    assert found.value.row == ROW
