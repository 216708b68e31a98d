"""A handler whose parameters no request could fill in is refused at load; every other is bound right."""

import pytest

from tests.unit.worker.handlers_served import INVOCATIONS, PING, Served
from vllmendpoint_api import Reason

ABOVE = """
import functools
from typing import Annotated, Any, Optional
from fastapi import BackgroundTasks, Body, Depends, Header, Query, Request, Response, WebSocket

async def plain(request):
    return {"path": request.url.path}

async def body(payload: dict, again: int = 2):
    return [payload, again]

async def two(request, context):
    return {"path": request.url.path, "context": context}

def hiding(function):
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

def by_name(function):
    async def wrapper(**kwargs):
        return await function(**kwargs)
    return wrapper

def by_position(function):
    async def wrapper(*args):
        return await function(*args)
    return wrapper

def injecting(function):
    @functools.wraps(function)
    async def wrapper(request):
        return await function(request, "injected")
    return wrapper

def transparent(function):
    @functools.wraps(function)
    async def wrapper(*args, **kwargs):
        return await function(*args, **kwargs)
    return wrapper

def logging_to(function, log, helper):
    async def wrapper(*args, **kwargs):
        log("asked")
        helper()
        return await function(*args, **kwargs)
    return wrapper

def log(line):
    pass

def nothing():
    pass

class Timed:
    def __init__(self, function):
        self.function = function
    async def __call__(self, *args, **kwargs):
        return await self.function(*args, **kwargs)

class Model:
    def __init__(self):
        self.weights = object()
    async def __call__(self, request):
        return {"path": request.url.path}
    async def method(self, request: "Request"):
        return {"path": request.url.path}
    @classmethod
    async def of_class(cls, request):
        return {"path": request.url.path}
    @hiding
    async def decorated(self, request):
        return {"path": request.url.path}
"""
PATH = {"path": "/invocations"}


@pytest.mark.parametrize(
    ("handler", "answer"),
    [
        ("hiding(plain)", PATH),
        ("by_name(plain)", PATH),
        ("by_position(plain)", PATH),
        ("transparent(plain)", PATH),
        ("injecting(two)", PATH | {"context": "injected"}),
        ("Timed(plain)", PATH),
        ("hiding(body)", [{"a": 1}, 2]),
        ("by_name(body)", [{"a": 1}, 2]),
        ("by_position(body)", [{"a": 1}, 2]),
        ("Timed(hiding(body))", [{"a": 1}, 2]),
        ("logging_to(plain, log, nothing)", PATH),
        ("logging_to(body, log, nothing)", [{"a": 1}, 2]),
        ("logging_to(body, print, nothing)", [{"a": 1}, 2]),
        ("functools.partial(two, context='bound')", PATH | {"context": "bound"}),
        ("functools.partial(two, context=object())", None),
        ("functools.partial(lambda model, request: request.url.path, object())", "/invocations"),
        ("hiding(functools.partial(two, context='bound'))", PATH | {"context": "bound"}),
        ("Model()", PATH),
        ("Model().method", PATH),
        ("Model.of_class", PATH),
        ("Model().decorated", PATH),
        ("lambda *args: args[0].url.path", "/invocations"),
        ("lambda request, /: request.url.path", "/invocations"),
        ("lambda *, req: req.url.path", "/invocations"),
        ("lambda request=None: request.url.path", "/invocations"),
        ("lambda request, context=None: [request.url.path, context]", ["/invocations", None]),
        ("lambda: 1", 1),
        ("optional", "/invocations"),
        ("anything", "/invocations"),
        ("an_object", "/invocations"),
        ("given", "/invocations"),
        ("asked", ["/invocations", "x"]),
    ],
)
async def test_each_form_of_handler_is_called_with_the_request(
    served: Served, handler: str, answer: object
) -> None:
    served.script(f"""{ABOVE}
async def optional(request: Optional[Request] = None):
    return request.url.path
async def anything(request: Any):
    return request.url.path
async def an_object(req: object = None):
    return req.url.path
async def given(request: Request, response: Response, tasks: BackgroundTasks):
    return request.url.path
async def asked(request: Request, name: str = Query()):
    return [request.url.path, name]
handler = {handler}
""")
    served.environ[INVOCATIONS] = "model:handler"
    await served.start()
    response = await served.request(
        "/invocations?name=x&context=y" if "asked" in handler else "/invocations", {"a": 1}
    )
    if answer is None:
        assert response.status_code == 500, "it is called, but its result is not JSON"
        assert "returned a value that JSON cannot represent, object" in str(
            served.manager.report().last_error
        )
    else:
        assert (response.status_code, response.json()) == (200, answer)
        assert served.manager.report().last_error is None


async def test_a_client_cannot_set_arguments_bound_by_a_partial(served: Served) -> None:
    served.script(f"{ABOVE}\nhandler = functools.partial(two, context='bound')\n")
    served.environ[INVOCATIONS] = "model:handler"
    await served.start()
    assert (await served.request("/invocations?context=theirs", {})).json()["context"] == "bound"


NOT_SENT = "which a request of /{} from SageMaker does not have"


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        ("two", "takes context besides the request, without a type"),
        ("hiding(two)", "takes context besides the request, without a type"),
        ("transparent(two)", "takes context besides the request, without a type"),
        ("lambda **kwargs: 1", "takes keyword arguments of any name"),
        ("Model", "is a class"),
        ("Model.method", "is a method that needs an instance"),
        ("Model.decorated", "is a method that needs an instance"),
        ("named", f"needs context, {NOT_SENT}"),
        ("listed", "needs context"),
        ("twice", "takes first, which FastAPI provides for no HTTP request"),
        ("socket", "takes socket, which FastAPI provides for no HTTP request"),
        ("mismatched", "does not take the parameters of the function that it wraps (payload, again)"),
        ("odd", "has parameters that FastAPI refuses"),
    ],
)
@pytest.mark.parametrize("variable", [PING, INVOCATIONS])
async def test_a_handler_that_no_request_can_satisfy_is_rejected(
    served: Served, variable: str, handler: str, expected: str
) -> None:
    served.script(f"""{ABOVE}
async def named(request: Request, context: str):
    return 1
async def listed(request: Request, context: {"list[int] = Query()" if variable == PING else "Optional[int]"}):
    return 1
async def twice(first: Request, second: Request):
    return 1
async def socket(socket: WebSocket):
    return 1
@functools.wraps(body)
async def mismatched(*, other, **kwargs):
    return 1
async def odd(*, request: 3):
    return 1
handler = {handler}
""")
    if variable == PING and handler == "mismatched":
        expected = "needs payload"
    served.environ[variable] = "model:handler"
    problem = await served.rejection()
    assert problem.reason == Reason.INVALID_HANDLER
    assert expected.format("ping" if variable == PING else "invocations") in problem.message
    assert problem.field == variable


@pytest.mark.parametrize(
    "handler",
    [
        "async def f(payload: dict): ...",
        "async def f(request: Request, x: Annotated[str, Query()]): ...",
        "async def f(request: Request, x: Annotated[str, Header()]): ...",
        "async def needed(x: int): ...\nasync def f(request: Request, x=Depends(needed)): ...",
    ],
)
async def test_a_ping_handler_cannot_require_data_that_a_get_request_does_not_have(
    served: Served, handler: str
) -> None:
    served.script(f"{ABOVE}\n{handler}\n")
    served.environ[PING] = "model:f"
    problem = await served.rejection()
    assert problem.reason == Reason.INVALID_HANDLER
    assert NOT_SENT.format("ping") in problem.message
    assert "Give it a default, or take only the request" in problem.message


async def test_decorated_and_named_functions_have_the_same_rules(served: Served) -> None:
    served.script(f"{ABOVE}\ncustom_sagemaker_ping_handler = two\n")
    problem = await served.rejection()
    assert (problem.reason, problem.field) == (Reason.INVALID_HANDLER, "the function two")
    served.script(f"""{ABOVE}
import model_hosting_container_standards.sagemaker as standards
standards.custom_invocation_handler(two)
""")
    problem = await served.rejection()
    assert (problem.reason, problem.field) == (Reason.INVALID_HANDLER, "the decorator two")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("@custom_middleware('throttle')\nasync def f(request): ...",
         "The middleware throttle (f) has other parameters. Take the request and call_next."),
        ("@custom_middleware('pre_post_process')\nasync def f(request, call_next, more): ...",
         "The middleware pre_post_process (f) has other parameters. Take the request and call_next."),
        ("@input_formatter\nasync def f(): ...",
         "The processing of the request (f) has other parameters. Take the request."),
        ("@output_formatter\nasync def f(request, response): ...",
         "The processing of the response (f) has other parameters. Take the response."),
    ],
)  # fmt: skip
async def test_middleware_with_other_parameters_is_rejected(served: Served, code: str, expected: str) -> None:
    served.script(f"""
from model_hosting_container_standards.common.fastapi.middleware import (
    custom_middleware, input_formatter, output_formatter,
)
{code}
""")
    problem = await served.rejection()
    assert (problem.reason, problem.message) == (Reason.INVALID_HANDLER, expected)
