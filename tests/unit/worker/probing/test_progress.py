"""What counts as a recent step of the engine."""

import pytest

from vllmendpoint_worker.probing.progress import RankProgress
from vllmendpoint_worker.probing.verdict import CRITICAL_STEPS


def test_progress_forgets_old_steps() -> None:
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


def test_a_long_step_is_remembered_for_a_minute_however_many_short_ones_follow() -> None:
    now = [1000.9]
    progress = RankProgress(lambda: now[0])
    progress.record_step(1, 4.0)
    for _ in range(6000):
        now[0] += 0.01
        progress.record_step(1, 0.01)
        assert progress.snapshot().longest_step == 4.0
    now[0] += 1.0
    assert progress.snapshot().longest_step == 0.01


def test_the_step_of_a_stall_makes_the_window_its_length_and_not_three_of_it() -> None:
    now = [1000.0]
    progress = RankProgress(lambda: now[0])
    progress.record_step(1, 0.1)
    now[0] += 4.0
    progress.mark_stalled()
    now[0] += 1.0
    progress.record_step(1, 5.0)  # began before the verdict: it is the stall
    assert progress.snapshot().longest_step == pytest.approx(5.0 / CRITICAL_STEPS)
    now[0] += 2.0
    progress.record_step(1, 1.9)  # began after it
    assert progress.snapshot().longest_step == 1.9
