"""Which handler answers, and what it may do: every example of the guide, every pair of sources."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request, Response

from tests.unit.worker.handlers_served import GUIDE, INVOCATIONS, MIDDLEWARE, PING, Served
from vllmendpoint_api import HANDLER_PRECEDENCE, HandlerSource, script_digest
from vllmendpoint_worker.config.handler_config import Route

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
async def test_the_guides_scripts_work(
    served: Served, example: str, source: HandlerSource, ping: Any, invocations: Any
) -> None:
    served.script((GUIDE / example).read_text())
    await served.start()
    for method in ("GET", "POST"):
        answer = await served.request("/ping", method=method)
        assert (answer.status_code, answer.json()) == (200, ping)
    answer = await served.request("/invocations", {"any": "thing"})
    assert (answer.status_code, answer.json()) == (200, invocations)
    report = served.manager.report()
    assert report.ping.source == report.invocations.source == source
    assert report.script_digest == script_digest((GUIDE / example).read_bytes())
    assert (await served.request("/v1/models", method="GET")).json() == "vLLM's models"


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
async def test_all_four_path_formats_resolve(
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
    assert (await served.request()).json() == {"status": "by env"}
    assert (await served.request("/invocations", {})).json() == {"engine": "the engine"}
    report = served.manager.report()
    assert (report.ping.source, report.ping.handler) == (
        HandlerSource.ENVIRONMENT,
        served.environ[PING],
    )
    sys.modules.pop("an_installed_module", None)


# --- precedence, for ping and invocations apart ---

LEVELS = [row.source for row in HANDLER_PRECEDENCE if row.source is not HandlerSource.DEFAULT]


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
async def test_the_source_with_the_higher_priority_is_selected(
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
    assert (await served.request(route, {})).json() == strong.value
    report = served.manager.report()
    mine, other = report.ping, report.invocations
    if route is Route.INVOCATIONS:
        mine, other = other, mine
    assert mine.source == strong
    in_script = [level for level in LEVELS[2:] if level in present]
    assert other.source == (in_script[0] if in_script else HandlerSource.DEFAULT)


async def test_without_custom_handlers_vllms_own_answer(served: Served) -> None:
    await served.start()
    assert (await served.request()).text == "vLLM's ping"
    report = served.manager.report()
    assert report.ping.source == report.invocations.source == HandlerSource.DEFAULT
    assert served.manager.custom_endpoint(Route.PING) is None


async def test_the_script_of_the_spec_replaces_the_models_script(served: Served) -> None:
    served.script("def custom_sagemaker_ping_handler(request):\n    return 'of the model'\n")
    served.environ[INVOCATIONS] = f"{served.folder}/model.py:invoke"
    served.spec(
        script="def custom_sagemaker_ping_handler(r):\n    return 'of the CR'\ndef invoke(r):\n    return 1\n"
    )
    await served.start()
    assert (await served.request()).json() == "of the CR"
    assert (await served.request("/invocations", {})).json() == 1


async def test_decorators_in_other_files_are_ignored(served: Served) -> None:
    served.script("def plain(request):\n    return 'plain'\n")
    served.script((GUIDE / "decorators.py").read_text(), "others.py")
    served.environ |= {PING: "others.py:my_ping"}
    await served.start()
    assert served.manager.report().invocations.source == HandlerSource.DEFAULT
    assert (await served.request()).json() == {"status": "ok"}


async def test_functions_that_vllm_has_moved_resolve_by_the_guides_path(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert (await served.request()).text == "moved"


# --- what a script may do ---


async def test_a_script_imports_another_file_with_dataclasses_and_functions(served: Served) -> None:
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
    assert (await served.request()).json() == {"word": "first", "count": 1}
    assert (await served.request("/invocations", {"a": 1})).json() == [{"a": 1}, 2]
    assert served.folder / "neighbour.py" in served.manager.imported_files
    served.script("WORD = 'other'\n", "neighbour.py")  # as long, within the same second
    await served.start()
    assert (await served.request()).json() == {"word": "other", "count": 1}


async def test_a_load_does_not_change_log_levels(served: Served) -> None:
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


IMPORTED = """
import logging
handler = logging.StreamHandler()
other = logging.getLogger("some.library")
other.addHandler(logging.StreamHandler())
logging.basicConfig(level=logging.INFO, handlers=[handler])
handler.setLevel(logging.DEBUG)
other.setLevel(logging.DEBUG)

def levels():
    root = logging.getLogger()
    return root.level, [(it, it.level) for it in root.handlers], other.level, other.handlers[0].level

before = levels()
import vllmendpoint_worker.handlers
assert levels() == before, (before, levels())
"""


def test_importing_the_standards_package_changes_no_log_level() -> None:
    """In a process of its own: here the package was imported when the tests were collected."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in ("SAGEMAKER_CONTAINER_LOG_LEVEL", "LOG_LEVEL")
    }
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED],
        env=environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


async def test_the_log_shows_the_selected_handler_and_the_reason(
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


# --- the linked guide: pre- and post-processing, throttle ---


@pytest.mark.parametrize(
    ("environ", "decorated"),
    [
        ({"CUSTOM_PRE_PROCESS": "model:pre", "CUSTOM_POST_PROCESS": "model:post",
          "CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE": "model:throttle"}, ""),
        ({}, "input_formatter(pre)\noutput_formatter(post)\ncustom_middleware('throttle')(throttle)\n"),
    ],
)  # fmt: skip
async def test_pre_and_post_processing_change_request_and_response(
    served: Served, environ: dict[str, str], decorated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    served.environ |= environ
    for generation in ("one", "two"):  # the second load must not be refused as a duplicate
        served.script(f"{MIDDLEWARE}{decorated}# {generation}\n")
        await served.start()
        answer = await served.request("/invocations", {"a": 1})
        assert answer.json() == {"seen": "pre", "body": {"a": 1}}
        assert answer.headers["x-post"] == "post"
        async with served.client() as client:
            slow = await client.post("/invocations", json={}, headers={"x-slow": "1"})
        assert (slow.status_code, slow.json()) == (429, {"error": "slow down"})
