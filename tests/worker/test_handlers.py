"""Custom handlers on the real engine: the guide's complete example, hot swap, and handlers that misbehave.

The tests share one process and run in the order of the file.
"""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllmendpoint_api import ConfigurationState, HandlerSource, PingState, Reason, Verdict, script_digest

from .conftest import WorkerProcess

pytestmark = pytest.mark.timeout(300)
GUIDE = Path(__file__).parents[1] / "guide"
CHECK = {"periodSeconds": 3, "timeoutSeconds": 2, "restartAfterSeconds": 0}
SWAPPED = """
async def custom_sagemaker_ping_handler(request):
    return {"by": "the VLLMEndpoint"}

async def custom_sagemaker_invocation_handler(request):
    return {"by": "the VLLMEndpoint"}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model-data")


@pytest.fixture(scope="module")
def worker(make_worker: Callable[..., WorkerProcess], folder: Path) -> WorkerProcess:
    worker = make_worker({"SAGEMAKER_MODEL_PATH": str(folder), "SAGEMAKER_CONTAINER_LOG_LEVEL": "DEBUG"})
    worker.settings(CHECK)
    return worker


def take(worker: WorkerProcess, script: str | None, **handlers: Any) -> str:
    """What the operator does: settings and script in one volume."""
    digest = None
    if script is not None:
        (worker.settings_file.parent / "model.py").write_text(script)
        digest = script_digest(script.encode())
    said = {key: value for key, value in {"scriptDigest": digest, **handlers}.items() if value is not None}
    return worker.settings(CHECK, handlers=said)


def test_a_script_that_cannot_be_imported_is_told_within_seconds(worker: WorkerProcess, folder: Path) -> None:
    (folder / "model.py").write_text("def f(:\n")
    worker.start()
    worker.until(lambda report: report.started, 60)
    report = worker.report()
    assert report.configuration.state == ConfigurationState.REFUSED
    (problem,) = report.configuration.problems
    assert problem.reason == Reason.HANDLER_IMPORT_FAILED
    assert "model.py line 1" in problem.message
    assert worker.status("report", "/ready") == 503
    (folder / "model.py").write_text("import no_such_module_here\n")
    worker.until(
        lambda report: "no_such_module_here" in "".join(p.message for p in report.configuration.problems), 60
    )
    assert worker.report().stage.name == "Refused"


def test_the_guides_complete_example_generates_on_the_live_engine(
    worker: WorkerProcess, folder: Path
) -> None:
    (folder / "model.py").write_text((GUIDE / "complete.py").read_text())
    worker.until_ready()
    status, body = worker.ask("http", "/invocations", {"prompt": "hello", "max_tokens": 5, "use_rag": True})
    answer = json.loads(body)
    assert status == 200, answer
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["rag_enabled"] is True
    assert answer["predictions"][0]
    for method in ("GET", "POST"):
        assert json.loads(worker.ask("http", "/ping", method=method)[1]) == {"status": "healthy"}
    report = worker.report()
    assert report.handlers.ping.source == HandlerSource.DECORATOR
    assert report.handlers.invocations.handler == "model:inference_with_rag"
    assert report.handlers.script_digest == script_digest((GUIDE / "complete.py").read_bytes())
    assert report.custom_ping is not None
    assert report.custom_ping.state == PingState.PASSING
    # Its own INFO lines come through, and nobody else's level has changed.
    assert "Processing prompt: Context: Retrieved context" in worker.log()
    assert "Handler of /ping: model:health_check (Decorator)" in worker.log()
    assert "decorator in the script: found" in worker.log()
    # vLLM's own routes are as they were.
    assert worker.ask("http", "/v1/completions", {"model": "toy", "prompt": "a", "max_tokens": 2})[0] == 200


def test_the_crs_script_is_taken_in_without_a_restart(worker: WorkerProcess) -> None:
    pid, engine = worker.pid, worker.engine_core()
    slow: list[tuple[int, Any]] = []

    def ask() -> None:
        body = {"prompt": "hello", "max_tokens": 400}
        status, answer = worker.ask("http", "/invocations", body, seconds=120)
        slow.append((status, json.loads(answer)))

    in_flight = threading.Thread(target=ask)
    in_flight.start()
    while not worker.log().count("Processing prompt: hello"):
        time.sleep(0.05)
    digest = take(worker, SWAPPED)
    worker.until(lambda report: report.configuration.settings_hash == digest, 30)
    assert json.loads(worker.ask("http", "/invocations", {})[1]) == {"by": "the VLLMEndpoint"}
    in_flight.join(120)
    ((status, answer),) = slow
    assert status == 200
    assert answer["predictions"][0], "it ended on the handler it began with"
    report = worker.report()
    assert report.handlers.script_digest == script_digest(SWAPPED.encode())
    assert report.handlers.ping.source == HandlerSource.FUNCTION
    assert (worker.pid, worker.engine_core()) == (pid, engine)
    assert report.ready


def test_a_bad_change_keeps_the_last_good_handlers(worker: WorkerProcess) -> None:
    take(worker, SWAPPED, ping="model:gone")
    worker.until(lambda report: report.configuration.state == ConfigurationState.REFUSED, 30)
    report = worker.report()
    assert [p.reason for p in report.configuration.problems] == [Reason.HANDLER_NOT_FOUND]
    assert report.configuration.problems[0].field == "handlers.ping"
    assert report.ready
    assert json.loads(worker.ask("http", "/ping")[1]) == {"by": "the VLLMEndpoint"}


def test_a_custom_ping_that_is_not_200_makes_it_unready(worker: WorkerProcess) -> None:
    script = """
from fastapi import Response
def custom_sagemaker_ping_handler(request):
    return Response(status_code=%s)
"""
    take(worker, script % 503)
    worker.until(lambda report: not report.ready, 60)
    report = worker.report()
    assert report.custom_ping is not None
    assert report.custom_ping.state == PingState.FAILING
    assert "answers 503 instead of 200" in report.custom_ping.message
    assert report.verdict.state == Verdict.GENERATING
    assert "custom ping" in worker.ask("report", "/ready")[1].decode()
    take(worker, script % 200)
    worker.until(lambda report: report.ready, 60)


def test_a_handler_that_blocks_the_loop_is_named(worker: WorkerProcess) -> None:
    blocking = """
import time
async def custom_sagemaker_invocation_handler(request):
    time.sleep(9)
    return 1
"""
    digest = take(worker, blocking)
    worker.until(lambda report: report.configuration.settings_hash == digest, 30)
    asking = threading.Thread(target=worker.ask, args=("http", "/invocations", {}))
    asking.start()
    worker.until(lambda report: "by a custom handler, model.py line 4" in report.verdict.message, 20)
    assert worker.status("report", "/ready") == 503
    asking.join(30)
    worker.until(lambda report: report.ready, 30)


def test_hanging_and_raising_handlers_stop_nobody(worker: WorkerProcess) -> None:
    script = """
import time
def custom_sagemaker_invocation_handler(request):
    if request.query_params.get("hang"):
        time.sleep(8)
    raise RuntimeError("the secret token")
"""
    digest = take(worker, script)
    worker.until(lambda report: report.configuration.settings_hash == digest, 30)

    def hang() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            worker.ask("http", "/invocations?hang=1", {})

    for _ in range(50):
        threading.Thread(target=hang, daemon=True).start()
    probed = worker.report().last_probe
    assert worker.ask("http", "/v1/completions", {"model": "toy", "prompt": "a", "max_tokens": 2})[0] == 200
    worker.until(lambda report: report.last_probe != probed and report.ready, 30)
    worker.until(lambda report: report.handlers.last_error is not None, 40)
    error = worker.report().handlers.last_error
    assert error is not None
    assert error.route == "/invocations"
    assert "raised RuntimeError at model.py line 6" in error.message
    assert "secret" not in error.message


def test_without_handlers_it_is_vllms_own_again(worker: WorkerProcess, folder: Path) -> None:
    (folder / "model.py").unlink()
    digest = worker.settings(CHECK)
    worker.until(
        lambda report: (
            report.configuration.settings_hash == digest
            and report.handlers.ping.source == HandlerSource.DEFAULT
        ),
        30,
    )
    assert worker.ask("http", "/ping")[0] == 200
    status, body = worker.ask("http", "/invocations", {"model": "toy", "prompt": "hello", "max_tokens": 3})
    assert (status, json.loads(body)["usage"]["completion_tokens"]) == (200, 3)
    assert worker.report().custom_ping is None


def test_the_guides_installed_module_still_resolves(worker: WorkerProcess) -> None:
    digest = take(worker, None, ping="vllm.entrypoints.openai.api_server:health")
    worker.until(lambda report: report.configuration.settings_hash == digest, 30)
    report = worker.report()
    assert report.configuration.state == ConfigurationState.RESOLVED
    assert report.handlers.ping.source == HandlerSource.SPEC
    assert report.handlers.ping.handler == "vllm.entrypoints.openai.api_server:health"
    assert worker.ask("http", "/ping")[0] == 200
