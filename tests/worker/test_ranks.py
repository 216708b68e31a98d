"""``--data-parallel-size 2`` on a real engine: each rank is probed, and a frozen one is named.

The tests run in the order of the file.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllmendpoint_api import Verdict

from .conftest import PERIOD, QUICK, START_SECONDS, TIMEOUT, Load, WorkerProcess, stopped, wait
from .tiny_models import make_bert

pytestmark = pytest.mark.timeout(2 * START_SECONDS)

TWO_RANKS = ["--data-parallel-size", "2"]
SEPARATE_CORES = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, toy_model: Path) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(tmp_path_factory.mktemp("ranks"), toy_model, SEPARATE_CORES, TWO_RANKS)
    worker.settings(QUICK)
    worker.start()
    try:
        worker.until(lambda report: report.ready, 2 * START_SECONDS)
        yield worker
    finally:
        worker.stop()


@pytest.fixture(scope="module", params=["embeds", "scores"])
def pooled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, minilm: Path
) -> Iterator[WorkerProcess]:
    model = minilm
    if request.param == "scores":
        model = make_bert(tmp_path_factory.mktemp("model"), model, "BertForSequenceClassification", 1)
    arguments = [*TWO_RANKS, "--max-model-len", "256"]
    worker = WorkerProcess(tmp_path_factory.mktemp("pooled"), model, SEPARATE_CORES, arguments)
    worker.settings(QUICK)
    worker.start()
    try:
        worker.until(lambda report: report.ready, 2 * START_SECONDS)
        yield worker
    finally:
        worker.stop()


def core(worker: WorkerProcess, rank: int) -> int:
    """The process id of a rank's engine core, by the name that it gives itself."""
    for child in worker.children():
        if f"EngineCore_DP{rank}".encode() in Path(f"/proc/{child.pid}/cmdline").read_bytes():
            return child.pid
    raise AssertionError(f"no engine core of rank {rank}")


def states(worker: WorkerProcess) -> list[tuple[int, str]]:
    return [(one.rank, one.state) for one in worker.report().ranks]


def test_every_rank_is_probed_and_reported(worker: WorkerProcess) -> None:
    wait(lambda: states(worker) == [(0, Verdict.GENERATING), (1, Verdict.GENERATING)])


@pytest.mark.parametrize("rank", [1, 0])
def test_a_frozen_rank_is_named_under_traffic_that_the_other_answers(
    worker: WorkerProcess, rank: int
) -> None:
    worker.until(lambda report: report.ready, 60.0)
    body = {"model": "toy", "prompt": "hello", "max_tokens": 4}
    with Load(worker, 3, body) as load, stopped(core(worker, rank)):
        worker.until(lambda report: report.verdict.state == Verdict.STALLED, 30.0)
        report = worker.report()
        assert not report.ready
        assert report.verdict.reason == "EngineStalled"
        assert re.match(rf"Data-parallel rank {rank} is stalled \(1 of 2 ranks\): ", report.verdict.message)
        assert states(worker) == sorted([(rank, Verdict.STALLED), (1 - rank, Verdict.GENERATING)])
        assert worker.status("http", "/ping") == 503
        answers = load.answers
        worker.request("report", "/probe", {}, method="POST")
        assert states(worker) == sorted([(rank, Verdict.STALLED), (1 - rank, Verdict.GENERATING)])
        assert answers >= 0
    worker.until(lambda report: report.ready, 60.0)
    assert {state for _, state in states(worker)} <= {Verdict.GENERATING, Verdict.BUSY}


def test_a_frozen_rank_is_detected_while_the_worker_is_idle(worker: WorkerProcess) -> None:
    worker.until(lambda report: report.ready, 60.0)
    with stopped(core(worker, 1)):
        took = worker.until(lambda report: report.verdict.state == Verdict.STALLED, 30.0)
        assert took < PERIOD + TIMEOUT + 5.0
        assert states(worker) == [(0, Verdict.GENERATING), (1, Verdict.STALLED)]
    worker.until(lambda report: report.ready, 60.0)


def test_a_changed_payload_is_tried_on_a_healthy_rank(worker: WorkerProcess) -> None:
    worker.until(lambda report: report.ready, 60.0)
    with stopped(core(worker, 0)):
        worker.until(lambda report: report.verdict.state == Verdict.STALLED, 30.0)
        digest = worker.settings(QUICK | {"payload": {"prompt": "x", "max_tokens": 1, "logprobs": 50}})
        worker.until(lambda report: report.configuration.settings_hash == digest, 30.0)
        (problem,) = worker.report().configuration.problems
        assert problem.field == "healthCheck.payload.logprobs"


def test_a_frozen_rank_of_a_pooling_model_is_detected(pooled: WorkerProcess) -> None:
    wait(lambda: states(pooled) == [(0, Verdict.GENERATING), (1, Verdict.GENERATING)])
    with stopped(core(pooled, 1)):
        pooled.until(lambda report: report.verdict.state == Verdict.STALLED, 30.0)
        assert states(pooled) == [(0, Verdict.GENERATING), (1, Verdict.STALLED)]
        assert "Data-parallel rank 1 is stalled" in pooled.report().verdict.message
    pooled.until(lambda report: report.ready, 60.0)
