"""The stage is the worker's phase."""

import pytest

from vllmendpoint_api import Stage
from vllmendpoint_worker.serving.state import WorkerState


@pytest.mark.parametrize(
    ("current", "reported", "after"),
    [
        (Stage.STARTING_ENGINE, Stage.LOADING_WEIGHTS, Stage.LOADING_WEIGHTS),
        (Stage.COMPILING, Stage.LOADING_WEIGHTS, Stage.COMPILING),
        (Stage.ALLOCATING_CACHE, Stage.ALLOCATING_CACHE, Stage.ALLOCATING_CACHE),
        (Stage.WARMING, Stage.COMPILING, Stage.WARMING),
        (Stage.STARTING_ENGINE, Stage.SERVING, Stage.STARTING_ENGINE),
    ],
)
def test_reports_of_the_load_only_move_the_stage_forward(
    current: Stage, reported: Stage, after: Stage
) -> None:
    state = WorkerState(worker_version="1")
    state.enter_stage(current)
    state.advance_load(reported)
    assert state.stage is after


@pytest.mark.parametrize("stage", list(Stage))
def test_the_worker_counts_as_registered_until_it_exits(stage: Stage) -> None:
    state = WorkerState(worker_version="1")
    state.enter_stage(stage)
    assert state.is_registered is (stage in (Stage.SERVING, Stage.STOPPING))
