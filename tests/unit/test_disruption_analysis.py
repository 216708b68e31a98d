"""The table of disruptions counts failed, wrong and delayed requests as callers see them."""

import pytest

from tests.bench.disruption.analysis import Record, expected_texts, row

EXPECTED = {"short": "a b"}


def record(began=0.0, seconds=1.0, gap=0.5, **changes):
    fields = {
        "kind": "short", "status": 200, "text": "a b", "finish": "length", "error": "", "first": 0.1,
    } | changes  # fmt: skip
    return Record(began=began, seconds=seconds, gap=gap, **fields)


BASELINE = [record(began=began) for began in range(3)]


def counted(*records, disruption=(10.0, 20.0), moved=0):
    return row(records, BASELINE, EXPECTED, disruption, moved)


@pytest.mark.parametrize(
    ("changes", "failed", "wrong"),
    [
        ({}, 0, 0),
        ({"text": "a c"}, 0, 1),
        ({"text": "a"}, 0, 1),
        ({"finish": ""}, 1, 0),
        ({"finish": "", "text": "a"}, 1, 0),
        ({"status": 503, "error": "x"}, 1, 0),
        ({"status": 0, "error": "ReadTimeout"}, 1, 0),
        ({"error": "the stream ended without [DONE]"}, 1, 0),
    ],
)
def test_a_request_is_answered_wrong_or_failed(changes, failed, wrong):
    found = counted(record(began=12, **changes))
    assert (found.requests, found.failed, found.wrong) == (1, failed, wrong)
    assert bool(found.errors) is bool(failed)


def test_only_requests_that_overlap_with_the_disruption_count():
    before, into, during, after = (record(began=at, seconds=2) for at in (5, 9, 15, 21))
    assert counted(before, into, during, after).requests == 2


def test_the_usual_time_and_gap_of_the_kind_are_subtracted():
    found = counted(record(began=12, seconds=4.0, gap=3.0), record(began=13), record(began=14))
    assert (found.extra_median, found.extra_max, found.gap) == (0.0, 3.0, 2.5)


def test_a_hanging_request_counts_for_the_gap_although_it_failed():
    assert counted(record(began=12, seconds=60, gap=60, status=0, error="ReadTimeout")).gap == 59.5


def test_expected_texts_must_be_the_same_every_time():
    assert expected_texts(BASELINE) == EXPECTED
    with pytest.raises(ValueError, match="2 different texts"):
        expected_texts([*BASELINE, record(text="other")])
