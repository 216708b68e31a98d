"""Errors that a handler raises: its own are a 500 with a line in the report, those of the client are not."""

import asyncio
import sys
from typing import Any

import pytest

from tests.unit.worker.handlers_served import INVOCATION_HEAD, Served
from vllmendpoint_worker.config.handler_config import Route

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
    answer = await served.request("/invocations", {"a": 1})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    error = served.newest_error()
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
    assert (await served.request("/invocations", {})).status_code == 500
    name = "model:custom_sagemaker_invocation_handler"
    assert served.newest_error().message == f"{name} raised CancelledError at model.py line 6."


async def test_a_cancelled_request_is_not_reported(served: Served) -> None:
    served.script(f"import asyncio\n{INVOCATION_HEAD}    await asyncio.sleep(60)\n")
    await served.start()
    asking = asyncio.create_task(served.request("/invocations", {}))
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
    assert (await served.request("/invocations", {})).status_code == 422
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
    answer = await served.request("/invocations", {})
    assert (answer.status_code, answer.json()) == (422, {"detail": {"why": ["no"]}})
    assert served.manager.report().last_error is None


async def test_an_invalid_parameter_is_a_422_and_not_reported(served: Served) -> None:
    served.script(CLIENTS)
    served.environ["CUSTOM_FASTAPI_INVOCATION_HANDLER"] = "model:declared"
    await served.start()
    assert (await served.request("/invocations", {"count": "x"})).status_code == 422
    assert served.manager.report().last_error is None
    assert (await served.request("/invocations", {"count": 2})).json() == 2


async def test_a_value_that_vllm_rejects_is_answered_as_on_vllms_routes(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = type(sys)("vllm.sampling")
    exec("def check():\n    raise ValueError('temperature')", module.__dict__)
    monkeypatch.setitem(sys.modules, "vllm.sampling", module)
    monkeypatch.setitem(sys.modules, "vllm", sys.modules.get("vllm") or type(sys)("vllm"))
    served.script("from vllm.sampling import check\n" + INVOCATION_HEAD + "    check()\n")
    await served.start()
    assert (await served.request("/invocations", {})).status_code == 400
    assert served.manager.report().last_error is None


async def test_an_error_of_ping_is_reported_with_its_route(served: Served) -> None:
    served.script("def custom_sagemaker_ping_handler(request):\n    return {'free': float('nan')}\n")
    await served.start()
    assert (await served.request()).status_code == 500
    assert served.newest_error().route == Route.PING
