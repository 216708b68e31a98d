"""The termination message from errors as Dynamo and vLLM raise them."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field, ValidationError

from vllmendpoint_api import Stage
from vllmendpoint_worker import start
from vllmendpoint_worker.engine import engine_errors, stages
from vllmendpoint_worker.engine.engine_errors import EngineErrors, describe_error, download_failure
from vllmendpoint_worker.engine.stages import ENV_STAGE_SOCKET, StageReceiver
from vllmendpoint_worker.errors import EngineStartError
from vllmendpoint_worker.process import shutdown
from vllmendpoint_worker.serving.state import WorkerState

FETCH = (
    "Failed to fetch model 'team/gated' at revision 'main' from HuggingFace. "
    "Is this a valid HuggingFace ID and revision? Error: request error: "
)
URL = "http://127.0.0.1:46411/api/models/team/gated/revision/main"
FILE = (
    "Failed to download file 'config.json' from model 'team/gated': request error: HTTP status client error "
    "(401 Unauthorized) for url (http://127.0.0.1:37977/team/gated/resolve/aa/config.json)"
)
"""Recorded from the downloader of Dynamo 1.3 with a hub on loopback (HF_ENDPOINT)."""
POINTER = RuntimeError(
    "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_DP0': 1}"
)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            f"{FETCH}HTTP status client error (401 Unauthorized) for url ({URL})",
            [f"{URL} answered 401 Unauthorized.", "gated or private", "as HF_TOKEN"],
        ),
        (f"{FETCH}HTTP status client error (403 Forbidden) for url ({URL})", ["403 Forbidden", "gated"]),
        (FILE, ["config.json answered 401 Unauthorized", "gated"]),
        (f"{FETCH}HTTP status client error (404 Not Found) for url ({URL})", ["404 Not Found", "model.uri"]),
        (
            f"{FETCH}HTTP status client error (429 Too Many Requests) for url ({URL})",
            ["limits the requests"],
        ),
        (
            f"{FETCH}HTTP status server error (500 Internal Server Error) for url ({URL})",
            ["The hub failed. The worker retries."],
        ),
        (f"{FETCH}error sending request for url ({URL})", [f"{URL} cannot be reached", "HF_ENDPOINT"]),
        ("No space left on device (os error 28)", ["Exception: No space left on device"]),
    ],
)
def test_a_failed_download_reports_cause_and_remedy(text: str, parts: list[str]) -> None:
    message = download_failure("team/gated", Exception(text))
    assert message is not None
    assert message.startswith("ModelDownloadFailed: the model 'team/gated' cannot be downloaded: ")
    for part in parts:
        assert part in message
    assert "\n" not in message


def test_an_error_of_the_worker_is_no_download_failure() -> None:
    assert download_failure("m", EngineStartError("--x is refused")) is None


def test_a_description_is_one_line_without_input_values() -> None:
    class Strict(BaseModel):
        port: Annotated[int, Field(gt=0)]

    with pytest.raises(ValidationError) as refused:
        Strict.model_validate({"port": "s3cret"})
    assert describe_error(refused.value).startswith("Strict: port: Input should be a valid integer")
    assert "s3cret" not in describe_error(refused.value)
    assert describe_error(ValueError("two\n  lines")) == "ValueError: two lines"
    assert describe_error(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_an_error_that_refers_to_the_engine_is_replaced_by_the_engines_error() -> None:
    errors = EngineErrors()
    assert errors.root_cause(POINTER).startswith("RuntimeError: Engine core initialization failed")
    assert not errors.latest()
    errors.record("ValueError: no memory for the cache")
    errors.record("RuntimeError: Worker failed. See root cause above.")
    assert errors.root_cause(POINTER) == "The engine failed: ValueError: no memory for the cache"
    assert errors.root_cause(ValueError("of another kind")) == "ValueError: of another kind"
    errors.record("OSError: a later one")
    assert errors.latest() == " The last error in its log: OSError: a later one"


CHILD = """
import logging
from vllmendpoint_worker.engine.stages import install
install()
log = logging.getLogger("vllm.v1.engine.core")
logging.getLogger("vllm").setLevel(logging.INFO)
log.error("an error without an exception")
try:
    raise ValueError("To serve one request\\nmore cache is needed")
except ValueError:
    log.info("nothing", exc_info=True)
    log.exception("EngineCore failed to start.")
"""


def test_errors_of_child_processes_are_received(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = EngineErrors()
    monkeypatch.setattr(stages, "ENGINE_ERRORS", errors)
    receiver = StageReceiver(lambda stage: None)
    try:  # not started: stop reads the datagrams in the socket
        environ = {**os.environ, ENV_STAGE_SOCKET: receiver.address.replace(str(os.getpid()), "1")}
        subprocess.run([sys.executable, "-c", CHILD], env=environ, check=True, timeout=30)
    finally:
        receiver.stop()
    assert (
        errors.root_cause(POINTER)
        == "The engine failed: ValueError: To serve one request more cache is needed"
    )
    assert engine_errors.ENGINE_ERRORS is not errors


def test_a_signal_during_the_start_writes_the_stage_to_the_termination_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The kubelet sends SIGTERM after worker.startupTimeoutSeconds."""
    log = tmp_path / "termination-log"
    log.touch()
    codes: list[int] = []
    monkeypatch.setattr(shutdown, "TERMINATION_LOG", log)
    monkeypatch.setattr(start, "terminate", codes.append)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    state = WorkerState(worker_version="1")
    state.enter_stage(Stage.LOADING_WEIGHTS)
    try:
        start._exit_on_signals(state)
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert codes == [0]
    assert log.read_text().startswith("The worker was terminated in the stage LoadingWeights, reached at ")
    assert state.snapshot.stage.name == Stage.STOPPING


def test_the_root_cause_depends_on_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = EngineErrors()
    errors.record("ValueError: no memory for the cache")
    monkeypatch.setattr(start, "ENGINE_ERRORS", errors)
    state = WorkerState(worker_version="1")
    state.enter_stage(Stage.DOWNLOADING, "team/gated")
    assert start._root_cause(state, Exception("x")).startswith("ModelDownloadFailed: the model 'team/gated' ")
    assert start._root_cause(state, EngineStartError("x")) == "EngineStartError: x"
    state.enter_stage(Stage.STARTING_ENGINE)
    assert start._root_cause(state, POINTER) == "The engine failed: ValueError: no memory for the cache"
