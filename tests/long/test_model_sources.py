"""Models that the worker downloads before the engine starts: from a real S3 store, and from a hub at a
revision.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model_hub import model_hub
from tests.object_store import SECRET_KEY, client, object_store
from tests.worker.conftest import WorkerProcess, stopped
from vllmendpoint_api import Stage

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    """A worker without a model."""
    worker = WorkerProcess(tmp_path, tmp_path / "cache" / "toy")
    try:
        yield worker
    finally:
        worker.stop()


def assert_serves(worker: WorkerProcess) -> None:
    worker.until_ready()
    assert worker.request("http", "/v1/chat/completions", CHAT)[0] == 200
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.exit_code(30.0) == 0


def test_a_model_in_s3_is_served_once_its_bucket_exists(
    worker: WorkerProcess, tmp_path: Path, toy_model: Path
) -> None:
    (tmp_path / "s3").mkdir()
    with object_store(tmp_path / "s3") as environ:
        worker.environ |= environ | {"VLLMENDPOINT_MODEL_URI": "s3://models/toy/"}
        worker.start()
        worker.until(lambda report: report.stage.name == Stage.REJECTED, 30.0)
        (problem,) = worker.report().configuration.problems
        assert (problem.reason, problem.field) == ("ModelDownloadFailed", "model.uri")
        assert "a bucket that does not exist" in problem.message
        with stopped(worker.pid):  # or the worker might download an incomplete model
            client(environ).create_bucket(Bucket="models")
            for file in toy_model.iterdir():
                client(environ).upload_file(str(file), "models", f"toy/{file.name}")
        worker.until(lambda report: report.stage.name != Stage.REJECTED, 60.0)
        assert_serves(worker)
        assert SECRET_KEY not in worker.log()


def test_a_model_of_the_hub_is_served_at_its_revision(
    worker: WorkerProcess, tmp_path: Path, toy_model: Path
) -> None:
    """The default branch has no model, so any use of it would fail."""
    files = {file.name: file.read_bytes() for file in toy_model.iterdir()}
    with model_hub({"main": {"config.json": b"{}"}, "v2": files}) as url:
        worker.environ |= {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        worker.arguments = ["--model", "team/toy", "--revision", "v2", *worker.arguments[2:]]
        worker.start()
        assert_serves(worker)
