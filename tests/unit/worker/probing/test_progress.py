"""Which engine steps count as recent."""

import pytest

from vllmendpoint_worker.probing.progress import EngineProgress, RankProgress
from vllmendpoint_worker.probing.verdict import CRITICAL_STEPS


def test_steps_older_than_a_minute_do_not_count() -> None:
    now = [1000.0]
    progress = RankProgress(lambda: now[0])
    progress.record_step(0, 9.0)
    assert progress.snapshot().last_scheduled is None
    progress.record_step(1, 9.0)
    assert progress.snapshot().longest_step == 9.0
    now[0] += 61.0
    progress.record_step(1, 0.1)
    assert (progress.snapshot().longest_step, progress.snapshot().last_scheduled) == (0.1, 1061.0)
    progress.forget_steps()
    assert progress.snapshot().longest_step == 0.0


def test_the_longest_step_counts_for_a_minute() -> None:
    now = [1000.9]
    progress = RankProgress(lambda: now[0])
    progress.record_step(1, 4.0)
    for _ in range(6000):
        now[0] += 0.01
        progress.record_step(1, 0.01)
        assert progress.snapshot().longest_step == 4.0
    now[0] += 1.0
    assert progress.snapshot().longest_step == 0.01


def test_the_step_of_a_stall_does_not_triple_the_window() -> None:
    now = [1000.0]
    progress = RankProgress(lambda: now[0])
    progress.record_step(1, 0.1)
    now[0] += 4.0
    progress.mark_stalled()
    now[0] += 1.0
    progress.record_step(1, 5.0)  # started before the verdict: it is the stall
    assert progress.snapshot().longest_step == pytest.approx(5.0 / CRITICAL_STEPS)
    now[0] += 2.0
    progress.record_step(1, 1.9)  # started after the verdict
    assert progress.snapshot().longest_step == 1.9


def test_one_rank_with_used_kv_blocks_is_enough() -> None:
    progress = EngineProgress()
    assert not progress.holds_kv_blocks
    for rank in (0, 1):
        progress.add_rank(rank)
    assert not progress.holds_kv_blocks
    progress.rank(1).holds_kv_blocks = True
    assert progress.holds_kv_blocks
