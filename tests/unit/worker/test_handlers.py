"""Custom handlers without an engine: SageMaker's own resolver, our loading, binding and swapping, FastAPI."""

import asyncio
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from vllmendpoint_api import (
    HandlerSettings,
    HandlerSource,
    PingReport,
    PingState,
    Problem,
    Reason,
    script_digest,
)
from vllmendpoint_worker.errors import ConfigurationRefusedError
from vllmendpoint_worker.handler_sources import Route, read
from vllmendpoint_worker.handlers import HandlerRoom, PingWatch, _load

GUIDE = Path(__file__).parents[2] / "guide"
PING = "CUSTOM_FASTAPI_PING_HANDLER"
INVOCATIONS = "CUSTOM_FASTAPI_INVOCATION_HANDLER"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("vllmendpoint_handlers") or name in ("neighbour", "sibling"):
            del sys.modules[name]


class Served:
    """vLLM's app stood in for by two routes; everything in front of it is ours."""

    def __init__(self, folder: Path, environ: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.settings_dir = folder.parent / "settings"
        self.settings_dir.mkdir(exist_ok=True)
        self.environ = {"SAGEMAKER_MODEL_PATH": str(folder)} | (environ or {})
        self.settings = HandlerSettings()
        self.changes = 0
        self.room = HandlerRoom(self._changed)
        core = FastAPI()
        core.state.engine_client = "the engine"

        async def ping(request: Request) -> Response:
            return Response("vLLM's ping")

        async def invocations(request: Request) -> Response:
            return Response("vLLM's invocations")

        core.add_api_route("/ping", ping, methods=["GET", "POST"])
        core.add_api_route("/invocations", invocations, methods=["POST"])
        core.add_api_route("/v1/models", invocations, methods=["GET"])
        self.room.attach(core)

    def _changed(self) -> None:
        self.changes += 1

    def script(self, text: str, name: str = "model.py") -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def spec(
        self, script: str | None = None, ping: str | None = None, invocations: str | None = None
    ) -> None:
        digest = None
        if script is not None:
            (self.settings_dir / "model.py").write_text(script)
            digest = script_digest(script.encode())
        self.settings = HandlerSettings(script_digest=digest, ping=ping, invocations=invocations)

    def wrong(self) -> tuple[Problem, ...]:
        return read(self.settings, self.settings_dir, self.environ)[1]

    async def start(self) -> None:
        wanted, problems = read(self.settings, self.settings_dir, self.environ)
        if problems:
            raise ConfigurationRefusedError(problems)
        self.room.swap(self.room.bound(await self.room.load(wanted)))

    async def refused(self) -> Problem:
        with pytest.raises(ConfigurationRefusedError) as caught:
            await self.start()
        return caught.value.problems[0]

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.room, raise_app_exceptions=False)  # type: ignore[arg-type]
        return httpx.AsyncClient(transport=transport, base_url="http://worker")

    async def ask(self, path: str = "/ping", body: Any = None, method: str = "") -> httpx.Response:
        async with self.client() as client:
            return await client.request(method or ("GET" if path == "/ping" else "POST"), path, json=body)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    folder = tmp_path / "model"
    folder.mkdir()
    return Served(folder)


# --- every example of the guide, as printed ---


@pytest.mark.parametrize(
    ("example", "source", "ping", "invocations"),
    [
        ("quick_start.py", HandlerSource.DECORATOR, {"status": "healthy", "custom": True},
         {"predictions": ["custom response"]}),
        ("decorators.py", HandlerSource.DECORATOR, {"status": "ok"}, {"result": "processed"}),
        ("functions.py", HandlerSource.FUNCTION, {"status": "healthy"}, {"result": "processed"}),
    ],
)  # fmt: skip
async def test_the_guides_scripts(
    served: Served, example: str, source: HandlerSource, ping: Any, invocations: Any
) -> None:
    served.script((GUIDE / example).read_text())
    await served.start()
    for method in ("GET", "POST"):
        answer = await served.ask("/ping", method=method)
        assert (answer.status_code, answer.json()) == (200, ping)
    answer = await served.ask("/invocations", {"any": "thing"})
    assert (answer.status_code, answer.json()) == (200, invocations)
    report = served.room.report()
    assert report.ping.source == report.invocations.source == source
    assert report.script_digest == script_digest((GUIDE / example).read_bytes())
    assert (await served.ask("/v1/models", method="GET")).text == "vLLM's invocations"


@pytest.mark.parametrize(
    "environment",
    [
        {
            "CUSTOM_SCRIPT_FILENAME": "handlers_env_var.py",
            PING: "model:health_check",
            INVOCATIONS: "model:inference",
        },
        {
            PING: "{folder}/handlers_env_var.py:health_check",
            INVOCATIONS: "{folder}/handlers_env_var.py:inference",
        },
        {PING: "handlers_env_var.py:health_check", INVOCATIONS: "handlers_env_var.py:inference"},
        {PING: "an_installed_module:health_check", INVOCATIONS: "an_installed_module:Class.inference"},
    ],
)
async def test_the_four_path_formats(
    served: Served, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
async def health_check(request):
    return {"status": "by env"}

async def inference(request):
    return {"engine": request.app.state.engine_client}

class Class:
    @staticmethod
    async def inference(request):
        return {"engine": request.app.state.engine_client}
"""
    served.script(code, "handlers_env_var.py")
    installed = tmp_path / "installed"
    installed.mkdir()
    (installed / "an_installed_module.py").write_text(code)
    monkeypatch.syspath_prepend(installed)
    served.environ |= {name: value.format(folder=served.folder) for name, value in environment.items()}
    await served.start()
    assert (await served.ask()).json() == {"status": "by env"}
    assert (await served.ask("/invocations", {})).json() == {"engine": "the engine"}
    report = served.room.report()
    assert (report.ping.source, report.ping.handler) == (
        HandlerSource.ENVIRONMENT,
        served.environ[PING],
    )
    sys.modules.pop("an_installed_module", None)


# --- precedence, for ping and invocations apart ---

LEVELS = [HandlerSource.SPEC, HandlerSource.ENVIRONMENT, HandlerSource.DECORATOR, HandlerSource.FUNCTION]


def script_with(present: set[HandlerSource]) -> str:
    text = "import model_hosting_container_standards.sagemaker as standards\n"
    for kind, function, decorator in (
        ("ping", "custom_sagemaker_ping_handler", "custom_ping_handler"),
        ("invocations", "custom_sagemaker_invocation_handler", "custom_invocation_handler"),
    ):
        text += f"def spec_{kind}(request):\n    return 'Spec'\n"
        text += f"def env_{kind}(request):\n    return 'Environment'\n"
        if HandlerSource.DECORATOR in present:
            text += f"@standards.{decorator}\ndef decorated_{kind}(request):\n    return 'Decorator'\n"
        if HandlerSource.FUNCTION in present:
            text += f"def {function}(request):\n    return 'Function'\n"
    return text


@pytest.mark.parametrize("route", list(Route))
@pytest.mark.parametrize("strong", LEVELS)
@pytest.mark.parametrize("weak", [*LEVELS[1:], HandlerSource.DEFAULT])
async def test_every_pair_of_sources(
    served: Served, route: Route, strong: HandlerSource, weak: HandlerSource
) -> None:
    if strong in LEVELS and weak in LEVELS and LEVELS.index(strong) >= LEVELS.index(weak):
        strong, weak = weak, strong
    present = {strong, weak}
    served.script(script_with(present))
    kind = "ping" if route is Route.PING else "invocations"
    if HandlerSource.ENVIRONMENT in present:
        served.environ[PING if route is Route.PING else INVOCATIONS] = f"model:env_{kind}"
    if HandlerSource.SPEC in present:
        served.spec(**{kind: f"model:spec_{kind}"})
    await served.start()
    assert (await served.ask(route, {})).json() == strong.value
    report = served.room.report()
    mine, other = report.ping, report.invocations
    if route is Route.INVOCATIONS:
        mine, other = other, mine
    assert mine.source == strong
    in_script = [level for level in LEVELS[2:] if level in present]
    assert other.source == (in_script[0] if in_script else HandlerSource.DEFAULT)


async def test_nothing_asked_for_is_vllms_own(served: Served) -> None:
    await served.start()
    assert (await served.ask()).text == "vLLM's ping"
    report = served.room.report()
    assert report.ping.source == report.invocations.source == HandlerSource.DEFAULT
    assert served.room.custom(Route.PING) is None


async def test_the_crs_script_takes_the_place_of_the_one_in_the_model(served: Served) -> None:
    served.script("def custom_sagemaker_ping_handler(request):\n    return 'of the model'\n")
    served.environ[INVOCATIONS] = f"{served.folder}/model.py:invoke"
    served.spec(
        script="def custom_sagemaker_ping_handler(r):\n    return 'of the CR'\ndef invoke(r):\n    return 1\n"
    )
    await served.start()
    assert (await served.ask()).json() == "of the CR"
    assert (await served.ask("/invocations", {})).json() == 1


async def test_decorators_of_other_files_do_not_count(served: Served) -> None:
    served.script("def plain(request):\n    return 'plain'\n")
    served.script((GUIDE / "decorators.py").read_text(), "others.py")
    served.environ |= {INVOCATIONS: "others.py:my_invoke"}
    await served.start()
    assert served.room.report().ping.source == HandlerSource.DEFAULT
    assert (await served.ask("/invocations", {})).json() == {"result": "processed"}


async def test_what_vllm_has_moved_still_resolves(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    old = type(sys)("vllm.entrypoints.openai.api_server")
    new = type(sys)("vllm.entrypoints.serve.instrumentator.health")

    async def health(raw_request: Request) -> Response:
        return Response("moved")

    new.health = health  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, old.__name__, old)
    monkeypatch.setitem(sys.modules, new.__name__, new)
    for parent in ("vllm", "vllm.entrypoints", "vllm.entrypoints.openai", "vllm.entrypoints.serve",
                   "vllm.entrypoints.serve.instrumentator"):  # fmt: skip
        monkeypatch.setitem(sys.modules, parent, sys.modules.get(parent) or type(sys)(parent))
    served.environ[PING] = "vllm.entrypoints.openai.api_server:health"
    await served.start()
    assert (await served.ask()).text == "moved"


# --- what a script may do ---


async def test_neighbours_dataclasses_and_plain_functions(served: Served) -> None:
    served.script("WORD = 'first'\n", "neighbour.py")
    served.script("""
from __future__ import annotations
import time
from dataclasses import dataclass
from fastapi import Request
import neighbour

@dataclass
class Answer:
    word: str
    count: int = 1

def custom_sagemaker_ping_handler(request: Request) -> Answer:
    return Answer(neighbour.WORD)

async def custom_sagemaker_invocation_handler(payload: dict, again: int = 2):
    return [payload, again]
""")
    await served.start()
    assert (await served.ask()).json() == {"word": "first", "count": 1}
    assert (await served.ask("/invocations", {"a": 1})).json() == [{"a": 1}, 2]
    assert served.folder / "neighbour.py" in served.room.watched
    served.script("WORD = 'other'\n", "neighbour.py")  # as long, within the same second
    await served.start()
    assert (await served.ask()).json() == {"word": "other", "count": 1}


async def test_log_levels_stay(served: Served) -> None:
    root, other = logging.getLogger(), logging.getLogger("some.library")
    other.setLevel(logging.WARNING)
    before = (root.level, [handler.level for handler in root.handlers], list(root.handlers))
    served.script("""
import logging
logging.basicConfig(level=logging.DEBUG, force=True)
logging.getLogger("some.library").setLevel(logging.DEBUG)
logging.disable(logging.ERROR)
def custom_sagemaker_ping_handler(request):
    return 1
""")
    await served.start()
    assert (root.level, [handler.level for handler in root.handlers], list(root.handlers)) == before
    assert other.level == logging.WARNING
    assert logging.getLogger().manager.disable == 0


async def test_debug_says_which_handler_and_why(
    served: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = logging.getLogger("vllmendpoint_worker.handlers")
    monkeypatch.setattr(handlers, "level", handlers.level)
    monkeypatch.setattr(logging.getLogger("vllmendpoint_worker"), "propagate", True)
    served.environ["SAGEMAKER_CONTAINER_LOG_LEVEL"] = "DEBUG"
    served.script((GUIDE / "decorators.py").read_text())
    await served.start()
    assert "decorator in the script: found; selected: Decorator" in caplog.text
    assert "Handler of /ping: model:my_ping (Decorator)" in caplog.text
    handlers.setLevel(logging.NOTSET)


# --- what is wrong is said, and nothing falls through ---


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("health_check", "has no colon"),
        ("/health", "the path of a route"),
        ("a:b:c", "more than one colon"),
        ("model:health check", "has a space"),
        (":health", "no file or module before"),
        ("model:", "no function after"),
        ("model:1f", "no function after"),
        ("../x.py:f", "leaves the model's folder"),
        ("no-module:f", "neither a .py file nor a module"),
    ],
)
@pytest.mark.parametrize("where", ["environment", "spec"])
def test_malformed_paths(served: Served, text: str, says: str, where: str) -> None:
    served.script((GUIDE / "decorators.py").read_text())
    if where == "spec":
        served.spec(ping=text)
    else:
        served.environ[PING] = text
    (problem,) = served.wrong()
    assert problem.reason == Reason.INVALID_HANDLER
    assert says in problem.message
    assert problem.field == ("handlers.ping" if where == "spec" else PING)
    assert problem.source == ("Spec" if where == "spec" else "Environment")
    assert text not in problem.message.partition(": use")[0]
    assert "use model:function" in problem.message


@pytest.mark.parametrize(
    ("environ", "script", "reason", "says"),
    [
        ({"CUSTOM_SCRIPT_FILENAME": "gone.py"}, None, Reason.SCRIPT_NOT_FOUND, "a file that does not exist"),
        ({"SAGEMAKER_MODEL_PATH": "/nowhere"}, None, Reason.SCRIPT_NOT_FOUND, "a folder that does not exist"),
        ({PING: "model:f"}, None, Reason.SCRIPT_NOT_FOUND, "there is no"),
        ({}, "def f(:\n", Reason.HANDLER_IMPORT_FAILED, "model.py line 1"),
        (
            {"SAGEMAKER_CONTAINER_LOG_LEVEL": "LOUD"},
            None,
            Reason.INVALID_ENVIRONMENT,
            "use ERROR, INFO or DEBUG",
        ),
    ],
)
def test_told_before_anything_is_run(
    served: Served, environ: dict[str, str], script: str | None, reason: Reason, says: str
) -> None:
    served.environ |= environ
    if script is not None:
        served.script(script)
    (problem,) = served.wrong()
    assert problem.reason == reason
    assert says in problem.message


@pytest.mark.parametrize(
    ("script", "reason", "says"),
    [
        ("import no_such_module_here\n", Reason.HANDLER_IMPORT_FAILED,
         "model.py line 1: ModuleNotFoundError: No module named 'no_such_module_here'"),
        ("x = 1\ny = undefined\n", Reason.HANDLER_IMPORT_FAILED, "model.py line 2: NameError"),
        ("raise ValueError('the secret token')\n", Reason.HANDLER_IMPORT_FAILED, "model.py line 1: ValueError:"),
        ("import sys\nsys.exit(3)\n", Reason.HANDLER_IMPORT_FAILED, "calls sys.exit() while it is imported"),
        ("def g(request):\n    pass\n", Reason.HANDLER_NOT_FOUND, "names a function that is not there"),
        ("f = 3\n", Reason.INVALID_HANDLER, "is not callable (a int)"),
        ("class f:\n    def __init__(self, request):\n        pass\n\n    def m(self, r):\n        pass\n"
         "f = f.m\n", Reason.INVALID_HANDLER, "is a method that needs an instance"),
        ("def f(*, request: 3):\n    pass\n", Reason.INVALID_HANDLER, "parameters that FastAPI refuses"),
    ],
)  # fmt: skip
async def test_told_from_running_it(served: Served, script: str, reason: Reason, says: str) -> None:
    served.script("def f(request):\n    return 'the last good one'\n")
    served.environ[PING] = "model:f"
    await served.start()
    served.script(script)
    problem = await served.refused()
    assert problem.reason == reason, problem
    assert says in problem.message
    assert "secret" not in problem.message
    assert (await served.ask()).json() == "the last good one"


@pytest.mark.parametrize(
    "path", ["gone.py:f", "/gone/away.py:f", "no_such_module_here:f", "json:gone", "json:A.b"]
)
async def test_what_a_path_names_is_not_there(served: Served, path: str) -> None:
    served.spec(invocations=path)
    problem = await served.refused()
    assert problem.reason in (Reason.SCRIPT_NOT_FOUND, Reason.HANDLER_IMPORT_FAILED, Reason.HANDLER_NOT_FOUND)
    assert problem.field == "handlers.invocations"


async def test_function_found_by_name_that_is_no_function(served: Served) -> None:
    served.script("custom_sagemaker_ping_handler = 'yes'\n")
    problem = await served.refused()
    assert problem.reason == Reason.INVALID_HANDLER
    assert "custom_sagemaker_ping_handler is not callable" in problem.message


async def test_an_import_that_hangs_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.room._loader, "_seconds", 0.3)
    served.script("while True:\n    pass\n")
    problem = await served.refused()
    assert problem.reason == Reason.HANDLER_IMPORT_FAILED
    assert "not imported within 0 s (model.py line" in problem.message
    for thread in threading.enumerate():
        if thread.name == "handlers":
            thread.join(5)
            assert not thread.is_alive(), "an endless loop is ended"
    served.script("def custom_sagemaker_ping_handler(request):\n    return 'mended'\n")
    await served.start()
    assert (await served.ask()).json() == "mended"


async def test_a_failed_import_leaves_no_trace(served: Served) -> None:
    served.script((GUIDE / "decorators.py").read_text() + "\nimport no_such_module_here\n")
    await served.refused()
    served.script("x = 1\n")
    await served.start()
    assert served.room.report().ping.source == HandlerSource.DEFAULT


# --- swapping ---


async def test_requests_in_flight_end_on_the_old_handlers(served: Served) -> None:
    code = """
import asyncio
started = asyncio.Event()
go = asyncio.Event()
async def custom_sagemaker_invocation_handler(request):
    request.app.state.gates.append((started, go))
    started.set()
    await go.wait()
    return "VERSION"
"""
    gates: list[tuple[asyncio.Event, asyncio.Event]] = []
    served.room._core.state.gates = gates  # type: ignore[union-attr]
    served.script(code.replace("VERSION", "one"))
    await served.start()
    first = served.room.report().script_digest
    under_way = asyncio.create_task(served.ask("/invocations", {}))
    while not gates:
        await asyncio.sleep(0.01)
    served.script(code.replace("VERSION", "two"))
    await served.start()
    assert served.room.report().script_digest != first
    second = asyncio.create_task(served.ask("/invocations", {}))
    while len(gates) < 2:
        await asyncio.sleep(0.01)
    for _, go in gates:
        go.set()
    assert ((await under_way).json(), (await second).json()) == ("one", "two")


async def test_a_script_keeps_its_state_while_nothing_of_it_changes(served: Served) -> None:
    served.script(
        "calls = []\ndef custom_sagemaker_ping_handler(r):\n    calls.append(1)\n    return len(calls)\n"
    )
    await served.start()
    assert (await served.ask()).json() == 1
    await served.start()
    assert (await served.ask()).json() == 2


# --- handlers that misbehave ---


async def test_errors_reach_the_report_without_their_text(served: Served) -> None:
    served.script("""
from fastapi import HTTPException
async def custom_sagemaker_invocation_handler(request):
    if (await request.json()).get("http"):
        raise HTTPException(418, "teapot")
    raise RuntimeError("the secret token")
""")
    await served.start()
    assert (await served.ask("/invocations", {"http": True})).status_code == 418
    assert served.room.report().last_error is None
    assert (await served.ask("/invocations", {})).status_code == 500
    error = served.room.report().last_error
    assert error is not None
    assert error.route == "/invocations"
    assert "raised RuntimeError at model.py line 6" in error.message
    assert "secret" not in error.message


async def test_hanging_threads_stop_nobody_else(served: Served) -> None:
    served.script("""
import threading
release = threading.Event()
def custom_sagemaker_invocation_handler(request):
    release.wait(20)
    return 1
""")
    await served.start()
    hanging = [asyncio.create_task(served.ask("/invocations", {})) for _ in range(60)]
    await asyncio.sleep(0.2)
    assert (await asyncio.wait_for(served.ask("/v1/models", method="GET"), 5)).status_code == 200
    endpoint = served.room.custom(Route.INVOCATIONS)
    assert endpoint is not None
    assert endpoint.running_for() > 0
    module = next(m for name, m in sys.modules.items() if name.startswith("vllmendpoint_handlers"))
    module.release.set()
    assert {(await answer).json() for answer in hanging} == {1}
    assert endpoint.running_for() == 0


@pytest.fixture
def watched(served: Served) -> Callable[..., PingWatch]:
    def make(seconds: float = 0.2) -> PingWatch:
        def changed(report: PingReport | None) -> None:
            pass

        return PingWatch(served.room, timeout=lambda: seconds, thresholds=lambda: (2, 1), changed=changed)

    return make


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("from fastapi import Response\n    return Response(status_code=503)", "answers 503 instead of 200"),
        ("raise KeyError('x')", "answers 500"),
        ("import time\n    time.sleep(1)", "did not answer within 0.2 s"),
    ],
)
async def test_a_failing_ping(
    served: Served, watched: Callable[..., PingWatch], body: str, says: str
) -> None:
    served.script("def custom_sagemaker_ping_handler(request):\n    return 'fine'\n")
    watch = watched()
    await served.start()
    await watch.ask()
    assert watch.report is not None
    assert watch.report.state == PingState.PASSING
    served.script(f"def custom_sagemaker_ping_handler(request):\n    {body}\n")
    await served.start()
    await watch.ask()
    assert watch.report.state == PingState.PASSING, "one failure is below the threshold"
    await watch.ask()
    assert watch.report.state == PingState.FAILING
    assert says in watch.report.message or "does not return" in watch.report.message
    served.script("def custom_sagemaker_ping_handler(request):\n    return 'fine'\n")
    await served.start()
    await watch.ask()
    assert watch.report.state == PingState.PASSING
    served.script("x = 1\n")
    await served.start()
    await watch.ask()
    assert watch.report is None, "vLLM's own ping is the verdict's to answer"


async def test_a_ping_that_never_returns_is_not_asked_again(
    served: Served, watched: Callable[..., PingWatch]
) -> None:
    served.script("""
import threading
release = threading.Event()
calls = []
def custom_sagemaker_ping_handler(request):
    calls.append(1)
    release.wait(20)
""")
    await served.start()
    watch = watched()
    for _ in range(5):
        await watch.ask()
        await asyncio.sleep(0.1)
    module = next(m for name, m in sys.modules.items() if name.startswith("vllmendpoint_handlers"))
    assert len(module.calls) <= 2
    assert watch.report is not None
    assert watch.report.state == PingState.FAILING
    assert "does not return" in watch.report.message
    module.release.set()


# --- the linked guide: pre- and post-processing, throttle ---

MIDDLEWARE = """
from fastapi import Response
from fastapi.responses import JSONResponse
import model_hosting_container_standards.sagemaker as standards
from model_hosting_container_standards.common.fastapi.middleware import (
    custom_middleware, input_formatter, output_formatter,
)

async def custom_sagemaker_invocation_handler(request):
    return {"seen": request.headers.get("x-seen", ""), "body": await request.json()}

async def pre(request):
    request.scope["headers"].append((b"x-seen", b"pre"))
    return request

async def post(response):
    response.headers["x-post"] = "post"
    return response

async def throttle(request, call_next):
    if request.headers.get("x-slow"):
        return JSONResponse({"error": "slow down"}, status_code=429)
    return await call_next(request)
"""


@pytest.mark.parametrize(
    ("environ", "decorated"),
    [
        ({"CUSTOM_PRE_PROCESS": "model:pre", "CUSTOM_POST_PROCESS": "model:post",
          "CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE": "model:throttle"}, ""),
        ({}, "input_formatter(pre)\noutput_formatter(post)\ncustom_middleware('throttle')(throttle)\n"),
    ],
)  # fmt: skip
async def test_processing_before_and_after(
    served: Served, environ: dict[str, str], decorated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    served.environ |= environ
    served.script(MIDDLEWARE + decorated)
    for generation in ("one", "two"):  # the second load must not be refused as a duplicate
        await served.start()
        answer = await served.ask("/invocations", {"a": 1})
        assert answer.json() == {"seen": "pre", "body": {"a": 1}}
        assert answer.headers["x-post"] == "post"
        async with served.client() as client:
            slow = await client.post("/invocations", json={}, headers={"x-slow": "1"})
        assert (slow.status_code, slow.json()) == (429, {"error": "slow down"})


async def test_a_bad_middleware_is_refused(served: Served) -> None:
    served.script(MIDDLEWARE)
    served.environ["CUSTOM_PRE_PROCESS"] = "model:gone"
    problem = await served.refused()
    assert (problem.reason, problem.field) == (Reason.HANDLER_NOT_FOUND, "CUSTOM_PRE_PROCESS")
    assert json.dumps(problem.wire())


def test_the_bound_on_an_import_is_stated() -> None:
    assert _load.IMPORT_SECONDS == 120.0
