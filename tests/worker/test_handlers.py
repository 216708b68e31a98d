"""Custom handlers on the real engine: the guide's complete example, hot swap, and handlers that misbehave.

The tests share one process and run in the order of the file.
"""

import contextlib
import http.client
import json
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllmendpoint_api import (
    ConfigurationState,
    HandlerSource,
    PayloadSource,
    PingState,
    Reason,
    Verdict,
    script_digest,
)

from .conftest import PATIENT, QUICK, START_SECONDS, WorkerProcess

pytestmark = pytest.mark.timeout(300)
GUIDE = Path(__file__).parents[1] / "guide"
SWAPPED = """
async def custom_sagemaker_ping_handler(request):
    return {"by": "the VLLMEndpoint"}

async def custom_sagemaker_invocation_handler(request):
    return {"by": "the VLLMEndpoint"}
"""

PROCESSING = """
import json
from fastapi.responses import JSONResponse
from model_hosting_container_standards.common.fastapi.middleware import (
    custom_middleware, input_formatter, output_formatter,
)

@input_formatter
async def pre(request):
    if request.headers.get("x-form") == "instances":
        body = await request.json()
        completion = {"model": "toy", "prompt": body.pop("instances")[0], "max_tokens": 3}
        request._body = json.dumps(completion | body).encode()
    return request

@output_formatter
async def post(response):
    response.headers["x-post"] = "post"
    return response

@custom_middleware("throttle")
async def throttle(request, call_next):
    if request.headers.get("x-slow"):
        return JSONResponse({"error": "slow down"}, status_code=429)
    return await call_next(request)
"""
HEALTH_CHECK = """
from vllmendpoint_worker.compat import set_custom_health_check_payload

set_custom_health_check_payload(PAYLOAD)
"""
OPENAI = (
    ("/v1/completions", {"prompt": "hello"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model-data")


@pytest.fixture(scope="module")
def worker(make_worker: Callable[..., WorkerProcess], folder: Path) -> WorkerProcess:
    worker = make_worker({"SAGEMAKER_MODEL_PATH": str(folder), "SAGEMAKER_CONTAINER_LOG_LEVEL": "DEBUG"})
    worker.settings(PATIENT)
    return worker


def take(worker: WorkerProcess, script: str | None, check: dict[str, Any] = PATIENT, **handlers: Any) -> str:
    """What the operator does: settings and script in one volume."""
    digest = None
    if script is not None:
        (worker.settings_file.parent / "model.py").write_text(script)
        digest = script_digest(script.encode())
    references = {
        key: value for key, value in {"scriptDigest": digest, **handlers}.items() if value is not None
    }
    return worker.settings(check, handlers=references)


def post(
    worker: WorkerProcess, path: str, data: bytes, kind: str = "application/json", **headers: str
) -> tuple[int, str, str]:
    """Status, content type and body."""
    connection = http.client.HTTPConnection("127.0.0.1", worker.ports["http"], timeout=60)
    with contextlib.closing(connection):
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, data, {"content-type": kind, **sent})
        answer = connection.getresponse()
        return answer.status, answer.headers["content-type"].partition(";")[0], answer.read().decode()


def streamed(answer: tuple[int, str, str], least: int = 1) -> str:
    """The text of a stream of server-sent events, which must be whole, in so many pieces at least: a busy
    server makes fewer than there are tokens.
    """
    status, kind, body = answer
    assert (status, kind) == (200, "text/event-stream"), body
    *events, last = [event.removeprefix("data: ") for event in body.split("\n\n") if event]
    assert last == "[DONE]"
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    assert len(choices) >= least
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


def test_a_script_that_cannot_be_imported_is_reported_within_seconds(
    worker: WorkerProcess, folder: Path
) -> None:
    (folder / "model.py").write_text("def f(:\n")
    worker.start()
    # After the heavy imports; a rejection is reported in three steps.
    worker.until(lambda report: report.started and report.stage.name == "Refused", START_SECONDS)
    report = worker.report()
    assert report.configuration.state == ConfigurationState.REJECTED
    (problem,) = report.configuration.problems
    assert problem.reason == Reason.HANDLER_IMPORT_FAILED
    assert "model.py line 1" in problem.message
    assert worker.status("report", "/ready") == 503
    (folder / "model.py").write_text("import no_such_module_here\n")
    worker.until(
        lambda report: "no_such_module_here" in "".join(p.message for p in report.configuration.problems), 60
    )
    assert worker.report().stage.name == "Refused"


def test_a_ping_that_blocks_the_start_is_named_and_its_corrected_script_is_loaded(
    worker: WorkerProcess, folder: Path
) -> None:
    (folder / "model.py").write_text(
        "import time\nasync def custom_sagemaker_ping_handler(request):\n    time.sleep(1000)\n"
    )
    worker.until(
        lambda report: "by a custom handler, model.py line 3" in report.verdict.message, START_SECONDS
    )
    report = worker.report()
    assert (report.started, report.ready) == (False, False)
    assert report.stage.detail == "a custom handler blocks the worker, model.py line 3"
    (folder / "model.py").write_text(
        "async def custom_sagemaker_ping_handler(request):\n"
        "    return [str(request.url), request.client.host]\n"
    )
    worker.until_ready()
    port = worker.ports["http"]
    assert json.loads(worker.request("http", "/ping")[1]) == [f"http://127.0.0.1:{port}/ping", "127.0.0.1"]


def test_the_guides_complete_example_generates_on_the_live_engine(
    worker: WorkerProcess, folder: Path
) -> None:
    (folder / "model.py").write_text((GUIDE / "complete.py").read_text())
    worker.until(lambda report: report.handlers.invocations.source == HandlerSource.DECORATOR, 30)
    worker.until_ready()
    status, body = worker.request(
        "http", "/invocations", {"prompt": "hello", "max_tokens": 5, "use_rag": True}
    )
    answer = json.loads(body)
    assert status == 200, answer
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["rag_enabled"] is True
    assert answer["predictions"][0]
    for method in ("GET", "POST"):
        assert json.loads(worker.request("http", "/ping", method=method)[1]) == {"status": "healthy"}
    report = worker.report()
    assert report.handlers.ping.source == HandlerSource.DECORATOR
    assert report.handlers.invocations.handler == "model:inference_with_rag"
    assert report.handlers.script_digest == script_digest((GUIDE / "complete.py").read_bytes())
    assert report.custom_ping is not None
    assert report.custom_ping.state == PingState.PASSING
    # Its own INFO lines are logged, and the levels of other loggers are unchanged.
    assert "Processing prompt: Context: Retrieved context" in worker.log()
    assert "Handler of /ping: model:health_check (Decorator)" in worker.log()
    assert "decorator in the script: found" in worker.log()
    # vLLM's own routes are as they were.
    assert (
        worker.request("http", "/v1/completions", {"model": "toy", "prompt": "a", "max_tokens": 2})[0] == 200
    )


def test_a_script_in_the_spec_is_activated_without_a_restart(worker: WorkerProcess) -> None:
    pid, engine = worker.pid, worker.engine_core()
    slow: list[tuple[int, Any]] = []

    def ask() -> None:
        body = {"prompt": "hello", "max_tokens": 400}
        status, answer = worker.request("http", "/invocations", body, seconds=120)
        slow.append((status, json.loads(answer)))

    in_flight = threading.Thread(target=ask)
    in_flight.start()
    while not worker.log().count("Processing prompt: hello"):
        time.sleep(0.05)
    digest = take(worker, SWAPPED)
    worker.until(lambda report: report.configuration.settings_hash == digest, 30)
    assert json.loads(worker.request("http", "/invocations", {})[1]) == {"by": "the VLLMEndpoint"}
    in_flight.join(120)
    ((status, answer),) = slow
    assert status == 200
    assert answer["predictions"][0], "it ended on the handler it began with"
    report = worker.report()
    assert report.handlers.script_digest == script_digest(SWAPPED.encode())
    assert report.handlers.ping.source == HandlerSource.FUNCTION
    assert (worker.pid, worker.engine_core()) == (pid, engine)
    assert report.ready


def test_a_rejected_change_keeps_the_last_valid_handlers(worker: WorkerProcess) -> None:
    take(worker, SWAPPED, ping="model:gone")
    worker.until(lambda report: report.configuration.state == ConfigurationState.REJECTED, 30)
    report = worker.report()
    assert [p.reason for p in report.configuration.problems] == [Reason.HANDLER_NOT_FOUND]
    assert report.configuration.problems[0].field == "handlers.ping"
    assert report.ready
    assert json.loads(worker.request("http", "/ping")[1]) == {"by": "the VLLMEndpoint"}


def test_handlers_and_their_health_check_become_active_together(
    worker: WorkerProcess,
) -> None:
    before = worker.report()
    another = SWAPPED.replace("the VLLMEndpoint", "another") + HEALTH_CHECK
    digest = take(worker, another.replace("PAYLOAD)", '{"input": "x"})'))
    worker.until(lambda report: report.configuration.settings_hash == digest, 30)
    until = time.monotonic() + 2
    while time.monotonic() < until:  # a reload or two
        report = worker.report()
        assert report.configuration.state == ConfigurationState.REJECTED
        assert [problem.source for problem in report.configuration.problems] == ["CustomDefault"]
        assert report.handlers.script_digest == before.handlers.script_digest
        assert report.health_check == before.health_check
        time.sleep(0.2)
    assert json.loads(worker.request("http", "/ping")[1]) == {"by": "the VLLMEndpoint"}
    digest = take(worker, another.replace("PAYLOAD)", '{"prompt": "x", "max_tokens": 1})'))
    worker.until(lambda report: report.configuration.settings_hash == digest, 30)
    report = worker.report()
    assert report.configuration.state == ConfigurationState.RESOLVED, report.configuration.problems
    assert report.health_check is not None
    assert report.health_check.source == PayloadSource.CUSTOM_DEFAULT
    assert json.loads(worker.request("http", "/ping")[1]) == {"by": "another"}


def test_a_custom_ping_other_than_200_makes_the_worker_unready(worker: WorkerProcess) -> None:
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
    assert "custom ping" in worker.request("report", "/ready")[1].decode()
    take(worker, script % 200)
    worker.until(lambda report: report.ready, 60)


def test_the_report_names_a_handler_that_blocks_the_loop(worker: WorkerProcess) -> None:
    blocking = """
import time
async def custom_sagemaker_invocation_handler(request):
    time.sleep(9)
    return 1
"""
    digest = take(worker, blocking, QUICK)
    worker.until(lambda report: report.configuration.settings_hash == digest, 30)
    asking = threading.Thread(target=worker.request, args=("http", "/invocations", {}))
    asking.start()
    worker.until(lambda report: "by a custom handler, model.py line 4" in report.verdict.message, 20)
    assert worker.status("report", "/ready") == 503
    asking.join(30)
    worker.until(lambda report: report.ready, 30)


def test_hanging_and_failing_handlers_do_not_affect_other_requests(worker: WorkerProcess) -> None:
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
            worker.request("http", "/invocations?hang=1", {})

    for _ in range(50):
        threading.Thread(target=hang, daemon=True).start()
    probed = worker.report().last_probe
    assert (
        worker.request("http", "/v1/completions", {"model": "toy", "prompt": "a", "max_tokens": 2})[0] == 200
    )
    worker.until(lambda report: report.last_probe != probed and report.ready, 30)
    worker.until(lambda report: report.handlers.last_error is not None, 40)
    error = worker.report().handlers.last_error
    assert error is not None
    assert error.route == "/invocations"
    assert "raised RuntimeError at model.py line 6" in error.message
    assert "secret" not in error.message


def test_removed_handlers_are_replaced_by_vllms_own(worker: WorkerProcess, folder: Path) -> None:
    (folder / "model.py").unlink()
    digest = worker.settings(PATIENT)
    worker.until(
        lambda report: (
            report.configuration.settings_hash == digest
            and report.handlers.ping.source == HandlerSource.DEFAULT
        ),
        30,
    )
    assert worker.request("http", "/ping")[0] == 200
    status, body = worker.request(
        "http", "/invocations", {"model": "toy", "prompt": "hello", "max_tokens": 3}
    )
    assert (status, json.loads(body)["usage"]["completion_tokens"]) == (200, 3)
    assert worker.report().custom_ping is None


def test_pre_and_post_processing_around_vllms_own_routes(worker: WorkerProcess) -> None:
    digest = take(worker, PROCESSING)
    worker.until(lambda report: report.configuration.settings_hash == digest, 30)
    asked = {"instances": ["hello"], "temperature": 0.0}
    status, _, body = post(worker, "/invocations", json.dumps(asked).encode(), x_form="instances")
    assert status == 200, body
    answer = json.loads(body)
    assert answer["usage"]["completion_tokens"] == 3
    stream = json.dumps(asked | {"stream": True}).encode()
    text = streamed(post(worker, "/invocations", stream, x_form="instances"))
    assert text == answer["choices"][0]["text"]
    assert post(worker, "/invocations", b"{}", x_slow="1") == (
        429, "application/json", '{"error":"slow down"}',
    )  # fmt: skip
    with urllib.request.urlopen(f"http://127.0.0.1:{worker.ports['http']}/v1/models", timeout=30) as models:
        assert models.headers["x-post"] == "post", "every route of the port"
    worker.until(lambda report: report.ready, 30)


@pytest.mark.parametrize("ping", [None, "vllm.entrypoints.openai.api_server:health"])
def test_invocations_stream_and_fail_as_vllms_own_routes(worker: WorkerProcess, ping: str | None) -> None:
    digest = take(worker, None, ping=ping)
    worker.until(lambda report: report.configuration.settings_hash == digest, 30)
    report = worker.report()
    assert report.handlers.ping.source == (HandlerSource.SPEC if ping else HandlerSource.DEFAULT)
    assert report.handlers.invocations.source == HandlerSource.DEFAULT
    for path, asked in OPENAI:
        body = {"model": "toy", "max_tokens": 200, "ignore_eos": True, "temperature": 0.0, **asked}
        stream = json.dumps(body | {"stream": True}).encode()
        text = streamed(post(worker, "/invocations", stream), 3)
        assert text
        assert text == streamed(post(worker, path, stream), 3)
        plain = json.dumps(body).encode(), "text/plain"
        answer = post(worker, "/invocations", *plain)
        assert answer == post(worker, path, *plain)
        assert answer[0] == 400
        assert "Only 'application/json' is allowed" in answer[2]
        broken = b'{"model": '
        status, kind, answered = post(worker, "/invocations", broken)
        assert (status, kind) == post(worker, path, broken)[:2] == (400, "application/json")
        wrong = "JSON decode error: Expecting value: line 1 column 11 (char 10)"  # /v1 has other words for it
        assert json.loads(answered) == {
            "error": {"message": wrong, "type": "Bad Request", "param": None, "code": 400}
        }


def test_the_guides_installed_module_still_resolves(worker: WorkerProcess) -> None:
    digest = take(worker, None, ping="vllm.entrypoints.openai.api_server:health")
    worker.until(lambda report: report.configuration.settings_hash == digest, 30)
    report = worker.report()
    assert report.configuration.state == ConfigurationState.RESOLVED
    assert report.handlers.ping.source == HandlerSource.SPEC
    assert report.handlers.ping.handler == "vllm.entrypoints.openai.api_server:health"
    assert worker.request("http", "/ping")[0] == 200
