"""Whose fault an error of a handler is: its own is a 500 with a line in the report, the client's is not."""

import asyncio
import gc
import logging
import sys
import threading
from typing import Any

import httpx
import pytest

from tests.unit.worker.handlers_served import Served
from vllmendpoint_api import HandlerError
from vllmendpoint_worker.config.handler_config import Route
from vllmendpoint_worker.process.clock import Clock

INVOCATION = "async def custom_sagemaker_invocation_handler(request):\n"


def newest(served: Served) -> HandlerError:
    error = served.manager.report().last_error
    assert error is not None
    return error


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("vllmendpoint_worker"), "propagate", True)
    return caplog


BAD_RESULTS = {
    "numpy": ("import numpy", "return {'predictions': [numpy.int64(3)]}", "numpy.int64"),
    "array": ("import numpy", "return numpy.zeros(3)", "numpy.ndarray"),
    "nan": ("", "return {'score': float('nan')}", "a number that is not finite"),
    "infinite": ("", "return [1.0, float('-inf')]", "a number that is not finite"),
    "bytes": ("", "return {'text': b'\\xff\\xfe'}", "bytes that are not UTF-8"),
    "surrogate": ("", "return {'text': '\\ud800'}", "a lone surrogate"),
    "object": ("", "return {'a': [object()]}", "object"),
    "generator": ("async def words():\n    yield 1", "return words()", "async_generator: return a Streaming"),
    "coroutine": ("async def word():\n    return 1", "return word()", "coroutine: await it"),
    "key": ("", "return {(1, 2): 3}", "tuple"),
    "model": (
        "from pydantic import BaseModel\nclass Answer(BaseModel):\n    value: object",
        "return Answer(value=object())",
        "Answer",
    ),
}


@pytest.mark.parametrize("name", BAD_RESULTS)
@pytest.mark.parametrize("plain", [False, True], ids=["coroutine", "thread"])
async def test_a_result_that_json_cannot_represent_is_a_500_with_its_type(
    served: Served, log: pytest.LogCaptureFixture, name: str, plain: bool
) -> None:
    above, body, says = BAD_RESULTS[name]
    handler = INVOCATION.removeprefix("async ") if plain and name != "coroutine" else INVOCATION
    served.script(f"{above}\n{handler}    {body}\n")
    await served.start()
    answer = await served.ask("/invocations", {})
    assert answer.status_code == 500, answer.text
    assert answer.json()["error"]["code"] == 500
    line = above.count("\n") + 2
    error = newest(served)
    assert error.route == "/invocations"
    assert f"(model.py line {line}) returned a value that JSON cannot represent, " in error.message
    assert says in error.message
    assert error.message in log.text


async def test_an_async_generator_as_a_handler_is_a_500_with_a_remedy(served: Served) -> None:
    served.script(INVOCATION + "    yield 1\n")
    await served.start()
    assert (await served.ask("/invocations", {})).status_code == 500
    assert "async_generator: return a StreamingResponse of it" in newest(served).message


RAISES = """
from fastapi import HTTPException
from pydantic import BaseModel
class Answer(BaseModel):
    count: int
async def custom_sagemaker_invocation_handler(request):
    {}
"""


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("raise ValueError('the secret token')", "ValueError"),
        ("return 1 + None", "TypeError"),
        ("return int('the secret token')", "ValueError"),
        ("return Answer(count='the secret token')", "ValidationError"),
        ("raise NotImplementedError('the secret token')", "NotImplementedError"),
        ("return 10.0 ** 400", "OverflowError"),
        ("import json; return json.loads('the secret token')", "JSONDecodeError"),
        ("return b'\\xffthe secret token'.decode()", "UnicodeDecodeError"),
        ("raise SystemExit('the secret token')", "SystemExit"),
    ],
)
async def test_what_a_handler_raises_is_a_500_with_its_line(
    served: Served, log: pytest.LogCaptureFixture, body: str, kind: str
) -> None:
    served.script(RAISES.format(body))
    await served.start()
    answer = await served.ask("/invocations", {"a": 1})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    error = newest(served)
    assert error.message == (f"model:custom_sagemaker_invocation_handler raised {kind} at model.py line 7.")
    assert error.message in log.text
    assert "secret" not in error.message


AWAITS_A_CANCELLED_TASK = """
import asyncio
async def custom_sagemaker_invocation_handler(request):
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task
"""


async def test_awaiting_a_cancelled_task_is_reported_as_the_handlers_error(served: Served) -> None:
    served.script(AWAITS_A_CANCELLED_TASK)
    await served.start()
    assert (await served.ask("/invocations", {})).status_code == 500
    name = "model:custom_sagemaker_invocation_handler"
    assert newest(served).message == f"{name} raised CancelledError at model.py line 6."


async def test_a_cancelled_request_is_not_reported(served: Served) -> None:
    served.script(f"import asyncio\n{INVOCATION}    await asyncio.sleep(60)\n")
    await served.start()
    asking = asyncio.create_task(served.ask("/invocations", {}))
    await asyncio.sleep(0.1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert served.manager.report().last_error is None


CLIENTS = """
import json
import fastapi, starlette.exceptions
from pydantic import BaseModel
class Ask(BaseModel):
    count: int
async def read_json(request):
    return await request.json()
async def loads(request):
    return json.loads(await request.body())
async def loads_text(request):
    return json.loads((await request.body()).decode().strip())
async def declared(ask: Ask):
    return ask.count
async def fastapis(request):
    raise fastapi.HTTPException(422, "no")
async def starlettes(request):
    raise starlette.exceptions.HTTPException(422, "no")
async def detailed(request):
    raise fastapi.HTTPException(422, {"why": ["no"]})
"""


@pytest.mark.parametrize("name", ["read_json", "loads", "loads_text", "declared"])
@pytest.mark.parametrize("body", [b"{", b"\xff\xfe{", b'{"count": "x"} x'], ids=["open", "bytes", "extra"])
async def test_a_body_that_is_not_json_is_a_400_and_not_reported(
    served: Served, name: str, body: bytes
) -> None:
    served.script(CLIENTS)
    served.environ["CUSTOM_FASTAPI_INVOCATION_HANDLER"] = f"model:{name}"
    await served.start()
    async with served.client() as client:
        answer = await client.post("/invocations", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert served.manager.report().last_error is None


@pytest.mark.parametrize("name", ["fastapis", "starlettes", "detailed"])
async def test_an_http_exception_of_the_handler_is_not_reported(served: Served, name: str) -> None:
    served.script(CLIENTS)
    served.environ["CUSTOM_FASTAPI_INVOCATION_HANDLER"] = f"model:{name}"
    await served.start()
    assert (await served.ask("/invocations", {})).status_code == 422
    assert served.manager.report().last_error is None


async def test_an_http_exception_that_vllms_exception_handler_does_not_support_is_answered(
    served: Served,
) -> None:
    """It takes a text and a status that Python has a name for."""
    import fastapi

    async def as_vllm(request: Any, error: Any) -> Any:
        raise TypeError("expected string or bytes-like object")

    served.manager._vllm_app.add_exception_handler(fastapi.HTTPException, as_vllm)  # type: ignore[union-attr]
    served.script(CLIENTS)
    served.environ["CUSTOM_FASTAPI_INVOCATION_HANDLER"] = "model:detailed"
    await served.start()
    answer = await served.ask("/invocations", {})
    assert (answer.status_code, answer.json()) == (422, {"detail": {"why": ["no"]}})
    assert served.manager.report().last_error is None


async def test_an_invalid_parameter_is_a_422_and_not_reported(served: Served) -> None:
    served.script(CLIENTS)
    served.environ["CUSTOM_FASTAPI_INVOCATION_HANDLER"] = "model:declared"
    await served.start()
    assert (await served.ask("/invocations", {"count": "x"})).status_code == 422
    assert served.manager.report().last_error is None
    assert (await served.ask("/invocations", {"count": 2})).json() == 2


async def test_a_value_that_vllm_rejects_is_answered_as_on_vllms_routes(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = type(sys)("vllm.sampling")
    exec("def check():\n    raise ValueError('temperature')", module.__dict__)
    monkeypatch.setitem(sys.modules, "vllm.sampling", module)
    monkeypatch.setitem(sys.modules, "vllm", sys.modules.get("vllm") or type(sys)("vllm"))
    served.script("from vllm.sampling import check\n" + INVOCATION + "    check()\n")
    await served.start()
    assert (await served.ask("/invocations", {})).status_code == 400
    assert served.manager.report().last_error is None


LATER = """
import asyncio
from fastapi import BackgroundTasks, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse, FileResponse
from starlette.background import BackgroundTask

def fail():
    raise KeyError("the secret token")

async def stream(request):
    async def words():
        yield "one"
        fail()
    return StreamingResponse(words())

async def stream_in_a_thread(request):
    def words():
        yield "one"
        fail()
    return StreamingResponse(words())

async def stream_that_exits(request):
    async def words():
        yield "one"
        raise SystemExit(3)
    return StreamingResponse(words())

async def stream_of_objects(request):
    async def words():
        yield "one"
        yield {"two": 2}
    return StreamingResponse(words())

async def background(request):
    return JSONResponse("fine", background=BackgroundTask(fail))

async def background_of_fastapi(request: Request, tasks: BackgroundTasks):
    tasks.add_task(fail)
    return "fine"

async def task(request):
    async def later():
        fail()
    asyncio.create_task(later())
    await asyncio.sleep(0.01)
    return "fine"

async def no_file(request):
    return FileResponse("/no/such/file")

async def odd_status(request):
    return Response(status_code=1000)

def needed():
    fail()

async def dependency(request: Request, x=Depends(needed)):
    return x
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("stream", "raised KeyError at model.py line 8 while its response was sent."),
        ("stream_in_a_thread", "raised KeyError at model.py line 8 while its response was sent."),
        ("stream_that_exits", "raised SystemExit at model.py line 25 while its response was sent."),
        ("stream_of_objects", "(model.py line 28) raised AttributeError while its response was sent."),
        ("background", "raised KeyError at model.py line 8 after its response was sent."),
        ("background_of_fastapi", "raised KeyError at model.py line 8 after its response was sent."),
        ("task", "A task of the handlers raised KeyError at model.py line 8."),
        ("no_file", "(model.py line 48) returned a FileResponse that cannot be sent: RuntimeError."),
        ("odd_status", "(model.py line 51) returned a Response that cannot be sent: ValueError."),
        ("dependency", "raised KeyError at model.py line 8."),
    ],
)
async def test_errors_after_the_handler_has_returned_are_reported(
    served: Served, name: str, says: str
) -> None:
    served.script(LATER)
    served.environ["CUSTOM_FASTAPI_INVOCATION_HANDLER"] = f"model:{name}"
    await served.start()
    transport = httpx.ASGITransport(app=served.manager, raise_app_exceptions=True)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        if name.startswith("stream"):
            with pytest.raises(RuntimeError, match="is incomplete"):
                await client.post("/invocations", json={})
        else:
            answer = await client.post("/invocations", json={})
            whole = name in ("background", "background_of_fastapi", "task")
            assert (answer.status_code, answer.text == '"fine"') == ((200, True) if whole else (500, False))
    gc.collect()
    await asyncio.sleep(0)
    assert newest(served).message.endswith(says)
    assert "secret" not in newest(served).message


@pytest.mark.parametrize("middleware", [False, True])
async def test_a_repeated_failure_of_ping_is_logged_once_a_minute(
    served: Served, log: pytest.LogCaptureFixture, middleware: bool
) -> None:
    class ManualClock(Clock):
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = served.manager._clock = ManualClock()
    handlers = (
        "async def custom_sagemaker_ping_handler(request):\n    raise RuntimeError\n"
        f"{INVOCATION}    raise RuntimeError\n"
    )
    served.script(f"{PROCESSING}input_formatter(pre)\n" if middleware else handlers)
    await served.start()

    async def lines(path: str, times: int) -> int:
        log.clear()
        for _ in range(times):
            clock.now += 2.0
            assert (await served.ask(path, {})).status_code == 500
        return log.text.count("The middleware failed" if middleware else "The custom handler failed")

    assert await lines("/ping", 10) == 1
    assert await lines("/ping", 30) == 1
    assert await lines("/invocations", 3) == 3, "each request has its own"
    assert newest(served).route == "/invocations"


async def test_an_error_in_a_task_of_a_script_with_only_middleware_is_reported(served: Served) -> None:
    served.script(f"""{PROCESSING}
del custom_sagemaker_invocation_handler
custom_middleware("throttle")(throttle)
import asyncio
async def poll():
    fail()
asyncio.create_task(poll())
""")
    await served.start()
    await asyncio.sleep(0.05)
    assert newest(served).message == "A task of the handlers raised ValueError at model.py line 6."


@pytest.mark.parametrize("where", ["import", "request"])
async def test_an_error_in_a_thread_is_reported(
    served: Served, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    printed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    served.manager.report_thread_errors()
    start = "threading.Thread(target=poll).start()"
    served.script(
        "import threading\ngo = threading.Event()\ndef poll():\n    go.wait()\n"
        "    raise KeyError('the secret token')\n"
        f"{start if where == 'import' else ''}\n"
        f"{INVOCATION}    {start if where == 'request' else 'pass'}\n    go.set()\n"
    )
    await served.start()
    assert (await served.ask("/invocations", {})).status_code == 200
    for thread in threading.enumerate():
        if "(poll)" in thread.name:
            thread.join(5)
    assert newest(served).message == "A thread of the handlers raised KeyError at model.py line 5."
    assert len(printed) == 1, "the log has the traceback"


PROCESSING = """
from model_hosting_container_standards.common.fastapi.middleware import (
    custom_middleware, input_formatter, output_formatter,
)
def fail():
    raise ValueError("the secret token")
async def custom_sagemaker_invocation_handler(request):
    return 1
async def pre(request):
    fail()
async def post(response):
    fail()
async def throttle(request, call_next):
    fail()
"""


@pytest.mark.parametrize(
    "decorated", ["input_formatter(pre)", "output_formatter(post)", "custom_middleware('throttle')(throttle)"]
)
async def test_errors_of_pre_and_post_processing_are_reported(
    served: Served, log: pytest.LogCaptureFixture, decorated: str
) -> None:
    served.script(f"{PROCESSING}{decorated}\n")
    await served.start()
    assert (await served.ask("/invocations", {})).status_code == 500
    assert newest(served).message == "The middleware raised ValueError at model.py line 6."
    assert newest(served).message in log.text


async def test_an_error_below_the_middleware_is_not_reported_as_the_middlewares(served: Served) -> None:
    served.script("""
from model_hosting_container_standards.common.fastapi.middleware import custom_middleware
@custom_middleware("throttle")
async def throttle(request, call_next):
    return await call_next(request)
""")

    async def broken() -> None:
        raise KeyError("x")

    served.manager._vllm_app.add_api_route("/v1/broken", broken)  # type: ignore[union-attr]
    await served.start()
    assert (await served.ask("/v1/broken", method="GET")).status_code == 500
    assert served.manager.report().last_error is None


async def test_a_middleware_that_cannot_be_created_is_rejected(served: Served) -> None:
    served.script("""
from model_hosting_container_standards.common.fastapi.middleware import custom_middleware
@custom_middleware("throttle")
class Throttle:
    def __init__(self, app, limit):
        self.app = app
""")
    problem = await served.refused()
    assert problem.message.startswith("The middleware cannot be created: TypeError")


async def test_an_error_of_ping_is_reported_with_its_route(served: Served) -> None:
    served.script("def custom_sagemaker_ping_handler(request):\n    return {'free': float('nan')}\n")
    await served.start()
    assert (await served.ask()).status_code == 500
    assert newest(served).route == Route.PING
