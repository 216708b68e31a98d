"""Results of a handler that cannot be sent, and errors after the handler has returned."""

import asyncio
import gc

import httpx
import pytest

from tests.unit.worker.handlers_served import INVOCATION_HEAD, Served

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
    above, body, expected = BAD_RESULTS[name]
    handler = INVOCATION_HEAD.removeprefix("async ") if plain and name != "coroutine" else INVOCATION_HEAD
    served.script(f"{above}\n{handler}    {body}\n")
    await served.start()
    answer = await served.request("/invocations", {})
    assert answer.status_code == 500, answer.text
    assert answer.json()["error"]["code"] == 500
    line = above.count("\n") + 2
    error = served.newest_error()
    assert error.route == "/invocations"
    assert f"(model.py line {line}) returned a value that JSON cannot represent, " in error.message
    assert expected in error.message
    assert error.message in log.text


async def test_an_async_generator_as_a_handler_is_a_500_with_a_remedy(served: Served) -> None:
    served.script(INVOCATION_HEAD + "    yield 1\n")
    await served.start()
    assert (await served.request("/invocations", {})).status_code == 500
    assert "async_generator: return a StreamingResponse of it" in served.newest_error().message


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
    ("name", "expected"),
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
    served: Served, name: str, expected: str
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
    assert served.newest_error().message.endswith(expected)
    assert "secret" not in served.newest_error().message
