"""What a script registers beside ping and invocations: sessions and adapters belong to its generation."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import model_hosting_container_standards.sagemaker as standards
import pytest
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from tests.unit.worker.handlers_served import Served
from vllmendpoint_worker.handlers import install_sagemaker_routes
from vllmendpoint_worker.handlers.loading._standards import handler_registry
from vllmendpoint_worker.options.arguments import clear_environment

HEADER = "X-Amzn-SageMaker-Adapter-Identifier"
SESSION = "X-Amzn-SageMaker-Session-Id"
NEW = "X-Amzn-SageMaker-New-Session-Id"
CLOSED = "X-Amzn-SageMaker-Closed-Session-Id"
NEW_SESSION = {"requestType": "NEW_SESSION"}
ADAPTER = {"name": "a", "src": "/a"}
LOADING = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
SESSIONS = """
from fastapi import Response
import model_hosting_container_standards.sagemaker as standards

@standards.register_create_session_handler(engine_response_session_id_path="body.id")
async def create(request):
    return {"id": "NAME-1"}

@standards.register_close_session_handler(engine_request_session_id_path="body.session")
async def close(request):
    return Response("closed")
"""
ADAPTERS = """
import model_hosting_container_standards.sagemaker as standards
from fastapi import Response

@standards.register_load_adapter_handler(request_shape={"name": "body.name", "path": "body.src"})
async def load(obj, request):
    request.app.state.loaded.append(("NAME", obj.name, obj.path))
    return Response(status_code=200)

@standards.register_unload_adapter_handler(request_shape={"name": "path_params.adapter_name"})
async def unload(obj, request):
    request.app.state.loaded.append(("NAME", obj.name))
    return Response(status_code=200)
"""


def vllms_app(*, loading: bool) -> FastAPI:
    """Routes decorated and attached as vLLM's ``serve/sagemaker`` and ``serve/lora`` do it."""
    app = FastAPI()
    app.state.loaded = []

    async def validate(raw_request: Request) -> None:
        raw_request.state.validated = True

    @app.post("/invocations", dependencies=[Depends(validate)])
    @standards.register_invocation_handler  # type: ignore[untyped-decorator]
    @standards.stateful_session_manager()  # type: ignore[untyped-decorator]
    @standards.inject_adapter_id("model")  # type: ignore[untyped-decorator]
    async def invocations(raw_request: Request) -> Response:
        body = await raw_request.json()
        return JSONResponse({"body": body, "validated": raw_request.state.validated})

    if loading:

        @standards.register_load_adapter_handler(  # type: ignore[untyped-decorator]
            request_shape={"name": "body.name", "path": "body.src"}
        )
        async def load(obj: Any, raw_request: Request) -> Response:
            raw_request.app.state.loaded.append(("vLLM", obj.name, obj.path))
            return Response(status_code=200)

        @standards.register_unload_adapter_handler(  # type: ignore[untyped-decorator]
            request_shape={"name": "path_params.adapter_name"}
        )
        async def unload(obj: Any, raw_request: Request) -> Response:
            raw_request.app.state.loaded.append(("vLLM", obj.name))
            return Response(status_code=200)

    return app


class Vllm:
    """``served`` over an app of vLLM's own."""

    def __init__(self, served: Served, *, loading: bool = False, offered: bool = False) -> None:
        self.served = served
        self.app = vllms_app(loading=loading or offered)
        install_sagemaker_routes(self.app, loading=loading)
        served.manager.attach(self.app)

    async def request(
        self, path: str, body: Any = None, method: str = "POST", **headers: str
    ) -> httpx.Response:
        async with self.served.client() as client:
            return await client.request(method, path, json=body, headers=headers)

    async def invoke(self, body: Any, **headers: str) -> Any:
        answer = await self.request("/invocations", body, **headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["validated"], "vLLM's own dependency is kept"
        return answer.json()["body"]


@pytest.fixture
def registry() -> Iterator[None]:
    """The standards package's registry is the process's: put back what vLLM's stand-in registers."""
    before = dict(handler_registry._handlers)
    defaults = dict(handler_registry._framework_default_handlers)
    yield
    handler_registry._handlers.clear()
    handler_registry._handlers.update(before)
    handler_registry._framework_default_handlers.clear()
    handler_registry._framework_default_handlers.update(defaults)


@pytest.fixture
async def vllm(served: Served, registry: None) -> Vllm:
    vllm = Vllm(served)
    await served.start()
    return vllm


# --- the model of /invocations ---


@pytest.mark.parametrize("model", ["typo", "lora", "", None, 5, "\u00e4\u03c9"])
async def test_the_bodys_model_reaches_vllms_dispatch_unchanged(vllm: Vllm, model: Any) -> None:
    assert await vllm.invoke({"model": model, "prompt": "x"}) == {"model": model, "prompt": "x"}


async def test_a_body_without_a_model_stays_without(vllm: Vllm) -> None:
    assert await vllm.invoke({"prompt": "x"}) == {"prompt": "x"}
    assert (await vllm.invoke({"prompt": "x"}, **{HEADER: ""})) == {"prompt": "x"}


@pytest.mark.parametrize("body", [{"prompt": "x"}, {"prompt": "x", "model": "base"}])
async def test_the_adapter_header_names_the_model(vllm: Vllm, body: dict[str, Any]) -> None:
    assert (await vllm.invoke(body, **{HEADER: "sql"}))["model"] == "sql"


async def test_an_invalid_body_is_a_400_with_and_without_the_header(vllm: Vllm) -> None:
    for headers in ({}, {HEADER: "sql"}):
        async with vllm.served.client() as client:
            answer = await client.post("/invocations", content=b'{"model": ', headers=headers)
        assert (answer.status_code, "JSON decode error" in answer.text) == (400, True)


# --- sessions ---


async def test_session_handlers_of_a_script_are_active_with_its_generation(vllm: Vllm) -> None:
    served = vllm.served
    disabled = await vllm.request("/invocations", {"requestType": "NEW_SESSION"})
    assert (disabled.status_code, "stateful sessions not enabled" in disabled.text) == (400, True)
    for name in ("one", "two"):
        served.script(SESSIONS.replace("NAME", name))
        await served.start()
        new = await vllm.request("/invocations", {"requestType": "NEW_SESSION"})
        assert (new.status_code, new.headers[NEW]) == (200, f"{name}-1")
        closed = await vllm.request("/invocations", {"requestType": "CLOSE"}, **{SESSION: f"{name}-1"})
        assert (closed.status_code, closed.headers[CLOSED]) == (200, f"{name}-1")
        assert await vllm.invoke({"prompt": "x"}, **{SESSION: f"{name}-1"}) == {"prompt": "x"}
    served.script(SESSIONS.replace("NAME", "three") + "\nraise ValueError\n")
    await served.rejection()
    new = await vllm.request("/invocations", {"requestType": "NEW_SESSION"})
    assert new.headers[NEW] == "two-1", "a refused script changes nothing"
    served.script("")
    await served.start()
    assert (await vllm.request("/invocations", {"requestType": "NEW_SESSION"})).status_code == 400


async def test_a_request_keeps_the_session_handlers_of_its_generation(vllm: Vllm) -> None:
    """It began before a swap, and its body comes after it."""
    served = vllm.served
    served.script(SESSIONS.replace("NAME", "one"))
    await served.start()
    go = asyncio.Event()

    async def body() -> Any:
        await go.wait()
        yield json.dumps({"requestType": "NEW_SESSION"}).encode()

    async with served.client() as client:
        slow = asyncio.create_task(client.post("/invocations", content=body()))
        await asyncio.sleep(0.05)
        served.script(SESSIONS.replace("NAME", "two"))
        await served.start()
        go.set()
        assert (await slow).headers[NEW] == "one-1"
    assert (await vllm.request("/invocations", {"requestType": "NEW_SESSION"})).headers[NEW] == "two-1"


async def test_session_handlers_answer_during_the_import_of_another_script(vllm: Vllm) -> None:
    served = vllm.served
    served.script(SESSIONS.replace("NAME", "one"))
    await served.start()
    served.script(SESSIONS.replace("NAME", "two") + "\nimport time\ntime.sleep(0.6)\n")
    loading = asyncio.create_task(served.start())
    await asyncio.sleep(0.3)
    assert not loading.done()
    assert (await vllm.request("/invocations", {"requestType": "NEW_SESSION"})).headers[NEW] == "one-1"
    await loading
    assert (await vllm.request("/invocations", {"requestType": "NEW_SESSION"})).headers[NEW] == "two-1"


async def test_session_handlers_work_with_a_custom_invocation_handler(vllm: Vllm) -> None:
    vllm.served.script(
        SESSIONS.replace("NAME", "one")
        + """
@standards.custom_invocation_handler
@standards.stateful_session_manager("session")
async def invoke(request):
    return await request.json()
"""
    )
    await vllm.served.start()
    assert (await vllm.request("/invocations", {"requestType": "NEW_SESSION"})).headers[NEW] == "one-1"
    answer = await vllm.request("/invocations", {"prompt": "x"}, **{SESSION: "one-1"})
    assert answer.json() == {"prompt": "x", "session": "one-1"}


# --- adapters ---


async def adapters(vllm: Vllm) -> tuple[httpx.Response, httpx.Response]:
    load = await vllm.request("/adapters", {"name": "sql", "src": "/adapters/sql"})
    return load, await vllm.request("/adapters/sql", method="DELETE")


@pytest.mark.parametrize("offered", [False, True])
async def test_adapters_answers_404_with_the_reason_unless_loading_is_turned_on(
    served: Served, registry: None, offered: bool
) -> None:
    """``offered``: VLLM_ALLOW_RUNTIME_LORA_UPDATING without --enable-lora."""
    vllm = Vllm(served, offered=offered)
    await served.start()
    for answer in await adapters(vllm):
        assert answer.status_code == 404
        assert "set VLLM_ALLOW_RUNTIME_LORA_UPDATING=true" in answer.json()["error"]["message"]
    assert vllm.app.state.loaded == []


async def test_vllm_answers_adapters_if_loading_is_turned_on(served: Served, registry: None) -> None:
    vllm = Vllm(served, loading=True)
    await served.start()
    load, unload = await adapters(vllm)
    assert (load.status_code, load.text) == (200, "Adapter sql registered")
    assert (unload.status_code, unload.text) == (200, "Adapter sql unregistered")
    assert vllm.app.state.loaded == [("vLLM", "sql", "/adapters/sql"), ("vLLM", "sql")]
    assert (await vllm.request("/adapters", {"name": "sql"})).status_code == 400, "src is missing"


@pytest.mark.parametrize("loading", [False, True])
async def test_adapter_handlers_of_a_script_are_active_with_its_generation(
    served: Served, registry: None, loading: bool
) -> None:
    vllm = Vllm(served, loading=loading)
    for name in ("one", "two"):
        served.script(ADAPTERS.replace("NAME", name))
        await served.start()
        vllm.app.state.loaded.clear()
        load, unload = await adapters(vllm)
        assert (load.text, unload.text) == ("Adapter sql registered", "Adapter sql unregistered")
        assert vllm.app.state.loaded == [(name, "sql", "/adapters/sql"), (name, "sql")]
    served.script(ADAPTERS.replace("NAME", "three") + "\nraise ValueError\n")
    await served.rejection()
    vllm.app.state.loaded.clear()
    await adapters(vllm)
    assert vllm.app.state.loaded[0][0] == "two", "a refused script changes nothing"
    served.script("")
    await served.start()
    vllm.app.state.loaded.clear()
    await adapters(vllm)
    assert [each[0] for each in vllm.app.state.loaded] == (["vLLM", "vLLM"] if loading else [])


@pytest.mark.parametrize(("given", "expected"), [({}, "0"), ({LOADING: "true"}, "true"), ({LOADING: ""}, "")])
def test_only_the_user_turns_loading_on(given: dict[str, str], expected: str) -> None:
    """Dynamo sets the variable with --enable-lora where it is not set."""
    environ = dict(given)
    clear_environment(environ, (), ())
    assert environ[LOADING] == expected


# --- whose fault an error is ---

CREATE = SESSIONS.split("@standards.register_close", maxsplit=1)[0]
LOAD = ADAPTERS.split("@standards.register_unload", maxsplit=1)[0]


@pytest.mark.parametrize(
    ("script", "path", "body", "name"),
    [
        (
            CREATE.replace("return {", "raise ValueError('secret')\n    {"),
            "/invocations",
            NEW_SESSION,
            "create",
        ),
        (
            LOAD.replace("return Response", "raise ValueError('secret')\n    Response"),
            "/adapters",
            ADAPTER,
            "load",
        ),
    ],
    ids=["session", "adapter"],
)
async def test_what_a_registered_handler_raises_is_a_500_with_its_line(
    served: Served, registry: None, script: str, path: str, body: Any, name: str
) -> None:
    vllm = Vllm(served)
    served.script(script)
    await served.start()
    answer = await vllm.request(path, body)
    assert (answer.status_code, "secret" in answer.text) == (500, False)
    line = next(at for at, text in enumerate(script.splitlines(), start=1) if "raise" in text)
    type_ = {"create": "create_session", "load": "register_adapter"}[name]
    error = served.manager.report().last_error
    assert error is not None
    assert error.message == f"The script's handler {type_} raised ValueError at model.py line {line}."


@pytest.mark.parametrize(
    ("script", "path", "body"),
    [
        (CREATE.replace('"id"', '"other"'), "/invocations", NEW_SESSION),
        (CREATE.replace("async def", "def"), "/invocations", NEW_SESSION),
        (LOAD.replace("Response(status_code=200)", "None"), "/adapters", ADAPTER),
        (LOAD.replace("async def", "def"), "/adapters", ADAPTER),
    ],
    ids=["session-id", "session-coroutine", "adapter-response", "adapter-coroutine"],
)
async def test_an_invalid_result_of_a_registered_handler_is_reported(
    served: Served, registry: None, script: str, path: str, body: Any
) -> None:
    vllm = Vllm(served)
    served.script(script)
    await served.start()
    assert (await vllm.request(path, body)).status_code == 500
    error = served.manager.report().last_error
    assert error is not None
    assert (
        "is not a coroutine function, or returned a value that SageMaker's package does not accept"
        in error.message
    )


@pytest.mark.parametrize("status", [409, 503])
async def test_an_http_exception_of_a_registered_handler_is_not_reported(
    served: Served, registry: None, status: int
) -> None:
    vllm = Vllm(served)
    served.script(
        CREATE.replace("return {", f"raise HTTPException({status}, 'busy')\n    {{")
        + LOAD.replace("return Response", f"raise HTTPException({status}, 'busy')\n    Response").replace(
            "import Response", "import HTTPException, Response"
        )
    )
    await served.start()
    assert (await vllm.request("/invocations", NEW_SESSION)).status_code == status
    assert (await vllm.request("/adapters", ADAPTER)).status_code == status
    assert (await vllm.request("/adapters", {})).status_code == 400, "the client's fault"
    assert served.manager.report().last_error is None
